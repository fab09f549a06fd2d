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
    responses: Sequence[Row], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw, surplus: int = 0
) -> tuple[Any, Any] | Reason:
    """(chosen, rejected) of one prompt's distinct responses, or the reason for no pair; `scores` are by response id.

    With length control, chosen comes from the top tier, scores in [(1 - rho) S_max + rho S_min, S_max], and rejected
    from the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. "shortest" (the paper): the shortest of the top and the
    longest of the bottom; ties in length, in characters, go to the better (worse) score, then to the earlier response.
    "balanced": the two whose difference in length, added to the `surplus`, the characters by which the chosen responses
    of earlier prompts are longer than the rejected ones, is nearest to 0; ties go to the greater difference in score,
    then to the earlier responses. "off": chosen has the highest score and rejected the lowest; ties are drawn.
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
    elif rule.length_control == "balanced":
        pairs = [(a, b) for a, b in product(top, bottom) if a[0] > b[0]]
        (best, chosen), (worst, rejected) = min(
            pairs, key=lambda pair: (abs(surplus + _length(pair[0]) - _length(pair[1])), pair[1][0] - pair[0][0])
        )
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


def actor_pairs(
    prompts: Mapping[str, Sequence[Row]], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw, chat: ChatFormat
) -> dict[str, Record | Reason]:
    """By prompt, in order, the `ActorPair` of its responses, or the reason for none."""
    made, surplus = dict[str, Record | Reason](), 0
    for name, responses in prompts.items():
        choice = choose_responses(distinct_responses(responses), scores, rule, draw, surplus)
        if isinstance(choice, Reason):
            made[name] = choice
            continue
        surplus += len(choice[0]["text"]) - len(choice[1]["text"])
        prompt = messages_of(responses[0]["prompt"])
        pair = {"id": f"actor/{name}", "kind": "actor"} | preference(name, prompt, chat.prompt_ids(prompt), *choice)
        best, worst = (to_number(scores[row["id"]]) for row in choice)
        made[name] = pair | {"chosen_score": best, "rejected_score": worst}
    return made
