"""Reading a verdict: the score of a judgment, the winner of a comparison, or why there is none.

A verdict stands in one place only: the last non-empty line (with verdict_position = "first", the first non-empty line)
of the generated text of a completion that ended with a stop token. Nothing else in the text, and nothing in the prompt,
is a verdict. In that line the markdown emphasis characters * _ ` become spaces, full-width colons become colons, and
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

White space is optional beside signs and required between words. A verdict that can't be read is a `Failure`, never a
number: it must not enter a mean, a minimum or a maximum. No text raises an exception.
"""

import re
from enum import StrEnum
from fractions import Fraction
from typing import Literal

from stages.settings import VerdictPosition

Winner = Literal["first", "second", "tie"]
Compared = Literal["judgments", "responses"]

MAXIMUM = 5
"""Scores lie in [0, 5]."""


class Failure(StrEnum):
    """Why a completion holds no verdict."""

    TOO_LONG = "too_long"
    """The prompt left no room in the context: nothing was generated."""
    TRUNCATED = "truncated"
    """No stop token: the text is not a finished judgment, even if its first line is a verdict."""
    EMPTY = "empty"
    """Only white space."""
    MISSING = "missing"
    """The line is not a verdict line, or names no value."""
    MALFORMED = "malformed"
    """A verdict line with one value and text outside the grammar."""
    AMBIGUOUS = "ambiguous"
    """A verdict line with several values, equal ones included."""
    OUT_OF_RANGE = "out_of_range"
    """A number below 0 or above 5: never clamped."""
    FRACTION = "fraction"
    """A score such as 4.5 where only whole ones count (4.0 is whole)."""


_FLAGS = re.IGNORECASE | re.ASCII
_NUMBER = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
_SCALE = r"(?:/|(?:out )?of) ?5(?: ?points?)?"
_MARK = r"(?:(?:#{1,6}|-|•) ?)?"

_SCORE_LABEL = re.compile(rf"{_MARK}(?:(?:final|total|overall) )?score ?: ?", _FLAGS)
_SCORE_VALUE = re.compile(
    rf"(?:{_NUMBER}|< ?{_NUMBER} ?>|\[ ?{_NUMBER} ?\])(?: ?points?(?![a-z]))?(?: ?(?:{_SCALE}|\( ?{_SCALE} ?\)))? ?\.?",
    _FLAGS,
)
_WINNER_LABEL = re.compile(rf"{_MARK}(?:final )?winner ?: ?", _FLAGS)

# Values on a line that does not match the grammar: a number outside the scale; a candidate (a lone "a" is a word).
_ANY_SCALE = re.compile(rf"{_SCALE}(?![0-9.])", _FLAGS)
_ANY_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _winners(noun: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of a winner alone, and of any text that names a winner; `noun` is a pattern for the compared texts."""
    winner = rf"(?:(?:{noun} )?([AB])|(tie))"
    value = re.compile(rf"(?:{winner}|< ?{winner} ?>|\[ ?{winner} ?\]) ?\.?", _FLAGS)
    return value, re.compile(rf"\b(?:(?i:{noun} [AB]|B|tie)|A)\b", re.ASCII)


_WINNERS: dict[Compared, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "judgments": _winners("judge?ment"),
    "responses": _winners("response"),
}


def parse_score(
    text: str, finish_reason: str, verdict_position: VerdictPosition = "last", fractions: bool = False
) -> Fraction | Failure:
    """The exact score in [0, 5] that a judgment's generated text states, or the reason for none."""
    rest = _after_label(_SCORE_LABEL, text, finish_reason, verdict_position)
    if isinstance(rest, Failure):
        return rest
    match = _SCORE_VALUE.fullmatch(rest)
    if not match:
        return _misfit(_ANY_NUMBER.findall(_ANY_SCALE.sub(" ", rest)))
    score = Fraction(next(filter(None, match.groups())))
    if not 0 <= score <= MAXIMUM:
        return Failure.OUT_OF_RANGE
    return score if fractions or score.denominator == 1 else Failure.FRACTION


def parse_winner(
    text: str, finish_reason: str, verdict_position: VerdictPosition = "last", compared: Compared = "judgments"
) -> Winner | Failure:
    """The winner that a comparison's generated text names, by place: A was shown first, B second."""
    value, any_winner = _WINNERS[compared]
    rest = _after_label(_WINNER_LABEL, text, finish_reason, verdict_position)
    if isinstance(rest, Failure):
        return rest
    match = value.fullmatch(rest)
    if not match:
        return _misfit(any_winner.findall(rest))
    winners: dict[str, Winner] = {"a": "first", "b": "second", "tie": "tie"}
    return winners[next(filter(None, match.groups())).lower()]


def _after_label(
    label: re.Pattern[str], text: str, finish_reason: str, verdict_position: VerdictPosition
) -> str | Failure:
    """The text after the label on the verdict line."""
    if finish_reason != "stop":
        return Failure.TOO_LONG if finish_reason == "too_long" else Failure.TRUNCATED
    lines = text.strip().splitlines()
    if not lines:
        return Failure.EMPTY
    line = re.sub(r"[*_`]", " ", lines[0 if verdict_position == "first" else -1]).replace("\N{FULLWIDTH COLON}", ":")
    line = " ".join(line.split())  # single spaces only, so that no pattern backtracks far
    match = label.match(line)
    return line[match.end() :] if match else Failure.MISSING


def _misfit(values: list[str]) -> Failure:
    if not values:
        return Failure.MISSING
    return Failure.MALFORMED if len(values) == 1 else Failure.AMBIGUOUS
