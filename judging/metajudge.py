"""Meta-judging: `torchrun -m judging.metajudge` compares one response's judgments per prompt, in both orders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from statistics import pvariance
from typing import Any

from judging.pairs import Sources
from judging.rubric import meta_prompt
from judging.schedule import comparable_groups, schedule_seed, scheduled
from judging.scores import (
    Reason,
    Row,
    distinct_judgments,
    distinct_responses,
    exact_scores,
    most_uncertain,
    seeded_draw,
)
from judging.verdict import Failure, parse_winner
from model.chat import ChatFormat
from sampling.worker import Item, Worker, generation_settings, sampling_of
from stages.files import UserError, read_shards
from stages.records import MetaJudged, group_by
from stages.seeds import request_seed
from stages.settings import Metajudge, Settings, as_dict
from stages.stage import Job, Stage


def choose_meta_judged(
    responses: Iterable[Row],
    judgments: Mapping[str, Sequence[Row]],
    settings: Settings,
    iteration: int,
    spreads: Mapping[str, Fraction] | None = None,
) -> Iterator[MetaJudged]:
    """Each prompt's response whose judgments are compared, or the reason for none.

    The response has at least two distinct judgments, and of such responses the highest variance of their scores, or
    the highest of `spreads`, the variances of expected scores. `judgments` and `spreads` are by response id.
    """
    responses, draw = list(responses), seeded_draw(settings.seed, iteration)
    distinct = {name: distinct_judgments(rows) for name, rows in judgments.items()}
    variances = {
        name: pvariance(exact_scores(rows)) if spreads is None else spreads.get(name, Fraction(0))
        for name, rows in distinct.items()
        if len(rows) >= 2
    }
    chosen = {row["prompt_id"]: row["id"] for row in most_uncertain(distinct_responses(responses), variances, draw)}
    for prompt_id in dict.fromkeys(row["prompt_id"] for row in responses):
        name, reason = chosen.get(prompt_id), None
        compared = distinct[name] if name else []
        if not name:
            reason = Reason.TOO_FEW_JUDGMENTS
        elif all(len(group) == 1 for group in comparable_groups(compared, settings.metajudge)):
            reason = Reason.NO_NEAR_SCORES
        yield {
            "prompt_id": prompt_id,
            "response_id": name,
            "judgments": [row["index"] for row in compared],
            "reason": reason and str(reason),
        }


def metajudge_items(
    chosen: Iterable[MetaJudged],
    responses: Mapping[str, Row],
    judgments: Mapping[str, Sequence[Row]],
    chat: ChatFormat,
    settings: Settings,
    iteration: int,
) -> Iterator[Item]:
    """A request for each scheduled pair of the chosen responses' distinct judgments; `judgments` by response id."""
    meta, sampling = settings.metajudge, sampling_of(settings.metajudge, chat)
    for row in chosen:
        if row["reason"] or row["response_id"] is None:
            continue
        response = responses[row["response_id"]]
        distinct = [judgment for judgment in judgments[response["id"]] if judgment["index"] in row["judgments"]]
        for a, b in scheduled(distinct, meta, schedule_seed(settings.seed, iteration, response["id"])):
            texts = (response["prompt"], response["text"], a["text"], b["text"])
            name = f"{response['id']}/m{a['index']}-{b['index']}"
            record = {"id": name, "response_id": response["id"], "prompt_id": row["prompt_id"]}
            record |= {"first": a["index"], "second": b["index"]}
            messages = partial(meta_prompt, *texts, meta.prompt_style, meta.verdict_position)
            seed = request_seed(settings.seed, iteration, "metajudge", name)
            yield Item(name, messages, sampling, seed, row["prompt_id"], record)


def read_winner(row: Row, meta: Metajudge) -> dict[str, Any]:
    """A comparison's "winner" ("first", "second" or "tie"), or the "failure" instead."""
    winner = parse_winner(row["text"], row["finish_reason"], meta.verdict_position)
    if isinstance(winner, Failure):
        return {"winner": None, "failure": str(winner)}
    return {"winner": winner, "failure": None}


def metajudge(job: Job) -> None:
    """Compare the judgments of one response per prompt."""
    settings, sources = job.settings, Sources.of(job)
    if not sources.judgments:
        raise UserError("--judgments is missing: the meta-judge compares judgments; add it")
    worker = Worker(settings, job.path("model"))
    fields = ("response_id", "index", "text", "score")
    judgments = group_by(({key: row[key] for key in fields} for row in read_shards(sources.judgments)), "response_id")
    responses = {row["id"]: row for row in read_shards(sources.responses)}
    chosen = list(choose_meta_judged(responses.values(), judgments, settings, job.iteration, sources.spreads()))
    items = metajudge_items(chosen, responses, judgments, worker.chat, settings, job.iteration)
    worker.run(job, items, partial(read_winner, meta=settings.metajudge), {"meta_judged.jsonl": chosen})


def _settings(settings: Settings, iteration: int) -> Any:
    section = as_dict(settings.metajudge)
    del section["model"], section["elo_penalty"]  # the model is an input, and the penalty belongs to the pairs
    return generation_settings(settings, iteration, section)


METAJUDGE = Stage(
    "metajudge",
    "judging.metajudge",
    metajudge,
    _settings,
    ("model", "responses"),
    ("judgments", "scores"),
    per_iteration=True,
    ranks="all",
)

if __name__ == "__main__":
    METAJUDGE.main()
