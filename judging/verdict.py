"""Reading a verdict: the score of a judgment, the winner of a comparison, or why there is none.

A verdict stands in the last non-empty line (with verdict_position = "first", the first) of a completion that ended with
a stop token. In that line the markdown emphasis characters * _ ` become spaces, full-width colons become colons, and
runs of white space become one space. The whole line must then match, in any ASCII case:

    score line   = [mark] ["final" | "total" | "overall"] "score" ":" value [points] [scale | "(" scale ")"] ["."]
    value        = number | "<" number ">" | "[" number "]"
    number       = ["-"] digits ["." digits]
    digits       = one to nine ASCII digits
    points       = "point" | "points"
    scale        = ("/" | "out of" | "of") "5" [points]

    winner line  = [mark] ["final"] "winner" ":" (winner | "<" winner ">" | "[" winner "]") ["."]
    winner       = [noun] ("A" | "B") | "tie"
    noun         = "judgment" | "judgement"; where two responses are compared, "response"

    mark         = one to six "#" | "-" | "•"                   (a heading, a list item)

White space is optional beside signs and required between words. A verdict that can't be read is a `Failure`.
"""

import re
from enum import StrEnum
from fractions import Fraction
from typing import Literal, NamedTuple

from stages.settings import VerdictPosition

Winner = Literal["first", "second", "tie"]
Compared = Literal["judgments", "responses"]

MAXIMUM = 5  # scores lie in [0, 5]


class Failure(StrEnum):  # why a completion holds no verdict
    TOO_LONG = "too_long"  # the prompt left no room in the context: nothing was generated
    TRUNCATED = "truncated"  # no stop token: the text is not a finished judgment, even if its first line is a verdict
    EMPTY = "empty"  # only white space
    MISSING = "missing"  # the line is not a verdict line, or names no value
    MALFORMED = "malformed"  # a verdict line with one value and text outside the grammar
    AMBIGUOUS = "ambiguous"  # a verdict line with several values, equal ones included
    OUT_OF_RANGE = "out_of_range"  # a number below 0 or above 5: never clamped
    FRACTION = "fraction"  # a score such as 4.5 where only whole ones count (4.0 is whole)


_FLAGS = re.IGNORECASE | re.ASCII
_NUMBER = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
_SCALE = r"(?:/|(?:out )?of) ?5(?: ?points?)?"
_MARK = r"(?:(?:#{1,6}|-|•) ?)?"


class _Line(NamedTuple):
    label: re.Pattern[str]
    value: re.Pattern[str]  # all that follows the label; its group is the value
    any_value: re.Pattern[str]  # its groups are the values on a line that does not match the grammar


_VALUE = rf"(?:{_NUMBER}|< ?{_NUMBER} ?>|\[ ?{_NUMBER} ?\])(?: ?points?(?![a-z]))?"
_SCORE = _Line(
    re.compile(rf"{_MARK}(?:(?:final|total|overall) )?score ?: ?", _FLAGS),
    re.compile(rf"{_VALUE}(?: ?(?:{_SCALE}|\( ?{_SCALE} ?\)))? ?\.?", _FLAGS),
    re.compile(rf"{_SCALE}(?![0-9.])|([0-9]+(?:\.[0-9]+)?)", _FLAGS),
)


def _winner(noun: str) -> _Line:
    winner = rf"(?:(?:{noun} )?([AB])|(tie))"
    return _Line(
        re.compile(rf"{_MARK}(?:final )?winner ?: ?", _FLAGS),
        re.compile(rf"(?:{winner}|< ?{winner} ?>|\[ ?{winner} ?\]) ?\.?", _FLAGS),
        re.compile(rf"\b((?i:{noun} [AB]|B|tie)|A)\b", re.ASCII),  # a lone "a" is a word
    )


_WINNER: dict[Compared, _Line] = {"judgments": _winner("judge?ment"), "responses": _winner("response")}
_PLACES: dict[str, Winner] = {"a": "first", "b": "second", "tie": "tie"}


def parse_score(
    text: str, finish_reason: str, verdict_position: VerdictPosition = "last", fractions: bool = False
) -> Fraction | Failure:
    """The exact score in [0, 5] that a judgment's generated text states, or the reason for none."""
    if isinstance(value := _read(_SCORE, text, finish_reason, verdict_position), Failure):
        return value
    score = Fraction(value)
    if not 0 <= score <= MAXIMUM:
        return Failure.OUT_OF_RANGE
    return score if fractions or score.denominator == 1 else Failure.FRACTION


def parse_winner(
    text: str, finish_reason: str, verdict_position: VerdictPosition = "last", compared: Compared = "judgments"
) -> Winner | Failure:
    """The winner that a comparison's generated text names, by place: A was shown first, B second."""
    value = _read(_WINNER[compared], text, finish_reason, verdict_position)
    return value if isinstance(value, Failure) else _PLACES[value.lower()]


def _read(patterns: _Line, text: str, finish_reason: str, verdict_position: VerdictPosition) -> str | Failure:
    if finish_reason != "stop":
        return Failure.TOO_LONG if finish_reason == "too_long" else Failure.TRUNCATED
    if not (lines := text.strip().splitlines()):
        return Failure.EMPTY
    line = re.sub(r"[*_`]", " ", lines[0 if verdict_position == "first" else -1]).replace("\N{FULLWIDTH COLON}", ":")
    line = " ".join(line.split())  # single spaces only, so that no pattern backtracks far
    if not (label := patterns.label.match(line)):
        return Failure.MISSING
    rest = line[label.end() :]
    if match := patterns.value.fullmatch(rest):
        return next(filter(None, match.groups()))
    count = sum(map(bool, patterns.any_value.findall(rest)))
    return (Failure.MISSING, Failure.MALFORMED, Failure.AMBIGUOUS)[min(count, 2)]
