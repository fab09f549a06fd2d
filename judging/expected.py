"""The expected score: the mean of the distribution that a judge has over the score where its judgment states it.

With p(d) the model's probability of the digit d there, over the digits 0 to 5:

    S = sum_d d p(d) / sum_d p(d)        variance = sum_d (d - S)^2 p(d) / sum_d p(d)

With the verdict first S is the limit of the paper's mean for N to infinity at temperature 1, and takes one prefill:
the judge's prompt and "Score: ". With the verdict last the same is read off each sampled judgment, behind its own
reasons, and a response's score is the mean over them. A row here stands for a judgment: what reads the scores of
judgments reads these.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from judging.rubric import judge_prompt
from judging.scores import Record, exact_scores, group_by, variance
from judging.verdict import MAXIMUM
from model.chat import ChatFormat
from sampling.generate import Item
from sampling.request import Completion, Sampling
from stages.files import UserError
from stages.settings import Judge

LABEL = "Score: "
LEAST_MASS = 0.5
"""Probability that the six digits have together, at least; below, the judge was about to say something else."""
LOW_MASS = "low_mass"
"""The failure of a row whose digits have less."""
DECIMALS = 4
"""Of a score; two that agree in these are equal."""


@dataclass(frozen=True)
class ScoreTokens:
    """How a model spells a score line."""

    label: tuple[int, ...]
    """Token ids of "Score: "."""
    digits: tuple[int, ...]
    """The token of each digit, 0 to 5, behind the label."""


def score_tokens(chat: ChatFormat) -> ScoreTokens:
    """Raises `UserError` for a tokenizer that has no token of its own for the digit behind the label."""
    lines = [chat.completion_ids(f"{LABEL}{digit}")[:-1] for digit in range(MAXIMUM + 1)]
    label, digits = lines[0][:-1], [line[-1] for line in lines]
    if any(line[:-1] != label for line in lines) or len(set(digits)) < len(digits):
        raise UserError(
            f'the tokenizer has no single token for each digit behind "{LABEL}"; set judge.score = "sampled"'
        )
    return ScoreTokens(tuple(label), tuple(digits))


def expected_items(responses: Iterable[Record], chat: ChatFormat, judge: Judge) -> Iterator[Item]:
    """With the verdict first: a request for each response {id, prompt_id, prompt, text}."""
    tokens = score_tokens(chat)
    for row in responses:
        known = {"id": f"{row['id']}/e", "response_id": row["id"], "prompt_id": row["prompt_id"], "index": 0}
        messages = partial(judge_prompt, row["prompt"], row["text"], judge.prompt_style, judge.verdict_position)
        yield _item(messages, row["prompt_id"], known, tokens.label, tokens)


def reasoned_items(
    responses: Iterable[Record], judgments: Mapping[str, Sequence[Record]], chat: ChatFormat, judge: Judge
) -> Iterator[Item]:
    """With the verdict last: a request for each judgment with a score, up to where it states it.

    `judgments` by response id. A judgment without a score has no row, as a deleted one.
    """
    tokens = score_tokens(chat)
    for row in responses:
        messages = partial(judge_prompt, row["prompt"], row["text"], judge.prompt_style, judge.verdict_position)
        for judgment in judgments.get(row["id"], ()):
            if judgment["score"] is None:
                continue
            known = {key: judgment[key] for key in ("response_id", "prompt_id", "index")}
            begun = judgment["ids"][: _score_place(judgment, tokens, chat)]
            yield _item(messages, row["prompt_id"], {"id": f"{judgment['id']}/e", **known}, tuple(begun), tokens)


def _item(messages: Any, group: str, known: Record, begun: tuple[int, ...], tokens: ScoreTokens) -> Item:
    """One token is drawn, and never looked at."""
    return Item(known["id"], messages, Sampling(0.0, 1.0, 1), 0, group, known, begun, tokens.digits)


def _score_place(judgment: Record, tokens: ScoreTokens, chat: ChatFormat) -> int:
    """Where in a judgment's ids the score stands: the first digit behind the last "Score" label.

    Raises `UserError` where the tokenizer writes it in another way than on a line of its own.
    """
    ids, text = judgment["ids"], judgment["text"]
    label = text.lower().rindex("score")
    for place, token in enumerate(ids):
        if token in tokens.digits and len(chat.text(ids[:place])) > label:
            return place
    raise UserError(f'{judgment["id"]}: its score is not a token of its own; set judge.score = "sampled"')


def expected_record(item: Item, completion: Completion) -> Record:
    """The row of a request: "score", "variance" and what they come from, or the "failure" that explains their absence.

    "probabilities" are those of the digits 0 to 5, which add up to the share of the distribution that they have.
    """
    found = [round(p, 6) for p in completion.probabilities]
    row = item.record | {"finish_reason": completion.finish_reason, "probabilities": found}
    if not found:
        return row | {"score": None, "variance": None, "failure": completion.finish_reason}
    if not math.fsum(found) >= LEAST_MASS:
        return row | {"score": None, "variance": None, "failure": LOW_MASS}
    mean, spread = moments(found)
    return row | {"score": round(mean, DECIMALS), "variance": round(spread, 6), "failure": None}


def moments(probabilities: Sequence[float]) -> tuple[float, float]:
    """Mean and variance of the digits 0, 1, ... by their probabilities, which need not add up to 1."""
    mass = math.fsum(probabilities)
    mean = math.fsum(d * p for d, p in enumerate(probabilities)) / mass
    return mean, math.fsum((d - mean) ** 2 * p for d, p in enumerate(probabilities)) / mass


def spreads(rows: Iterable[Record]) -> dict[str, Fraction]:
    """The variance of each response's score, by response id: within its rows on average, and between them.

    `rows` are those of all responses.
    """
    found = {}
    for name, own in group_by((row for row in rows if row["score"] is not None), "response_id").items():
        within = [Fraction(str(row["variance"])) for row in own]
        found[name] = sum(within, Fraction(0)) / len(within) + variance(exact_scores(own))
    return found
