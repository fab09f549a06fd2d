"""Verdict lines drawn from the grammar, some of them spoilt: the parser agrees with a slow parser."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from random import Random
from typing import Any

from slow_verdict import slow_score, slow_winner

from judging.verdict import Failure, parse_score, parse_winner

GAPS = [*[" "] * 10, "  ", "\t", "\u00a0", "\u3000", "**", " _", "` ", "\x1f"]
BREAKS = ["\n", "\n", "\n", "\r\n", "\n\n", "\n \t\n", "\r", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"]
PROSE = ["The first answer is better.", "I would give 3 out of 5.", "Score", "4", "A", "**", "-", "\u200b", "```"]
CHARS = "0123456789.-/:#<>[]()*_` ABabtieofps,!\n\t\u00a0\u2028\x0b\x1c\uff1a\u0664\u00b2\uff15\u00e9\u017f\u0130\u2022"
NUMBERS = ["0", "3", "4", "5", "4.0", ".5", "1/2", "3-4", "\u0664", "\uff15", "\u00b2", "9" * 9, "0" * 10]
ODD = ["6", "10", "-1", "-0", "-0.0", "05", "000000003", "0000000003", "123456789", "-0.5", "5.1", "5.000000001"]
SCALES = ["/5", "/ 5", "/10", "/5.", "/55", "out of 5", "of 5", "out of 10", "of 5.0", "of 5 points", "of5points."]
WORDS = ["score", "winner", "final", "total", "overall", "and", "or", "point", "points", "of", "out", "s", "\u00e9"]
WINNERS = ["A", "B", "a", "b", "tie", "judgment", "judgement", "judgment B", "Judgement a", "judgment tie"]
SIGNS = [*"::#-\u2022<>[]()..,!=\u2013_\uff1a", "##", "**", "score:", "Winner:"]


def place(draw: Random, length: int) -> int:
    """A place to spoil; the end is likelier than the start, since a line without a label is rarely a verdict."""
    return max(draw.randrange(length), draw.randrange(length))


def some(draw: Random, chance: float, *pieces: str) -> list[str]:
    """One of the pieces, or none of them."""
    return [draw.choice(pieces)] if draw.random() < chance else []


def wrapped(draw: Random, value: str) -> list[str]:
    return draw.choice([[value], [value], [value], ["<", value, ">"], ["[", value, "]"]])


def number(draw: Random) -> str:
    if draw.random() < 0.15:
        return draw.choice(ODD)
    tail = ["", "", "", ".0", ".5", ".25", ".000000000", ".0000000000", f".{draw.randrange(1000)}"]
    return str(draw.choice([0, 1, 2, 3, 4, 5])) + draw.choice([*[""] * 15, *tail])


def scale(draw: Random) -> list[str]:
    sign = draw.choice([["/"], ["out", "of"], ["of"]])
    return [*sign, draw.choice([*["5"] * 20, "10", "05", "5.0"]), *some(draw, 0.2, "point", "points")]


def labelled(draw: Random, *label: str) -> list[str]:
    """A mark, and words before the last word of a label."""
    marks = some(draw, 0.25, "-", "•", *("#" * n for n in range(1, 8)))
    return [*marks, *some(draw, 0.4, *label[:-1]), label[-1], ":"]


def score_line(draw: Random) -> list[str]:
    """The pieces of a score line; only its numbers and its scale can be wrong."""
    pieces = [*labelled(draw, "final", "total", "overall", "score"), *wrapped(draw, number(draw))]
    pieces += some(draw, 0.2, "point", "points")
    if draw.random() < 0.4:
        pieces += scale(draw) if draw.random() < 0.6 else ["(", *scale(draw), ")"]
    return pieces + some(draw, 0.3, ".")


def winner_line(draw: Random) -> list[str]:
    """The pieces of a winner line."""
    winner = "tie" if draw.random() < 0.3 else " ".join([*some(draw, 0.5, "judgment", "judgement"), draw.choice("ab")])
    return [*labelled(draw, "final", "winner"), *wrapped(draw, winner), *some(draw, 0.3, ".")]


def spoilt(draw: Random, pieces: Sequence[str], others: Sequence[str]) -> list[str]:
    """The pieces, or characters, with one of them dropped, doubled, replaced, exchanged or followed by another."""
    at, end, other = place(draw, len(pieces)), len(pieces) - 1, draw.choice(others)
    kind = draw.choice(["drop", "double", "replace", "exchange", "add", "add", "append"])
    at = end if kind == "append" else at
    old, second = pieces[at], pieces[place(draw, len(pieces))]
    new = {"drop": [], "double": [old, old], "replace": [other], "exchange": [second]}.get(kind, [old, other])
    return [*pieces[:at], *new, *pieces[at + 1 :]]


def recased(draw: Random, piece: str) -> str:
    """The piece in a random case; rarely with a non-ASCII letter whose capital is ASCII."""
    if draw.random() < 0.02:
        return piece.replace("s", "\u017f").replace("i", draw.choice("\u0131\u0130"))
    if draw.random() < 0.1:
        return "".join(draw.choice([char.lower(), char.upper()]) for char in piece)
    return draw.choice([str.title, str.title, str.lower, str.upper, str.swapcase])(piece)


def joined(draw: Random, pieces: list[str]) -> str:
    """The pieces with required and optional white space, in any case, with some emphasis."""
    line, before = "", ""
    for piece in pieces:
        needed = before[-1:].isalpha() and piece[:1].isalpha() and draw.random() < 0.95
        line += draw.choice(GAPS) if needed or draw.random() < 0.3 else ""
        emphasis = draw.choice(["*", "**", "_", "`"]) if draw.random() < 0.1 else ""
        line += emphasis + recased(draw, piece) + emphasis
        before = piece
    return line.replace(":", "\N{FULLWIDTH COLON}") if draw.random() < 0.05 else line


def text_around(draw: Random, line: str, quoted: str, verdict: str) -> str:
    """The line at its place or, rarely, at the wrong one, among prose and another verdict."""
    lines = [draw.choice([*PROSE, quoted, quoted, ""]) for _ in range(draw.choice([0, 0, 1, 2, 3]))]
    lines.insert(0 if (verdict == "first") == (draw.random() < 0.95) else len(lines), line)
    text = "".join(line + draw.choice(BREAKS) for line in lines)
    return draw.choice(["", "", "\n", " \u2028"]) + (text if draw.random() < 0.5 else text.rstrip())


def requests(seed: int, count: int, draw_line: Callable[[Random], list[str]]) -> Iterator[dict[str, Any]]:
    """Texts with the parser's other arguments."""
    draw = Random(seed)
    for _ in range(count):
        pieces = draw_line(draw)
        for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
            pieces = spoilt(draw, pieces, draw.choice([NUMBERS, SCALES, WORDS, WINNERS, SIGNS])) if pieces else []
        line = joined(draw, pieces)
        for _ in range(draw.choice([0, 0, 0, 0, 1, 2])):
            line = "".join(spoilt(draw, line, CHARS)) if line else ""
        verdict = draw.choice(["last", "last", "first"])
        text = text_around(draw, line, joined(draw, draw_line(draw)), verdict)
        fractions = {"fractions": draw.random() < 0.5} if draw_line is score_line else {}
        yield fractions | {
            "text": draw.choice(["", " ", "\n\u00a0\n", "\u2028\x1c"]) if draw.random() < 0.02 else text,
            "finish_reason": draw.choice(["too_long", "length", ""]) if draw.random() < 0.05 else "stop",
            "verdict_position": verdict,
        }


def compared(parse: Callable, slow: Callable, sample: Iterator[dict[str, Any]]) -> Counter:
    """Counts of the readings, on which both parsers agree."""
    seen = Counter()
    for request in sample:
        parsed, plain = parse(**request), slow(**request)
        assert (type(parsed), parsed) == (type(plain), plain), request
        seen[plain] += 1
    return seen


def test_scores_are_read_as_the_grammar_has_them():
    seen = compared(parse_score, slow_score, requests(1, 5_000, score_line))
    scores = {result: n for result, n in seen.items() if isinstance(result, Fraction)}
    assert not {result: seen[result] for result in [*Failure, *map(Fraction, range(6))] if seen[result] < 30}
    assert sum(scores.values()) > 1000 and sum(n for result, n in scores.items() if result.denominator != 1) > 30, seen


def test_winners_are_read_as_the_grammar_has_them():
    seen = compared(parse_winner, slow_winner, requests(2, 3_000, winner_line))
    failures = set(Failure) - {Failure.OUT_OF_RANGE, Failure.FRACTION}
    assert set(seen) == failures | {"first", "second", "tie"} and min(seen.values()) >= 30, seen
