"""Actor pairs: which two responses to a prompt make a preference pair, by length control (section 2.2 of the paper)."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

from judging.scores import Draw, Reason, Row, distinct_responses, exact, to_number
from model.chat import ChatFormat
from stages.records import Record, preference
from stages.rows import messages_of
from stages.settings import Iteration


def choose_responses(
    responses: Sequence[Row], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw
) -> tuple[Any, Any] | Reason:
    """(chosen, rejected) of one prompt's distinct responses, or the reason for no pair; `scores` are by response id.

    With length control, chosen comes from the top tier, scores in [(1 - rho) S_max + rho S_min, S_max], and rejected
    from the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. "shortest" (the paper): the shortest of the top and the
    longest of the bottom; ties in length, in characters, go to the better (worse) score, then to the earlier response.
    "nearest": the two that are nearest in length; ties go to the greater difference in score, then to the earlier
    responses. "off": chosen has the highest score and rejected the lowest; ties are drawn.
    """
    scored = [(scores[row["id"]], row) for row in responses if row["id"] in scores]
    if len(scored) < 2:
        return Reason.TOO_FEW_RESPONSES if len(responses) < 2 else Reason.TOO_FEW_SCORED
    high, low = (end(score for score, _ in scored) for end in (max, min))
    if high == low:
        return Reason.EQUAL_SCORES
    reach = exact(rule.rho) * (high - low) if rule.length_control != "off" else 0
    top = [(score, row) for score, row in scored if score >= high - reach]
    bottom = [(score, row) for score, row in scored if score <= low + reach]
    if rule.length_control == "shortest":
        best, chosen = min(top, key=lambda one: (_length(one), -one[0]))
        worst, rejected = min(bottom, key=lambda one: (-_length(one), one[0]))
    elif rule.length_control == "nearest":
        pairs = [(a, b) for a, b in product(top, bottom) if a[0] > b[0]]
        nearest = min(pairs, key=lambda pair: (abs(_length(pair[0]) - _length(pair[1])), pair[1][0] - pair[0][0]))
        (best, chosen), (worst, rejected) = nearest
    else:
        prompt_id = responses[0]["prompt_id"]
        (best, chosen), (worst, rejected) = draw(top, f"{prompt_id}/chosen"), draw(bottom, f"{prompt_id}/rejected")
    if chosen is rejected:
        return Reason.SAME_RESPONSE
    if best <= worst:
        return Reason.NOT_BETTER
    length, limit = len(chosen["text"]), rule.max_response_characters
    return Reason.CHOSEN_TOO_LONG if limit is not None and length > limit else (chosen, rejected)


def _length(scored: tuple[Fraction, Row]) -> int:
    return len(scored[1]["text"])


def actor_pair(
    responses: Sequence[Row], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw, chat: ChatFormat
) -> Record | Reason:
    """The `ActorPair` of one prompt's responses, or the reason for none."""
    choice = choose_responses(distinct_responses(responses), scores, rule, draw)
    if isinstance(choice, Reason):
        return choice
    prompt_id, prompt = responses[0]["prompt_id"], messages_of(responses[0]["prompt"])
    pair = {"id": f"actor/{prompt_id}", "kind": "actor"}
    pair |= preference(prompt_id, prompt, chat.prompt_ids(prompt), *choice)
    best, worst = (to_number(scores[row["id"]]) for row in choice)
    return pair | {"chosen_score": best, "rejected_score": worst}
