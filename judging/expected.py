"""Scoring: `torchrun -m judging.expected` computes each distinct response's expected score, instead of sampling it.

S = sum_d d p(d) / sum_d p(d), with p(d) the judge's probability of the digit d, 0 to 5, in the place of the score. With
the verdict first, S is the limit of the paper's mean for N to infinity at temperature 1, and costs one prefill. With
the verdict last, S is computed behind the reasons of each sampled judgment, and a response's score is their mean.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from judging.rubric import judge_prompt
from judging.scores import Row, distinct_responses
from judging.verdict import MAXIMUM
from model.chat import ChatFormat
from sampling.request import Sampling
from sampling.worker import Item, Worker, generation_settings
from stages.command import UserError
from stages.files import read_shards
from stages.records import group_by
from stages.settings import Judge, Settings
from stages.stage import Job, Stage

LEAST_MASS = 0.5  # of the six digits together; with less, the judge was about to write something else


def score_tokens(chat: ChatFormat) -> tuple[list[int], tuple[int, ...]]:
    """The token ids of "Score: ", and the token of each digit, 0 to 5, after it; `UserError` where there are none."""
    lines = [chat.completion_ids(f"Score: {digit}")[:-1] for digit in range(MAXIMUM + 1)]
    label, digits = lines[0][:-1], tuple(line[-1] for line in lines)
    if any(line[:-1] != label for line in lines) or len(set(digits)) < len(digits):
        raise UserError('the tokenizer has no single token for each digit of a score; set judge.score = "sampled"')
    return label, digits


def expected_items(
    responses: Iterable[Row], judgments: Iterable[Row], chat: ChatFormat, judge: Judge
) -> Iterator[Item]:
    """Requests for the digits' probabilities at a score's place; the one token drawn is ignored. The place is behind
    each response {id, prompt_id, prompt, text}, or, with the verdict last, in each judgment."""
    (label, digits), by_response = score_tokens(chat), group_by(judgments, "response_id")
    for response in responses:
        texts, prompt_id = (response["prompt"], response["text"]), response["prompt_id"]
        messages = partial(judge_prompt, *texts, judge.prompt_style, judge.verdict_position)
        begun = [(response["id"], 0, label)]
        if not judge.score_first:
            scored = [row for row in by_response.get(response["id"], ()) if row["score"] is not None]
            begun = [(row["id"], row["index"], row["ids"][: _score_place(row, digits, chat)]) for row in scored]
        for name, index, ids in begun:
            record = {"id": f"{name}/e", "response_id": response["id"], "prompt_id": prompt_id, "index": index}
            yield Item(f"{name}/e", messages, Sampling(0.0, 1.0, 1), 0, prompt_id, record, tuple(ids), digits)


def _score_place(judgment: Row, digits: Sequence[int], chat: ChatFormat) -> int:
    """Index of the score in a judgment's ids: the first digit after the last "Score" label."""
    ids, label = judgment["ids"], judgment["text"].lower().rindex("score")
    for place, token in enumerate(ids):
        if token in digits and len(chat.text(ids[:place])) > label:
            return place
    raise UserError(f'{judgment["id"]}: its score is not a token of its own; set judge.score = "sampled"')


def read_expected(row: Row) -> dict[str, Any]:
    """The mean "score" (to four decimals) of a row's "probabilities" and its "variance", or the "failure" instead."""
    probabilities = row["probabilities"]
    mass = math.fsum(probabilities)
    if not mass >= LEAST_MASS:  # NaN, too
        return {"score": None, "variance": None, "failure": "low_mass" if probabilities else row["finish_reason"]}
    mean = math.fsum(d * p for d, p in enumerate(probabilities)) / mass
    variance = math.fsum((d - mean) ** 2 * p for d, p in enumerate(probabilities)) / mass
    return {"score": round(mean, 4), "variance": round(variance, 6), "failure": None}


def score(job: Job) -> None:
    """Compute the expected score of each distinct response, behind its judgments' reasons if judgments are given."""
    worker, judge = Worker(job.settings, job.path("model")), job.settings.judge
    if judge.score_first == job.has("judgments"):
        raise UserError("--judgments: expected scores need them with the verdict last, and only then; add or drop them")
    responses = distinct_responses(read_shards(job.path("responses")))
    judgments = read_shards(job.path("judgments")) if job.has("judgments") else ()
    worker.run(job, expected_items(responses, judgments, worker.chat, judge), read_expected)


def expected_section(settings: Settings) -> dict[str, Any]:
    """The settings that an expected score depends on."""
    return {name: getattr(settings.judge, name) for name in ("prompt_style", "verdict_position", "score")}


def _settings(settings: Settings, iteration: int) -> Any:
    return generation_settings(settings, iteration, expected_section(settings))


INPUTS = ("model", "responses")
SCORE = Stage("score", "judging.expected", score, _settings, INPUTS, ("judgments",), per_iteration=True, ranks="all")

if __name__ == "__main__":
    SCORE.main()
