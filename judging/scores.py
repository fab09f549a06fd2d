"""What the judgments say about a prompt's responses: which count, mean, variance, and which response is meta-judged.

A score is a `Fraction` in memory and a JSON number in files (`to_number`). A judgment without a score acts as a
deleted record everywhere. A file of scores, say an external reward model's, can take the judgments' place
(`read_scores`). Why a prompt gives no pair is a `Reason`, and each is counted.
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
"""A record, or as much of it as is needed."""
Draw = Callable[[Sequence[Any], str], Any]
"""(options, what is decided) -> one of the options, at random but always the same one."""


class Reason(StrEnum):
    """Why a prompt gives no actor pair, or no judge pair."""

    TOO_FEW_RESPONSES = "too_few_responses"
    """Actor: fewer than two distinct responses."""
    TOO_FEW_SCORED = "too_few_scored"
    """Actor: fewer than two of them have a score."""
    EQUAL_SCORES = "equal_scores"
    """Actor: all scores are equal."""
    SAME_RESPONSE = "same_response"
    """Actor: the tiers meet, and one response is both the chosen and the rejected one."""
    NOT_BETTER = "not_better"
    """Actor: the tiers meet, and the chosen response's score is not above the rejected one's."""
    CHOSEN_TOO_LONG = "chosen_too_long"
    """Actor, judge: the chosen text is longer than the iteration allows."""
    TOO_FEW_JUDGMENTS = "too_few_judgments"
    """Judge: no response has two distinct parsed judgments."""
    NO_NEAR_SCORES = "no_near_scores"
    """Judge: with `metajudge.max_score_gap`, no two judgments of the response are near enough to be compared."""
    NO_DECISIVE_COMPARISON = "no_decisive_comparison"
    """Judge: no comparison names a winner, or none that has weight."""
    EQUAL_ELO = "equal_elo"
    """Judge: the comparisons balance."""
    POSITION_COLLAPSE = "position_collapse"
    """Judge: in the whole iteration one position never won, so that no comparison says anything."""


ACTOR_REASONS = tuple(Reason)[:6]
JUDGE_REASONS = tuple(Reason)[5:]


def seeded_draw(seed: int, iteration: int) -> Draw:
    """Tie-breaking for one iteration of a run: a draw depends on what is decided, and on nothing drawn before."""
    return lambda options, what: options[request_seed(seed, iteration, "tie", what) % len(options)]


def distinct_responses(responses: Iterable[Row]) -> list[Any]:
    """The responses that are judged: those generated, and of a prompt's equal texts the first."""
    first: dict[tuple[str, str], Any] = {}
    for row in responses:
        if row["finish_reason"] in ("stop", "length"):
            first.setdefault((row["prompt_id"], row["text"]), row)
    return list(first.values())


def distinct_judgments(judgments: Iterable[Row]) -> list[Any]:
    """Of one response's judgments those with a score, and of equal texts the first."""
    first: dict[str, Any] = {}
    for row in judgments:
        if row["score"] is not None:
            first.setdefault(row["text"], row)
    return list(first.values())


def to_number(score: Fraction) -> int | float:
    """A score as files hold it: a whole number, or a decimal."""
    return int(score) if score.denominator == 1 else float(score)


def exact_scores(judgments: Iterable[Row]) -> list[Fraction]:
    """The scores there are. A decimal means what it says: 4.1 is 41/10."""
    return [Fraction(str(row["score"])) for row in judgments if row["score"] is not None]


def mean_score(judgments: Iterable[Row], minimum_valid: int) -> Fraction | None:
    """A response's score S, the mean over its parsed judgments; None when there are fewer than `minimum_valid`."""
    scores = exact_scores(judgments)
    return sum(scores, Fraction(0)) / len(scores) if len(scores) >= max(minimum_valid, 1) else None


def response_scores(judgments: Mapping[str, Sequence[Row]], minimum_valid: int) -> dict[str, Fraction]:
    """The score of each response that has one, by response id; `judgments` likewise."""
    scores = {name: mean_score(rows, minimum_valid) for name, rows in judgments.items()}
    return {name: score for name, score in scores.items() if score is not None}


def read_scores(path: Path, responses: Iterable[Row]) -> dict[str, Fraction]:
    """Scores of responses from a JSON-lines file of {id, score, text}; any finite number, higher is better.

    A row's "text" may be left out; where it is there it must be the response's, lest the scores be those of an earlier
    run. A response without a row has no score. Raises `UserError`, naming file and line, for an id that is unknown or
    comes twice, a score that is no finite number, and another text.
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
    """Of each prompt's distinct responses that with the highest variance of its score; equal ones are drawn from.

    A prompt none of whose responses has a score gives none.
    """
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
    """The response of one prompt whose judgments are compared, and its distinct judgments.

    It is the one with the highest variance of scores, each distinct judgment counting once, or with the highest of
    `spreads`, by response id, where they are known; equal ones are drawn from. Only responses with two distinct
    judgments or more have something to compare: None where there is none. `responses` are the prompt's distinct ones,
    `judgments` all judgments by response id.
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
