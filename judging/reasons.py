"""Why a prompt gives no actor pair, or no judge pair: each reason has a name, and each is counted."""

from enum import StrEnum


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
