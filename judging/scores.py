"""Scores of a prompt's responses from their judgments: mean, variance, and the choice of the meta-judged response.

A score is a `Fraction` in memory and a JSON number in files (`to_number`). A judgment without a score counts as deleted
everywhere. A file of scores, such as an external reward model's, can replace the judgments (`read_scores`). A prompt
without a pair has a `Reason`.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from stages.files import UserError, read_numbered_jsonl
from stages.records import group_by
from stages.seeds import request_seed

Row = Mapping[str, Any]
"""A record, or the fields of it that are needed."""
Draw = Callable[[Sequence[Any], str], Any]
"""(options, name of the decision) -> one of the options: random, but always the same for the same name."""


class Reason(StrEnum):
    """Why a prompt has no actor pair, or no judge pair; `EXPLANATIONS` has a sentence for each."""

    TOO_FEW_RESPONSES = "too_few_responses"
    TOO_FEW_SCORED = "too_few_scored"
    EQUAL_SCORES = "equal_scores"
    SAME_RESPONSE = "same_response"
    NOT_BETTER = "not_better"
    CHOSEN_TOO_LONG = "chosen_too_long"
    TOO_FEW_JUDGMENTS = "too_few_judgments"
    NO_NEAR_SCORES = "no_near_scores"
    NO_DECISIVE_COMPARISON = "no_decisive_comparison"
    EQUAL_ELO = "equal_elo"
    POSITION_COLLAPSE = "position_collapse"


ACTOR_REASONS = tuple(Reason)[:6]
JUDGE_REASONS = tuple(Reason)[5:]
EXPLANATIONS = {
    Reason.TOO_FEW_RESPONSES: "fewer than two distinct responses",
    Reason.TOO_FEW_SCORED: "fewer than two responses with a score",
    Reason.EQUAL_SCORES: "all scores are equal",
    Reason.SAME_RESPONSE: "one response is both the shortest good and the longest bad one",
    Reason.NOT_BETTER: "the shortest good response does not score above the longest bad one",
    Reason.CHOSEN_TOO_LONG: "the text to be chosen is longer than the iteration allows",
    Reason.TOO_FEW_JUDGMENTS: "no response has two distinct judgments with a score",
    Reason.NO_NEAR_SCORES: "no two judgments of the meta-judged response have scores near enough to be compared",
    Reason.NO_DECISIVE_COMPARISON: "no comparison names a winner that has weight",
    Reason.EQUAL_ELO: "the comparisons balance",
    Reason.POSITION_COLLAPSE: "one position never won in the whole iteration, so no comparison is evidence",
}
"""One sentence for each reason; `judging.trace --why-not` adds the figures."""


def seeded_draw(seed: int, iteration: int) -> Draw:
    """Tie-breaking for one iteration of a run: a draw depends on the decision's name, not on earlier draws."""
    return lambda options, what: options[request_seed(seed, iteration, "tie", what) % len(options)]


def distinct_responses(responses: Iterable[Row]) -> list[Any]:
    """The responses that are judged: generated ones, and only the first of a prompt's equal texts."""
    first: dict[tuple[str, str], Any] = {}
    for row in responses:
        if row["finish_reason"] in ("stop", "length"):
            first.setdefault((row["prompt_id"], row["text"]), row)
    return list(first.values())


def distinct_judgments(judgments: Iterable[Row]) -> list[Any]:
    """One response's judgments with a score, and only the first of equal texts."""
    first: dict[str, Any] = {}
    for row in judgments:
        if row["score"] is not None:
            first.setdefault(row["text"], row)
    return list(first.values())


def to_number(score: Fraction) -> int | float:
    """A score as a JSON number: an integer if whole, else a decimal."""
    return int(score) if score.denominator == 1 else float(score)


def exact_scores(judgments: Iterable[Row]) -> list[Fraction]:
    """The judgments' scores, without missing ones. Decimals are exact: 4.1 is 41/10."""
    return [Fraction(str(row["score"])) for row in judgments if row["score"] is not None]


def mean_score(judgments: Iterable[Row], minimum_valid: int) -> Fraction | None:
    """A response's score S, the mean over its parsed judgments; None when there are fewer than `minimum_valid`."""
    scores = exact_scores(judgments)
    return sum(scores, Fraction(0)) / len(scores) if len(scores) >= max(minimum_valid, 1) else None


def response_scores(judgments: Mapping[str, Sequence[Row]], minimum_valid: int) -> dict[str, Fraction]:
    """The score of each response that has one; both mappings are by response id."""
    scores = {name: mean_score(rows, minimum_valid) for name, rows in judgments.items()}
    return {name: score for name, score in scores.items() if score is not None}


def read_scores(path: Path, responses: Iterable[Row]) -> dict[str, Fraction]:
    """Scores of responses from a JSON-lines file of {id, score, text}; any finite number, higher is better.

    "text" is optional; if given, it must be the response's text, lest the scores be those of an earlier run. A response
    without a row has no score. Raises `UserError`, naming file and line, for an unknown or repeated id, a score that is
    not a finite number, and a different text.
    """
    texts = {row["id"]: row["text"] for row in responses}
    scores: dict[str, Fraction] = {}
    for number, row in read_numbered_jsonl(path, ("id", "score")):
        name, score, where = row["id"], row["score"], f"{path}, line {number}"
        if not isinstance(name, str):
            raise UserError(f"{where}: id is {name!r}; it must be a response's id")
        if name not in texts:
            raise UserError(f"{where}: no response has the id {name!r}; score the responses of this run")
        if name in scores:
            raise UserError(f"{where}: {name!r} comes twice; keep one row a response")
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < sys.float_info.max:
            raise UserError(f"{where}: score is {score!r}; it must be a finite number")
        if row.get("text", texts[name]) != texts[name]:
            raise UserError(f"{where}: {name!r} has another text in this run; score its responses again")
        scores[name] = Fraction(str(score))
    return scores


def variance(scores: Sequence[Fraction]) -> Fraction:
    """Population variance."""
    mean = sum(scores, Fraction(0)) / len(scores)
    return sum(((score - mean) ** 2 for score in scores), Fraction(0)) / len(scores)


def most_uncertain(responses: Iterable[Row], spreads: Mapping[str, Fraction], draw: Draw) -> list[Any]:
    """Each prompt's response whose score has the highest variance, ties drawn; none for a prompt without scores."""
    chosen = []
    for prompt_id, rows in group_by((row for row in responses if row["id"] in spreads), "prompt_id").items():
        highest = max(spreads[row["id"]] for row in rows)
        chosen.append(draw([row for row in rows if spreads[row["id"]] == highest], f"{prompt_id}/variance"))
    return chosen


def meta_judged(
    responses: Iterable[Row],
    judgments: Mapping[str, Sequence[Row]],
    draw: Draw,
    spreads: Mapping[str, Fraction] | None = None,
) -> tuple[Any, list[Any]] | None:
    """One prompt's response whose judgments are compared, and its distinct judgments; None if no response qualifies.

    The response has at least two distinct judgments and the highest variance of their scores; with `spreads`, by
    response id, the highest spread. Ties are drawn. `responses` are the prompt's distinct responses, `judgments` all
    judgments by response id.
    """
    candidates = []
    for response in responses:
        distinct = distinct_judgments(judgments.get(response["id"], ()))
        if len(distinct) >= 2:
            spread = variance(exact_scores(distinct)) if spreads is None else spreads.get(response["id"], Fraction(0))
            candidates.append((spread, response, distinct))
    if not candidates:
        return None
    highest = max(spread for spread, _, _ in candidates)
    tied = [(response, distinct) for spread, response, distinct in candidates if spread == highest]
    return draw(tied, f"{tied[0][0]['prompt_id']}/variance")
