"""Scoring: `torchrun -m judging.expected` computes each distinct response's expected score, instead of sampling it.

The expected score is the mean of the judge's distribution over the score. With p(d) the model's probability of the
digit d, 0 to 5, in the place of the score:

    S = sum_d d p(d) / sum_d p(d)        variance = sum_d (d - S)^2 p(d) / sum_d p(d)

With the verdict first, S is the limit of the paper's mean for N to infinity at temperature 1, and costs one prefill of
the judge's prompt and "Score: ". With the verdict last, S is computed behind the reasons of each sampled judgment, and
a response's score is the mean over its judgments. Rows here have a judgment's score fields, so the same code
reads both.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from judging.rubric import judge_prompt
from judging.scores import Row, distinct_responses, exact_scores, variance
from judging.verdict import MAXIMUM
from model.chat import ChatFormat, Message
from sampling.request import Sampling
from sampling.worker import Item, Worker, generation_settings
from stages.files import UserError, read_shards
from stages.records import group_by
from stages.settings import Judge, Settings, as_dict
from stages.stage import Job, Stage

LABEL = "Score: "
LEAST_MASS = 0.5
"""Least total probability of the six digits; with less, the judge was about to write something else."""
LOW_MASS = "low_mass"
"""The failure of a row whose digits have less than `LEAST_MASS`."""
DECIMALS = 4
"""Decimals of a score; scores are equal if they agree in these."""


@dataclass(frozen=True)
class ScoreTokens:
    """The tokens of a score line."""

    label: tuple[int, ...]
    """Token ids of "Score: "."""
    digits: tuple[int, ...]
    """The token of each digit, 0 to 5, after the label."""


def score_tokens(chat: ChatFormat) -> ScoreTokens:
    """The tokens of a score line. Raises `UserError` for a tokenizer without a single token for each digit."""
    lines = [chat.completion_ids(f"{LABEL}{digit}")[:-1] for digit in range(MAXIMUM + 1)]
    label, digits = lines[0][:-1], [line[-1] for line in lines]
    if any(line[:-1] != label for line in lines) or len(set(digits)) < len(digits):
        raise UserError(
            f'the tokenizer has no single token for each digit behind "{LABEL}"; set judge.score = "sampled"'
        )
    return ScoreTokens(tuple(label), tuple(digits))


def expected_items(responses: Iterable[Row], chat: ChatFormat, judge: Judge) -> Iterator[Item]:
    """Requests with the verdict first: one for each response {id, prompt_id, prompt, text}."""
    tokens = score_tokens(chat)
    for row in responses:
        record = {"id": f"{row['id']}/e", "response_id": row["id"], "prompt_id": row["prompt_id"], "index": 0}
        messages = partial(judge_prompt, row["prompt"], row["text"], judge.prompt_style, judge.verdict_position)
        yield _item(messages, record, tokens.label, tokens)


def behind_reasons(
    responses: Iterable[Row], judgments: Iterable[Row], chat: ChatFormat, judge: Judge
) -> Iterator[Item]:
    """Requests with the verdict last: one for each judgment that has a score, with its text up to that score."""
    tokens, by_response = score_tokens(chat), group_by(judgments, "response_id")
    for row in responses:
        messages = partial(judge_prompt, row["prompt"], row["text"], judge.prompt_style, judge.verdict_position)
        for judgment in by_response.get(row["id"], ()):
            if judgment["score"] is None:
                continue
            record = {key: judgment[key] for key in ("response_id", "prompt_id", "index")}
            begun = judgment["ids"][: _score_place(judgment, tokens, chat)]
            yield _item(messages, {"id": f"{judgment['id']}/e", **record}, tuple(begun), tokens)


def _item(
    messages: Callable[[], list[Message]], record: dict[str, Any], begun: tuple[int, ...], tokens: ScoreTokens
) -> Item:
    """A request for the digits' probabilities; the one token drawn is ignored."""
    return Item(record["id"], messages, Sampling(0.0, 1.0, 1), 0, record["prompt_id"], record, begun, tokens.digits)


def _score_place(judgment: Row, tokens: ScoreTokens, chat: ChatFormat) -> int:
    """Index of the score in a judgment's ids: the first digit after the last "Score" label.

    Raises `UserError` where the score is not a token of its own.
    """
    ids, text = judgment["ids"], judgment["text"]
    label = text.lower().rindex("score")
    for place, token in enumerate(ids):
        if token in tokens.digits and len(chat.text(ids[:place])) > label:
            return place
    raise UserError(f'{judgment["id"]}: its score is not a token of its own; set judge.score = "sampled"')


def read_expected(row: Row) -> dict[str, Any]:
    """The "score" and "variance" from a row's "probabilities" of the digits, or the "failure" instead."""
    probabilities = row["probabilities"]
    if not probabilities:
        return {"score": None, "variance": None, "failure": row["finish_reason"]}
    if not math.fsum(probabilities) >= LEAST_MASS:
        return {"score": None, "variance": None, "failure": LOW_MASS}
    mean, spread = moments(probabilities)
    return {"score": round(mean, DECIMALS), "variance": round(spread, 6), "failure": None}


def moments(probabilities: Sequence[float]) -> tuple[float, float]:
    """Mean and variance of the digits 0, 1, ... weighted by probabilities that need not add up to 1."""
    mass = math.fsum(probabilities)
    mean = math.fsum(d * p for d, p in enumerate(probabilities)) / mass
    return mean, math.fsum((d - mean) ** 2 * p for d, p in enumerate(probabilities)) / mass


def spreads(rows: Iterable[Row]) -> dict[str, Fraction]:
    """Variance of each response's score, by response id: the mean variance within its rows plus that between them."""
    variances = {}
    for name, own in group_by((row for row in rows if row["score"] is not None), "response_id").items():
        within = [Fraction(str(row["variance"])) for row in own]
        variances[name] = sum(within, Fraction(0)) / len(within) + variance(exact_scores(own))
    return variances


def score(job: Job) -> None:
    """Compute the expected score of each distinct response, behind its judgments' reasons if judgments are given."""
    worker, judge = Worker(job.settings, job.path("model")), job.settings.judge
    if judge.score_first == job.has("judgments"):
        raise UserError("--judgments: expected scores need them with the verdict last, and only then; add or drop them")
    responses = distinct_responses(read_shards(job.path("responses")))
    if judge.score_first:
        items = expected_items(responses, worker.chat, judge)
    else:
        items = behind_reasons(responses, read_shards(job.path("judgments")), worker.chat, judge)
    worker.run(job, items, read_expected)


def _settings(settings: Settings, iteration: int) -> Any:
    names = ("prompt_style", "verdict_position", "score")
    return generation_settings(settings, iteration, {name: as_dict(settings.judge)[name] for name in names})


SCORE = Stage(
    "score",
    "judging.expected",
    score,
    settings=_settings,
    per_iteration=True,
    inputs=("model", "responses"),
    optional=("judgments",),
    ranks="all",
)

if __name__ == "__main__":
    SCORE.main()
