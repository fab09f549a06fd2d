"""Actor pairs: which two responses to a prompt make a preference pair, by length control (section 2.2 of the paper)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from judging.scores import Draw, Reason, Row, to_number
from model.chat import ChatFormat
from stages.records import ActorPair, preference
from stages.settings import Iteration


@dataclass(frozen=True)
class Scored:
    """A response with a score; `length` counts the characters of its text."""

    id: str
    length: int
    score: Fraction


def choose_responses(
    responses: Sequence[Scored], rule: Iteration, draw: Draw, prompt_id: str
) -> tuple[Scored, Scored] | Reason:
    """(chosen, rejected) of one prompt's distinct scored responses, or the reason for no pair.

    With length control, chosen is the shortest response of the top tier, scores in [(1 - rho) S_max + rho S_min,
    S_max], and rejected the longest of the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. Ties in length go to the
    higher (lower) score, then to the earlier response. Without length control, chosen has the highest score and
    rejected the lowest; ties are drawn.
    """
    if len(responses) < 2:
        return Reason.TOO_FEW_SCORED
    scores = [response.score for response in responses]
    high, low = max(scores), min(scores)
    if high == low:
        return Reason.EQUAL_SCORES
    if rule.length_control:
        margin = Fraction(str(rule.rho)) * (high - low)  # the config's decimal, not its nearest double
        top = [response for response in responses if response.score >= high - margin]
        bottom = [response for response in responses if response.score <= low + margin]
        chosen = min(top, key=lambda response: (response.length, -response.score))
        rejected = min(bottom, key=lambda response: (-response.length, response.score))
    else:
        chosen = draw([response for response in responses if response.score == high], f"{prompt_id}/chosen")
        rejected = draw([response for response in responses if response.score == low], f"{prompt_id}/rejected")
    if chosen is rejected:
        return Reason.SAME_RESPONSE
    if chosen.score <= rejected.score:
        return Reason.NOT_BETTER
    if rule.max_response_characters is not None and chosen.length > rule.max_response_characters:
        return Reason.CHOSEN_TOO_LONG
    return chosen, rejected


def actor_pair(
    responses: Sequence[Row], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw, chat: ChatFormat
) -> ActorPair | Reason:
    """The actor pair of one prompt's distinct responses, or the reason for none; `scores` by response id."""
    if len(responses) < 2:
        return Reason.TOO_FEW_RESPONSES
    scored = [Scored(row["id"], len(row["text"]), scores[row["id"]]) for row in responses if row["id"] in scores]
    prompt_id = responses[0]["prompt_id"]
    choice = choose_responses(scored, rule, draw, prompt_id)
    if isinstance(choice, Reason):
        return choice
    by_id = {row["id"]: row for row in responses}
    chosen, rejected = (by_id[response.id] for response in choice)
    prompt = [{"role": "user", "content": responses[0]["prompt"]}]
    return {
        "id": f"actor/{prompt_id}",
        "kind": "actor",
        **preference(prompt_id, prompt, chat.prompt_ids(prompt), chosen, rejected),
        "chosen_score": to_number(choice[0].score),
        "rejected_score": to_number(choice[1].score),
    }
