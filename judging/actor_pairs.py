"""Actor pairs: which two responses to a prompt make a preference pair, by length control (section 2.2 of the paper)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import chain, product
from typing import Any

from judging.scores import Draw, Reason, Row, distinct_responses, exact, to_number
from model.chat import ChatFormat
from stages.records import Record, preference
from stages.rows import messages_of
from stages.settings import Iteration


def characters(response: Row) -> int:
    return len(response["text"])


def choose_responses(
    responses: Sequence[Row],
    scores: Mapping[str, Fraction],
    rule: Iteration,
    draw: Draw,
    length: Callable[[Row], int] = characters,
    surplus: int = 0,
) -> tuple[Any, Any] | Reason:
    """(chosen, rejected) of one prompt's distinct responses, or the reason for no pair; `scores` are by response id.

    With length control, chosen comes from the top tier, scores in [(1 - rho) S_max + rho S_min, S_max], and rejected
    from the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. "shortest" (the paper): the shortest of the top and the
    longest of the bottom; ties in length go to the better (worse) score, then to the earlier response.
    "balanced": the two whose difference in length, added to the `surplus`, by which the chosen responses of earlier
    prompts are longer than the rejected ones, is nearest to 0; ties go to the greater difference in score, then to the
    earlier responses. "off": chosen has the highest score and rejected the lowest; ties are drawn.
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
        best, chosen = min(top, key=lambda one: (length(one[1]), -one[0]))
        worst, rejected = min(bottom, key=lambda one: (-length(one[1]), one[0]))
    elif rule.length_control == "balanced":
        (best, chosen), (worst, rejected) = min(
            ((a, b) for a, b in product(top, bottom) if a[0] > b[0]),
            key=lambda pair: (abs(surplus + length(pair[0][1]) - length(pair[1][1])), pair[1][0] - pair[0][0]),
        )
    else:
        prompt_id = responses[0]["prompt_id"]
        (best, chosen), (worst, rejected) = draw(top, f"{prompt_id}/chosen"), draw(bottom, f"{prompt_id}/rejected")
    if chosen is rejected:
        return Reason.SAME_RESPONSE
    if best <= worst:
        return Reason.NOT_BETTER
    limit = rule.max_response_characters
    return Reason.CHOSEN_TOO_LONG if limit is not None and characters(chosen) > limit else (chosen, rejected)


def whole_length(responses: Iterable[Row]) -> Callable[[Row], int]:
    """The length of a response in characters; that of one cut off at the token limit as it would be without the limit.

    With its part alone, "balanced" would let a model end ever earlier: of a long and a very long response the limit
    leaves equal parts. What is cut off is taken to be as long as a whole response on average, which is so if responses
    end at a constant rate; the average, estimated with cut-off responses, is all characters over the responses that
    ended (the exponential distribution, with censored data).
    """
    rows = list(responses)
    ended = sum(row["finish_reason"] == "stop" for row in rows)
    average = sum(map(characters, rows)) // max(ended, 1)
    return lambda response: characters(response) + average * (response["finish_reason"] == "length")


def actor_pairs(
    prompts: Mapping[str, Sequence[Row]], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw, chat: ChatFormat
) -> dict[str, Record | Reason]:
    """By prompt, in order, the `ActorPair` of its responses, or the reason for none."""
    made, surplus = dict[str, Record | Reason](), 0
    length = whole_length(chain(*prompts.values())) if rule.length_control == "balanced" else characters
    for name, responses in prompts.items():
        choice = choose_responses(distinct_responses(responses), scores, rule, draw, length, surplus)
        if isinstance(choice, Reason):
            made[name] = choice
            continue
        surplus += length(choice[0]) - length(choice[1])
        prompt = messages_of(responses[0]["prompt"])
        pair = {"id": f"actor/{name}", "kind": "actor"} | preference(name, prompt, chat.prompt_ids(prompt), *choice)
        best, worst = (to_number(scores[row["id"]]) for row in choice)
        made[name] = pair | {"chosen_score": best, "rejected_score": worst}
    return made
