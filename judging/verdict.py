"""Reading a verdict: the score of a judgment, the winner of a comparison, or why there is none.

A verdict is looked for in one place only: the last non-empty line (with verdict = "first", the first non-empty
line) of the generated text of a completion that ended with a stop token. Nothing else in the text, and nothing in
the prompt, is a verdict. That line, with the markdown emphasis characters * _ ` and full-width colons replaced (by a
space, by a colon) and runs of white space made one space, has to be, as a whole and in any ASCII case:

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

with white space optional beside signs and needed between words. A verdict that fails has a type (`Failure`) and is
never a number: it must not enter a mean, a minimum or a maximum. No text raises.
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
    """No stop token: what stands there, even on the first line, is not a finished judgment."""
    EMPTY = "empty"
    """White space alone."""
    MISSING = "missing"
    """The line is no verdict line, or one that names no value."""
    MALFORMED = "malformed"
    """A verdict line with one value and something that the grammar does not know."""
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

# What counts as a value on a line that does not fit: a number apart from the scale; a candidate (a lone "a" is a word).
_ANY_SCALE = re.compile(rf"{_SCALE}(?![0-9.])", _FLAGS)
_ANY_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _winners(noun: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A winner and nothing else; and whatever names one. `noun` is a pattern of what is compared."""
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
    """The score in [0, 5] that a judgment's generated text states, exactly, or the reason why there is none."""
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
    """Which of two a comparison's generated text prefers, by place: A was shown first, B second."""
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
    """What follows the label on the verdict line."""
    if finish_reason != "stop":
        return Failure.TOO_LONG if finish_reason == "too_long" else Failure.TRUNCATED
    lines = text.strip().splitlines()
    if not lines:
        return Failure.EMPTY
    line = re.sub(r"[*_`]", " ", lines[0 if verdict_position == "first" else -1]).replace("\N{FULLWIDTH COLON}", ":")
    line = " ".join(line.split())  # one space at most anywhere, so that no pattern can backtrack far
    match = label.match(line)
    return line[match.end() :] if match else Failure.MISSING


def _misfit(values: list[str]) -> Failure:
    if not values:
        return Failure.MISSING
    return Failure.MALFORMED if len(values) == 1 else Failure.AMBIGUOUS
