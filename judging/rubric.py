"""The prompts of the judge and the meta-judge, and well-formed answers to them.

The style "full" has the elements of the paper's prompts; "compact" has as few tokens as possible, for a small model
after SFT. Text that many prompts share comes first. No key covers these texts: after a change, take a new run.
"""

import re
from collections.abc import Sequence
from typing import Literal

from stages.records import Message, Prompt
from stages.rows import conversation_text
from stages.settings import PromptStyle, Settings, VerdictPosition

Role = Literal["judge", "metajudge", "pairwise"]

_CRITERIA = """\
- First point: the response is relevant and gives some information on the question, even if it is incomplete or partly \
beside the point.
- Second point: it addresses a substantial portion of the question, even if it does not settle it or give a direct \
answer.
- Third point: it answers the basic elements of the question in a useful way, whether it reads like an assistant's \
answer or like a blog post or a search result.
- Fourth point: it is clearly written from an AI assistant's perspective and answers the question directly and \
comprehensively; it is well organised and helpful, with little left to improve in clarity, conciseness or focus.
- Fifth point: it is impeccably tailored to the question, reflects expert knowledge, is engaging and insightful, and \
holds no extraneous information."""

_RUBRIC: dict[tuple[Role, PromptStyle], str] = {
    ("judge", "full"): "Review the user's question and the corresponding response using the additive 5-point scoring "
    f"system described below. Points are accumulated as each criterion is satisfied:\n\n{_CRITERIA}\n\n",
    ("metajudge", "full"): "Below are a user's question, a response to it, and two judgments of that response, "
    "Judgment A and Judgment B. The judges were asked to use the additive 5-point scoring system described here. "
    f"Points are accumulated as each criterion is satisfied:\n\n{_CRITERIA}\n\nDetermine which judgment follows this "
    "scoring system more accurately. Look at whether each point was rightly given or withheld, at whether the "
    "justification is true to the response, and at whether the score agrees with the justification. The order and the "
    "length of the judgments must not influence you.\n\n",
    ("pairwise", "full"): "Below are a user's question and two responses to it, Response A and Response B. The "
    f"additive 5-point scoring system described here says what a good response is:\n\n{_CRITERIA}\n\nDetermine which "
    "response would earn the higher total under this scoring system. The order and the length of the responses must "
    "not influence you.\n\n",
    ("judge", "compact"): "Score the response to the question from 0 to 5, a point each if it is relevant, "
    "substantial, useful, well organised, expert. ",
    ("metajudge", "compact"): "Which of two judgments of the response is more accurate? ",
    ("pairwise", "compact"): "Which of two responses to the question is better: relevant, substantial, useful, "
    "expert? ",
}
_LINE = "on a line of its own, in exactly this format:\n"
_SCORE = f"the score, a whole number from 0 to 5, {_LINE}Score: <total points>"
_JUDGMENTS = '"Winner: Judgment A" or "Winner: Judgment B"'
_RESPONSES = '"Winner: Response A", "Winner: Response B" or "Winner: Tie"'
_TASK: dict[tuple[Role, PromptStyle, VerdictPosition], str] = {
    ("judge", "full", "last"): "After examining the question and the response, briefly justify your total score, in up "
    f"to 100 words. Then conclude with {_SCORE}",
    ("judge", "full", "first"): f"After examining the question and the response, begin with {_SCORE}\n"
    "Then justify your total score in one or two short sentences.",
    ("metajudge", "full", "last"): "Explain which judgment is more accurate according to the scoring system, and why. "
    f"Then conclude with the winner, {_LINE}Winner: [Judgment A | Judgment B]",
    ("metajudge", "full", "first"): f"Begin with the more accurate judgment, {_LINE}Winner: [Judgment A | Judgment B]\n"
    "Then explain why in one or two short sentences.",
    ("pairwise", "full", "last"): "Explain which response is better, and why, in up to 100 words. Then conclude with "
    f"the winner, {_LINE}Winner: [Response A | Response B | Tie]",
    ("pairwise", "full", "first"): f"Begin with the better response, {_LINE}Winner: [Response A | Response B | Tie]\n"
    "Then explain why in one or two short sentences.",
    ("judge", "compact", "last"): 'Give a short reason, then on the last line "Score: N".',
    ("judge", "compact", "first"): 'Write "Score: N" on the first line, then a short reason.',
    ("metajudge", "compact", "last"): f"Give a short reason, then on the last line {_JUDGMENTS}.",
    ("metajudge", "compact", "first"): f"Write {_JUDGMENTS} on the first line, then a short reason.",
    ("pairwise", "compact", "last"): f"Give a short reason, then on the last line {_RESPONSES}.",
    ("pairwise", "compact", "first"): f"Write {_RESPONSES} on the first line, then a reason.",
}


def judge_prompt(question: Prompt, response: str, style: PromptStyle, position: VerdictPosition) -> list[Message]:
    """The messages that ask for one response's score, on the judgment's first or last line."""
    return _prompt("judge", style, position, Question=conversation_text(question), Response=response)


def meta_prompt(
    question: Prompt, response: str, judgment_a: str, judgment_b: str, style: PromptStyle, position: VerdictPosition
) -> list[Message]:
    """The messages that ask which of two judgments of one response is better; `judgment_a` is shown first."""
    judgments = {"Judgment_A": judgment_a, "Judgment_B": judgment_b}
    return _prompt("metajudge", style, position, Question=conversation_text(question), Response=response, **judgments)


def pairwise_prompt(
    question: Prompt, response_a: str, response_b: str, style: PromptStyle, position: VerdictPosition
) -> list[Message]:
    """The messages that ask which of two responses is better, for measurements alone (`evaluation/pairwise.py`)."""
    responses = {"Response_A": response_a, "Response_B": response_b}
    return _prompt("pairwise", style, position, Question=conversation_text(question), **responses)


def _prompt(role: Role, style: PromptStyle, position: VerdictPosition, **texts: str) -> list[Message]:
    rubric, task = _RUBRIC[role, style], _TASK[role, style, position]
    if style == "compact":
        shown = "\n\n".join(f"{name.replace('_', ' ')}:\n{text}" for name, text in texts.items())
        return [{"role": "system", "content": rubric + task}, {"role": "user", "content": shown}]
    shown = "".join(f"<{name.lower()}>\n{text}\n</{name.lower()}>\n\n" for name, text in texts.items())
    return [{"role": "user", "content": rubric + shown + task}]


def judgment_text(score: int | float, reason: str, position: VerdictPosition) -> str:
    """A judgment in the form that the judge is asked for; without a reason, only the verdict line."""
    return _placed(f"Score: {score}", reason, position)


def meta_judgment_text(winner: Literal["first", "second"], reason: str, position: VerdictPosition) -> str:
    """A comparison in the form that the meta-judge is asked for."""
    return _placed(f"Winner: Judgment {'A' if winner == 'first' else 'B'}", reason, position)


def _placed(line: str, reason: str, position: VerdictPosition) -> str:
    return (f"{line}\n{reason.strip()}" if position == "first" else f"{reason.strip()}\n{line}").strip()


def justification(text: str, position: VerdictPosition) -> str:
    """A parsed judgment's text without the verdict line that `judging.verdict` reads; may be empty."""
    lines = text.strip().splitlines(keepends=True)
    return "".join(lines[1:] if position == "first" else lines[:-1]).strip()


def shown_judgment(text: str, settings: Settings) -> str:
    """A parsed judgment as the meta-judge reads it."""
    return justification(text, settings.judge.verdict_position) if settings.guards.hide_scores else text


def evidence_text(evidence: dict[str, str]) -> str:
    """A justification that states what was asked, what was given and what is missing (may be "")."""
    missing = f"; missing: {evidence['missing']}" if evidence["missing"] else ""
    return f"Asked: {evidence['asked']}; given: {evidence['given']}{missing}."


def comparison_text(deserved: int, scores: Sequence[int]) -> str:
    """A meta-judge's reason: the score that the response deserves, and the judgments' scores, unless hidden."""
    return f"Deserved: {deserved}" + (f"; A gives {scores[0]}, B gives {scores[1]}." if scores else ".")


_JUDGES_WORDS = re.compile(
    r"\b[Ss]core: ?\d|\bWinner: ?(Judgment|Response|Tie)|\bJudgment [AB]\b|\b([Ii]t deserves|Deserved:) \d"
    r"|\b[Aa]sked: .*; given: "
)


def leaks_role(text: str) -> bool:
    """Whether an answer of the actor has words of the judge or the meta-judge: "role leakage"."""
    return bool(_JUDGES_WORDS.search(text))
