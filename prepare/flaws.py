"""The flaws of constructed responses: each flaw's score, and the evidence that a justification names.

A score is additive, as in the rubric: 0 for a response to something else, 1 for the right task on another subject or
another task on the right subject, and so on up to 5 for a complete answer.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Flaw:
    """A kind of response. In the wordings {task} and {topic} stand for what was asked, {given_task} and {other} for
    what was given instead."""

    score: int
    given: tuple[str, ...]
    """What a justification says was given."""
    missing: tuple[str, ...] = ("",)
    """What a justification says is missing; "" for nothing."""


FLAWS: dict[str, Flaw] = {
    "none": Flaw(
        5,
        (
            "{task} that stays on it to the end",
            "a complete answer on {topic}",
            "all of it, and nothing needless",
            "{task}, to the point and finished",
        ),
    ),
    "extraneous": Flaw(
        4,
        (
            "the answer, then a needless remark on {other}",
            "a good answer, but it ends with {other}",
            "{task}, and a last sentence on {other}",
        ),
        ("focus at the end", "only a clean ending"),
    ),
    "cut_off": Flaw(
        3,
        ("a good start on {topic}", "the first part of {task}", "a useful text that breaks off"),
        ("the end, since it stops in mid-sentence", "the rest of the last sentence"),
    ),
    "drift": Flaw(
        2,
        (
            "a start on {topic}, then {other}",
            "a sentence or two on it, the rest on {other}",
            "a text that leaves {topic} for {other}",
        ),
        ("most of the answer", "the second half of {task}"),
    ),
    "repetition": Flaw(
        2,
        (
            "the same words on {topic} again and again",
            "a beginning that only repeats itself",
            "one thought, repeated without end",
        ),
        ("anything further", "the rest of {task}"),
    ),
    "near": Flaw(
        1,
        ("the same kind of text, but on {other}", "{task}, but about {other}", "{other} in place of {topic}"),
        ("anything on {topic}", "the right subject"),
    ),
    "wrong_task": Flaw(
        1,
        ("{given_task} on {topic}", "{given_task} in place of {task}", "the right subject, but {given_task}"),
        ("{task}", "what was to be done with {topic}"),
    ),
    "far": Flaw(
        0,
        ("{given_task} on {other}", "a text about {other}", "something on {other}, off topic"),
        ("anything on {topic}", "any part of {task}"),
    ),
    "gibberish": Flaw(
        0,
        ("words that make no sense", "word salad", "a jumble without a meaning"),
        ("any sense", "anything on {topic}"),
    ),
}

TASKS: dict[str, str] = {
    "explain": "an explanation",
    "how-to": "instructions",
    "advice": "advice",
    "message": "a message",
    "creative": "a creative text",
    "rewrite": "a rewritten text",
    "summarise": "a summary",
    "brainstorm": "ideas",
    "extract": "details from a text",
    "roleplay": "a dialogue",
    "compare": "a comparison",
    "plan": "a plan",
    "maths": "a calculation",
    "facts": "facts",
    "coding": "code",
    "opinion": "an opinion",
    "language": "help with words",
    "product description": "a product description",
    "interview question": "an interview answer",
    "recipe": "a recipe",
    "definition": "a definition",
}
"""What each category of prompts asks for."""
