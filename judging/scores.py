"""Scores of responses: mean and variance of their judgments' scores; judgments without one count as deleted.

A score is a `Fraction` in memory and a number in JSON.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from statistics import mean, pvariance
from typing import Any

from stages.command import UserError
from stages.records import group_by
from stages.rows import NUMBER, rows_by_id
from stages.seeds import request_seed

Row = Mapping[str, Any]  # a record, or the fields of it that are needed
Draw = Callable[[Sequence[Any], str], Any]
"""(options, name of the decision) -> one of the options: random, but always the same for the same name."""


class Reason(StrEnum):  # why a prompt has no actor pair (the first six) or no judge pair (the others)
    TOO_FEW_RESPONSES = "too_few_responses", "fewer than two distinct responses"
    TOO_FEW_SCORED = "too_few_scored", "fewer than two responses with a score"
    EQUAL_SCORES = "equal_scores", "all scores are equal"
    SAME_RESPONSE = "same_response", "one response is both the shortest good and the longest bad one"
    NOT_BETTER = "not_better", "the shortest good response does not score above the longest bad one"
    CHOSEN_TOO_LONG = "chosen_too_long", "the text to be chosen is longer than the iteration allows"
    TOO_FEW_JUDGMENTS = "too_few_judgments", "no response has two distinct judgments with a score"
    NO_NEAR_SCORES = "no_near_scores", "no two judgments of the meta-judged response have scores near enough"
    NO_DECISIVE_COMPARISON = "no_decisive_comparison", "no comparison names a winner that has weight"
    EQUAL_ELO = "equal_elo", "the comparisons balance"
    POSITION_COLLAPSE = "position_collapse", "one position never won in the iteration, so no comparison is evidence"
    SAME_SCORE = "same_score", "both judgments give the same score (guards.distinct_scores)"
    SCORE_SHARE = "score_share", "too many chosen judgments give this score (guards.max_score_share)"
    JUDGE_PAIR_SHARE = "judge_pair_share", "too many of all pairs are judge pairs (guards.max_judge_pair_share)"

    explanation: str  # a sentence

    def __new__(cls, value: str, explanation: str = "") -> "Reason":
        reason = str.__new__(cls, value)
        reason._value_, reason.explanation = value, explanation
        return reason


ACTOR_REASONS, JUDGE_REASONS, GUARD_REASONS = tuple(Reason)[:6], tuple(Reason)[5:11], tuple(Reason)[11:]
EXPLANATIONS = {reason: reason.explanation for reason in Reason}


def exact(number: float | Fraction) -> Fraction:
    """A number of a file or a config as the decimal that is written there: 4.1 is 41/10, not the nearest double."""
    return Fraction(str(number))


def to_number(score: Fraction) -> int | float:
    """A score as a JSON number: an integer if whole, else a decimal."""
    return int(score) if score.denominator == 1 else float(score)


def shortest(number: float | Fraction) -> str:
    """A number as text, without a point if whole; no two doubles have the same."""
    return str(to_number(exact(number)))


def seeded_draw(seed: int, iteration: int) -> Draw:
    """Tie-breaking for one iteration of a run: a draw depends on the decision's name, not on earlier draws."""
    return lambda options, what: options[request_seed(seed, iteration, "tie", what) % len(options)]


def distinct_responses(responses: Iterable[Row]) -> list[Any]:
    """The responses that are judged: generated ones, and only the first of a prompt's equal texts."""
    first: dict[tuple[str, str], Row] = {}
    for row in responses:
        if row["finish_reason"] != "too_long":
            first.setdefault((row["prompt_id"], row["text"]), row)
    return list(first.values())


def distinct_judgments(judgments: Iterable[Row]) -> list[Any]:
    """One response's judgments with a score, and only the first of equal texts."""
    groups = group_by((row for row in judgments if row["score"] is not None), "text")
    return [rows[0] for rows in groups.values()]


def exact_scores(judgments: Iterable[Row]) -> list[Fraction]:
    """The judgments' scores, without missing ones."""
    return [exact(row["score"]) for row in judgments if row["score"] is not None]


def mean_score(judgments: Iterable[Row], minimum_valid: int) -> Fraction | None:
    """A response's score S, the mean over its parsed judgments; None when there are fewer than `minimum_valid`."""
    scores = exact_scores(judgments)
    return mean(scores) if len(scores) >= max(minimum_valid, 1) else None


def response_scores(judgments: Mapping[str, Sequence[Row]], minimum_valid: int) -> dict[str, Fraction]:
    """The score of each response that has one; both mappings are by response id."""
    scores = ((name, mean_score(rows, minimum_valid)) for name, rows in judgments.items())
    return {name: score for name, score in scores if score is not None}


def read_scores(path: Path, responses: Iterable[Row]) -> dict[str, Fraction]:
    """Scores of responses from a JSON-lines file of {id, score, text}; any number, higher is better. "text", if given,
    must be the response's, lest the scores be those of an earlier run. A response without a row has no score.
    Raises `UserError`, naming file and line."""
    texts = {row["id"]: row["text"] for row in responses}
    scores: dict[str, Fraction] = {}
    for name, (where, row) in rows_by_id(path, score=NUMBER).items():
        if name not in texts:
            raise UserError(f"{where}: no response has the id {name!r}; score the responses of this run")
        if row.get("text", texts[name]) != texts[name]:
            raise UserError(f"{where}: {name!r} has another text in this run; score its responses again")
        scores[name] = exact(row["score"])
    return scores


def spreads(rows: Iterable[Row]) -> dict[str, Fraction]:
    """Variances by response id from expected scores: the mean variance within rows, plus that between their means."""
    scored = group_by((row for row in rows if row["score"] is not None), "response_id").items()
    return {name: mean(exact(row["variance"]) for row in own) + pvariance(exact_scores(own)) for name, own in scored}


def most_uncertain(responses: Iterable[Row], spreads: Mapping[str, Fraction], draw: Draw) -> list[Any]:
    """Each prompt's response with the highest of the `spreads`, variances of scores by response id; ties are drawn."""
    chosen = []
    for prompt_id, rows in group_by((row for row in responses if row["id"] in spreads), "prompt_id").items():
        highest = max(spreads[row["id"]] for row in rows)
        chosen.append(draw([row for row in rows if spreads[row["id"]] == highest], f"{prompt_id}/variance"))
    return chosen
