"""Actor pairs: which two responses to a prompt make a preference pair, by length control (section 2.2 of the paper)."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from judging.scores import Draw, Reason, Row, distinct_responses, seeded_draw, to_number
from model.chat import ChatFormat
from stages.records import ActorPair, preference
from stages.settings import Iteration, Settings


def choose_responses(
    responses: Sequence[Row], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw
) -> tuple[Any, Any] | Reason:
    """(chosen, rejected) of one prompt's distinct responses, or the reason for no pair; `scores` are by response id.

    With length control, chosen is the shortest response of the top tier, scores in [(1 - rho) S_max + rho S_min,
    S_max], and rejected the longest of the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. Ties in length go to the
    higher (lower) score, then to the earlier response. Without length control, chosen has the highest score and
    rejected the lowest; ties are drawn. Lengths are in characters.
    """

    def score(row: Row) -> Fraction:
        return scores[row["id"]]

    if len(responses) < 2:
        return Reason.TOO_FEW_RESPONSES
    scored = [row for row in responses if row["id"] in scores]
    if len(scored) < 2:
        return Reason.TOO_FEW_SCORED
    high, low = max(map(score, scored)), min(map(score, scored))
    if high == low:
        return Reason.EQUAL_SCORES
    rho = Fraction(str(rule.rho)) if rule.length_control else 0  # the config's decimal, not its nearest double
    top = [row for row in scored if score(row) >= high - rho * (high - low)]
    bottom = [row for row in scored if score(row) <= low + rho * (high - low)]
    if rule.length_control:
        chosen = min(top, key=lambda row: (len(row["text"]), -score(row)))
        rejected = min(bottom, key=lambda row: (-len(row["text"]), score(row)))
    else:
        prompt_id = responses[0]["prompt_id"]
        chosen, rejected = draw(top, f"{prompt_id}/chosen"), draw(bottom, f"{prompt_id}/rejected")
    if chosen is rejected:
        return Reason.SAME_RESPONSE
    if score(chosen) <= score(rejected):
        return Reason.NOT_BETTER
    if rule.max_response_characters is not None and len(chosen["text"]) > rule.max_response_characters:
        return Reason.CHOSEN_TOO_LONG
    return chosen, rejected


def actor_pairs(
    prompts: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Fraction],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> dict[str, ActorPair | Reason]:
    """Each prompt's actor pair, or the reason for none; `prompts` has the responses by prompt id."""
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)

    def pair(prompt_id: str, responses: Sequence[Row]) -> ActorPair | Reason:
        choice = choose_responses(distinct_responses(responses), scores, rule, draw)
        if isinstance(choice, Reason):
            return choice
        prompt = [{"role": "user", "content": responses[0]["prompt"]}]
        return {
            "id": f"actor/{prompt_id}",
            "kind": "actor",
            **preference(prompt_id, prompt, chat.prompt_ids(prompt), *choice),
            "chosen_score": to_number(scores[choice[0]["id"]]),
            "rejected_score": to_number(scores[choice[1]["id"]]),
        }

    return {prompt_id: pair(prompt_id, responses) for prompt_id, responses in prompts.items()}
