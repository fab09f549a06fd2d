"""A second, slow parser of verdicts: recursive descent over the grammar, without regular expressions."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

from judging.verdict import Failure


class Token(NamedTuple):
    """Letters of one word (lowered), digits of one run, or one other character that is no space."""

    text: str
    start: int
    end: int


# A rule yields every place at which a reading that starts at a token can end, with the text it kept on the way.
Rule = Callable[[list[Token], int], Iterator[tuple[int, str]]]


def slow_score(
    text: str, finish_reason: str, verdict_position: str = "last", fractions: bool = False
) -> Fraction | Failure:
    """The score that the verdict line names, or why there is none."""
    line = verdict_line(text, finish_reason, verdict_position)
    if isinstance(line, Failure):
        return line
    value = whole_reading(SCORE_LINE, line)
    if value is None:
        return why_not(line, SCORE_LABEL, count_numbers)
    score = Fraction(value)
    if score < 0 or score > 5:
        return Failure.OUT_OF_RANGE
    if score.denominator != 1 and not fractions:
        return Failure.FRACTION
    return score


def slow_winner(text: str, finish_reason: str, verdict_position: str = "last") -> str | Failure:
    """The winner that the verdict line names, or why there is none."""
    line = verdict_line(text, finish_reason, verdict_position)
    if isinstance(line, Failure):
        return line
    value = whole_reading(WINNER_LINE, line)
    if value is None:
        return why_not(line, WINNER_LABEL, count_winners)
    return {"a": "first", "b": "second", "tie": "tie"}[value]


def verdict_line(text: str, finish_reason: str, verdict_position: str) -> str | Failure:
    """The only line that can hold the verdict, without emphasis and with its white space made even."""
    if finish_reason == "too_long":
        return Failure.TOO_LONG
    if finish_reason != "stop":
        return Failure.TRUNCATED
    if text.strip() == "":
        return Failure.EMPTY
    lines = text.strip().splitlines()  # the outermost two are never empty
    line = lines[0] if verdict_position == "first" else lines[-1]
    for emphasis in "*_`":
        line = line.replace(emphasis, " ")
    return " ".join(line.replace("\N{FULLWIDTH COLON}", ":").split())


def why_not(line: str, label: Rule, count: Callable[[str], int]) -> Failure:
    """What is wrong with a line that is no reading of the grammar: how many values are there after the label?"""
    tokens = tokenise(line)
    for end, _ in label(tokens, 0):
        values = count(line[tokens[end - 1].end :])
        if values > 0:
            return Failure.MALFORMED if values == 1 else Failure.AMBIGUOUS
    return Failure.MISSING


def is_letter(char: str) -> bool:
    """An ASCII letter."""
    return "a" <= char <= "z" or "A" <= char <= "Z"


def is_digit(char: str) -> bool:
    """An ASCII digit."""
    return "0" <= char <= "9"


def lowered(text: str) -> str:
    """ASCII capitals made small; no other character changes."""
    return "".join(char.lower() if is_letter(char) else char for char in text)


def tokenise(line: str) -> list[Token]:
    """The tokens of a line. A word ends only where its letters do, so two words that touch are one unknown word."""
    tokens, at = [], 0
    while at < len(line):
        end = at + 1
        for belongs in (is_letter, is_digit):
            while belongs(line[at]) and end < len(line) and belongs(line[end]):
                end += 1
        if line[at] != " ":
            tokens.append(Token(lowered(line[at:end]), at, end))
        at = end
    return tokens


def whole_reading(rule: Rule, line: str) -> str | None:
    """What the rule keeps of the line when it reads all of it; None when it cannot."""
    tokens = tokenise(line)
    kept = {kept for end, kept in rule(tokens, 0) if end == len(tokens)}
    assert len(kept) <= 1, f"the grammar reads {line!r} in several ways: {kept}"
    return kept.pop() if kept else None


def one(*texts: str, keep: bool = False) -> Rule:
    """One token, which is one of the texts."""

    def read(tokens: list[Token], at: int) -> Iterator[tuple[int, str]]:
        if at < len(tokens) and tokens[at].text in texts:
            yield at + 1, tokens[at].text if keep else ""

    return read


def in_turn(*rules: Rule) -> Rule:
    """All the rules, one after the other."""

    def read(tokens: list[Token], at: int) -> Iterator[tuple[int, str]]:
        if not rules:
            yield at, ""
            return
        for middle, left in rules[0](tokens, at):
            for end, right in in_turn(*rules[1:])(tokens, middle):
                yield end, left + right

    return read


def either(*rules: Rule) -> Rule:
    """Any one of the rules."""

    def read(tokens: list[Token], at: int) -> Iterator[tuple[int, str]]:
        for rule in rules:
            yield from rule(tokens, at)

    return read


def maybe(rule: Rule) -> Rule:
    """The rule or nothing."""
    return either(rule, in_turn())


def wrapped(rule: Rule) -> Rule:
    """The rule bare, in angle brackets or in square ones."""
    return either(rule, in_turn(one("<"), rule, one(">")), in_turn(one("["), rule, one("]")))


def together(rule: Rule) -> Rule:
    """The rule without white space between its tokens."""

    def read(tokens: list[Token], at: int) -> Iterator[tuple[int, str]]:
        for end, kept in rule(tokens, at):
            if all(tokens[i].end == tokens[i + 1].start for i in range(at, end - 1)):
                yield end, kept

    return read


def digits(tokens: list[Token], at: int) -> Iterator[tuple[int, str]]:
    """One to nine digits."""
    if at < len(tokens) and all(is_digit(char) for char in tokens[at].text) and len(tokens[at].text) <= 9:
        yield at + 1, tokens[at].text


MARK = either(*(together(in_turn(*[one("#")] * n)) for n in range(1, 7)), one("-"), one("•"))
NUMBER = together(in_turn(maybe(one("-", keep=True)), digits, maybe(in_turn(one(".", keep=True), digits))))
POINTS = one("point", "points")
SCALE = in_turn(either(one("/"), in_turn(one("out"), one("of")), one("of")), one("5"), maybe(POINTS))
WINNER = either(in_turn(maybe(one("judgment", "judgement")), one("a", "b", keep=True)), one("tie", keep=True))

SCORE_LABEL = in_turn(maybe(MARK), maybe(one("final", "total", "overall")), one("score"), one(":"))
SCORE_LINE = in_turn(
    SCORE_LABEL,
    wrapped(NUMBER),
    maybe(POINTS),
    maybe(either(SCALE, in_turn(one("("), SCALE, one(")")))),
    maybe(one(".")),
)
WINNER_LABEL = in_turn(maybe(MARK), maybe(one("final")), one("winner"), one(":"))
WINNER_LINE = in_turn(WINNER_LABEL, wrapped(WINNER), maybe(one(".")))


def scale_end(text: str, at: int) -> int | None:
    """Where a scale that starts here ends (the longest of its readings that no digit or full stop follows), if any."""
    tails = [f"{gap}5{tail}" for gap in (" ", "") for tail in (" points", "points", " point", "point", "")]
    for scale in (sign + tail for sign in ("/", "out of", "of") for tail in tails):
        end = at + len(scale)
        if text.startswith(scale, at) and not (end < len(text) and (is_digit(text[end]) or text[end] == ".")):
            return end
    return None


def count_numbers(rest: str) -> int:
    """How many numbers follow the label, scales left out."""
    rest, without_scales, at = lowered(rest), "", 0
    while at < len(rest):
        end = scale_end(rest, at)
        without_scales += rest[at] if end is None else " "
        at = at + 1 if end is None else end
    count, at = 0, 0
    while at < len(without_scales):
        if not is_digit(without_scales[at]):
            at += 1
            continue
        count += 1
        at = run_end(without_scales, at)
        if without_scales[at : at + 1] == "." and run_end(without_scales, at + 1) > at + 1:
            at = run_end(without_scales, at + 1)
    return count


def run_end(text: str, at: int) -> int:
    """Where the digits that start here end."""
    while at < len(text) and is_digit(text[at]):
        at += 1
    return at


def count_winners(rest: str) -> int:
    """How many names of a winner follow the label: whole words, "judgment a" one of them and a lone "a" none."""
    parts, word = [], ""
    for char in rest + " ":  # words, and what stands between them character by character
        if is_letter(char) or is_digit(char) or char == "_":
            word += char
        else:
            parts += [word, char] if word else [char]
            word = ""
    count, at = 0, 0
    while at < len(parts):
        named = lowered("".join(parts[at : at + 3]))
        if named in ("judgment a", "judgment b", "judgement a", "judgement b"):
            count, at = count + 1, at + 3
        else:
            count, at = count + (parts[at] == "A" or lowered(parts[at]) in ("b", "tie")), at + 1
    return count
