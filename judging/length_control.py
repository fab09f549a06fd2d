"""Length control: which two responses to a prompt make an actor pair (section 2.2 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from judging.reasons import Reason
from judging.scores import Draw
from stages.settings import Iteration


@dataclass(frozen=True)
class Scored:
    """What length control knows of a response: `length` in characters of its text."""

    id: str
    length: int
    score: Fraction


def choose_responses(
    responses: Sequence[Scored], rule: Iteration, draw: Draw, prompt_id: str
) -> tuple[Scored, Scored] | Reason:
    """(chosen, rejected) of one prompt's distinct scored responses.

    With length control: the shortest response of the top tier, scores in [(1 - rho) S_max + rho S_min, S_max], against
    the longest of the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. Among equally long ones the better (the worse)
    score counts, then the earlier response. Without: best against worst, drawn among equals; rho has no say.
    """
    if len(responses) < 2:
        return Reason.TOO_FEW_SCORED
    scores = [response.score for response in responses]
    high, low = max(scores), min(scores)
    if high == low:
        return Reason.EQUAL_SCORES
    if rule.length_control:
        margin = Fraction(str(rule.rho)) * (high - low)  # the decimal that the config says, not its nearest double
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
