"""A second, slow parser of verdicts: every form that the grammar allows is written out, without regular expressions."""

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from itertools import groupby, product

from judging.verdict import Failure

LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"


def forms(*parts: Collection[str]) -> set[str]:
    """One option of each part, in turn, with a space between two tokens."""
    return {" ".join(filter(None, choice)) for choice in product(*parts)}


MARKS = ["", *("#" * n for n in range(1, 7)), "-", "•"]
POINTS = ["", "point", "points"]
SCALES = forms(["/", "out of", "of"], ["5"], POINTS)
SCORE_LABELS = forms(MARKS, ["", "final", "total", "overall"], ["score :"])
WINNER_LABELS = forms(MARKS, ["", "final"], ["winner :"])


def wrapped(values: Collection[str]) -> list[str]:
    return [form for value in values for form in (value, f"< {value} >", f"[ {value} ]")]


SCORES = forms(wrapped(["N"]), POINTS, ["", *SCALES, *(f"( {scale} )" for scale in SCALES)], ["", "."])
WINNERS = forms(wrapped(["AB", "judgment AB", "judgement AB", "TIE"]), ["", "."])


def slow_score(
    text: str, finish_reason: str, verdict_position: str = "last", fractions: bool = False
) -> Fraction | Failure:
    """The score that the verdict line names, or why there is none."""
    value = read(text, finish_reason, verdict_position, SCORE_LABELS, SCORES, first_number, count_numbers)
    if isinstance(value, Failure):
        return value
    if not 0 <= Fraction(value) <= 5:
        return Failure.OUT_OF_RANGE
    if Fraction(value).denominator != 1 and not fractions:
        return Failure.FRACTION
    return Fraction(value)


def slow_winner(text: str, finish_reason: str, verdict_position: str = "last") -> str | Failure:
    """The winner that the verdict line names, or why there is none."""
    value = read(text, finish_reason, verdict_position, WINNER_LABELS, WINNERS, first_winner, count_winners)
    return value if isinstance(value, Failure) else {"a": "first", "b": "second", "tie": "tie"}[value]


def read(
    text: str, finish_reason: str, verdict_position: str, labels: Collection[str], values: Collection[str],
    first_value: Callable[[list[str]], tuple[str, str]], count: Callable[[str], int],
) -> str | Failure:  # fmt: skip
    """The value on the only line that can hold the verdict; or why the line is no form of the grammar."""
    if finish_reason != "stop":
        return Failure.TOO_LONG if finish_reason == "too_long" else Failure.TRUNCATED
    if not text.strip():
        return Failure.EMPTY
    line = text.strip().splitlines()[0 if verdict_position == "first" else -1]  # the outermost two are never empty
    for emphasis in "*_`":
        line = line.replace(emphasis, " ")
    label, colon, rest = " ".join(line.replace("\N{FULLWIDTH COLON}", ":").split()).partition(":")
    if joined(tokens(label + colon)) not in labels:
        return Failure.MISSING
    value, form = first_value(tokens(rest))
    if form in values:
        return value
    number = count(rest)
    return Failure.MISSING if not number else Failure.MALFORMED if number == 1 else Failure.AMBIGUOUS


def first_number(parts: list[str]) -> tuple[str, str]:
    """The first number, of at most nine digits and nine after the point; and the form of the line, with N for it."""
    for place, part in enumerate(parts):
        if part[0] in DIGITS:
            start = place - (parts[place - 1 : place] == ["-"])
            fraction = parts[place + 1 : place + 2] == ["."] and parts[place + 2 : place + 3]
            end = place + (3 if fraction and fraction[0][0] in DIGITS else 1)
            name = "N" if all(len(part) <= 9 for part in parts[place:end]) else "?"
            return "".join(parts[start:end]), joined([*parts[:start], name, *parts[end:]])
    return "", ""


def first_winner(parts: list[str]) -> tuple[str, str]:
    """The first winner, and the form of the line, with AB or TIE for it."""
    names = {"a": "AB", "b": "AB", "tie": "TIE"}
    place = next((place for place, part in enumerate(parts) if part in names), None)
    if place is None:
        return "", ""
    return parts[place], joined([*parts[:place], names[parts[place]], *parts[place + 1 :]])


def lowered(text: str) -> str:
    """ASCII capitals made small; no other character changes."""
    return "".join(char.lower() if char in LETTERS else char for char in text)


def tokens(line: str) -> list[str]:
    """Runs of letters (lowered), of digits, and of "#", and all other characters one by one, spaces included."""
    kinds = groupby(lowered(line), lambda char: next((kind for kind in (LETTERS, DIGITS, "#") if char in kind), ""))
    return [run for kind, chars in kinds for run in (["".join(chars)] if kind else chars)]


def joined(parts: Sequence[str]) -> str:
    return " ".join(part for part in parts if part != " ")


def count_numbers(rest: str) -> int:
    """How many numbers follow the label, scales left out."""
    rest = lowered(rest)
    for scale in ("/5", "/ 5", "of5", "of 5"):
        first, *others = rest.split(scale)
        rest = first + "".join((scale if other[:1] and other[0] in DIGITS + "." else " ") + other for other in others)
    figures = "".join(char if char in DIGITS + "." else " " for char in rest)
    parts = [part for figure in figures.split() for part in figure.split("..")]
    return sum((sum(map(bool, part.split("."))) + 1) // 2 for part in parts)  # one point joins two runs of digits


def count_winners(rest: str) -> int:
    """How many names of a winner follow the label: whole words, of which a lone "a" is none."""
    runs = groupby(rest, lambda char: char in LETTERS + DIGITS + "_")
    parts = [part for word, chars in runs for part in (["".join(chars)] if word else chars)]
    count = 0
    for before, gap, word in zip(["", "", *parts], ["", *parts], parts, strict=False):
        named = gap == " " and lowered(before) in ("judgment", "judgement")
        count += word == "A" or lowered(word) in ("b", "tie") or (word == "a" and named)
    return count
