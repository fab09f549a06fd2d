"""Judging: `torchrun -m judging.judge` samples N judgments of each distinct response and reads their scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from judging.expected import expected_items, expected_section, read_expected
from judging.rubric import judge_prompt
from judging.scores import Row, distinct_responses, most_uncertain, seeded_draw, spreads, to_number
from judging.verdict import Failure, parse_score
from model.chat import ChatFormat
from sampling.worker import Item, Worker, generation_settings, sampling_of
from stages.command import UserError
from stages.files import read_shards
from stages.seeds import request_seed
from stages.settings import Judge, Settings, as_dict
from stages.stage import Job, Stage


def judge_items(
    responses: Iterable[Row], chat: ChatFormat, settings: Settings, iteration: int, N: int, stage: str = "judge"
) -> Iterator[Item]:
    """N requests for each response {id, prompt_id, prompt, text}, with one prompt and different noise."""
    judge = settings.judge
    sampling = replace(sampling_of(judge, chat), min_new_tokens=judge.min_new_tokens)
    for response in responses:
        texts, prompt_id = (response["prompt"], response["text"]), response["prompt_id"]
        messages = partial(judge_prompt, *texts, judge.prompt_style, judge.verdict_position)
        for index in range(N):
            name = f"{response['id']}/j{index}"
            seed = request_seed(settings.seed, iteration, stage, name)
            record = {"id": name, "response_id": response["id"], "prompt_id": prompt_id, "index": index}
            yield Item(name, messages, sampling, seed, prompt_id, record)


def read_score(row: Row, judge: Judge) -> dict[str, Any]:
    """A judgment's "score", or the "failure" instead."""
    score = parse_score(row["text"], row["finish_reason"], judge.verdict_position, judge.fractions)
    if isinstance(score, Failure):
        return {"score": None, "failure": str(score)}
    return {"score": to_number(score), "failure": None}


def judge(job: Job) -> None:
    """Sample N judgments of each distinct response; with expected scores first, of a prompt's most uncertain one."""
    settings = job.settings
    worker, responses = Worker(settings, job.path("model")), distinct_responses(read_shards(job.path("responses")))
    if settings.judge.score_first:
        if not job.has("scores"):
            raise UserError("--scores is missing: they choose the judged responses; add what `judging.expected` wrote")
        draw = seeded_draw(settings.seed, job.iteration)
        responses = most_uncertain(responses, spreads(read_shards(job.path("scores"))), draw)
    items = judge_items(responses, worker.chat, settings, job.iteration, settings.judge.N)
    worker.run(job, items, partial(read_score, judge=settings.judge))


def score_rows(worker: Worker, responses: Sequence[Row], N: int, job: Job) -> list[Any]:
    """Rows with the scores of each response {id, prompt_id, prompt, text}: judgments, or expected scores. Judgments
    behind expected scores are in the job's folder "reasons". The job's name seeds the noise."""
    judge = worker.settings.judge
    judgments = job if judge.score == "sampled" else job.part(job.name, "reasons", job.key)
    if not judge.score_first:
        items = judge_items(responses, worker.chat, worker.settings, 0, N, job.name)
        worker.run(judgments, items, partial(read_score, judge=judge))
    if judge.score == "expected":
        rows = () if judge.score_first else read_shards(judgments.out)
        items = expected_items(responses, rows, worker.chat, judge)
        worker.run(replace(job, name=f"{job.name} scores"), items, read_expected)
    return list(read_shards(job.out))


def judge_section(settings: Settings) -> dict[str, Any]:
    """The settings that a judgment depends on."""
    others = ("N", "minimum_valid", "score", "scores_file")
    return {key: value for key, value in as_dict(settings.judge).items() if key not in others}


def scoring_section(settings: Settings, N: int) -> dict[str, Any]:
    """The settings that a response's score depends on; `N` sampled judgments each, if any are sampled."""
    sampled = {} if settings.judge.score_first else judge_section(settings) | {"N": N}
    return sampled | expected_section(settings)


def _settings(settings: Settings, iteration: int) -> Any:
    section = judge_section(settings) | {"N": settings.judge.N, "score": settings.judge.score}
    return generation_settings(settings, iteration, section)


INPUTS = ("model", "responses")
JUDGE = Stage("judge", "judging.judge", judge, _settings, INPUTS, ("scores",), per_iteration=True, ranks="all")

if __name__ == "__main__":
    JUDGE.main()
