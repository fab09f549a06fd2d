"""Meta-judging: `torchrun -m judging.metajudge` compares one response's judgments per prompt, in both orders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from statistics import pvariance
from typing import Any

from judging import scores
from judging.pairs import Sources
from judging.rubric import meta_prompt, shown_judgment
from judging.schedule import comparable_groups, scheduled
from judging.scores import Reason, Row
from judging.verdict import Failure, parse_winner
from model.chat import ChatFormat
from sampling.worker import Item, Worker, generation_settings, sampling_of
from stages.config import changed
from stages.files import read_shards
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
    """Each prompt's response whose judgments are compared, or the reason for none. Of the responses with at least two
    distinct judgments, it has the highest variance of their scores or, if given, of the `spreads`, the variances of
    expected scores. `judgments` and `spreads` are by response id."""
    responses, draw = list(responses), scores.seeded_draw(settings.seed, iteration)
    distinct = {name: scores.distinct_judgments(rows) for name, rows in judgments.items()}
    several = {name: rows for name, rows in distinct.items() if len(rows) >= 2}
    if spreads is None:
        spreads = {name: pvariance(scores.exact_scores(rows)) for name, rows in several.items()}
    variances = {name: spreads.get(name, Fraction(0)) for name in several}
    judged = scores.most_uncertain(scores.distinct_responses(responses), variances, draw)
    chosen = {row["prompt_id"]: row["id"] for row in judged}
    for prompt_id in dict.fromkeys(row["prompt_id"] for row in responses):
        name = chosen.get(prompt_id)
        compared = distinct[name] if name else []
        alone = all(len(group) == 1 for group in comparable_groups(compared, settings.metajudge))
        reason = Reason.TOO_FEW_JUDGMENTS if not name else Reason.NO_NEAR_SCORES if alone else None
        indices = [row["index"] for row in compared]
        yield {"prompt_id": prompt_id, "response_id": name, "judgments": indices, "reason": reason and str(reason)}


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
        response, prompt_id = responses[row["response_id"]], row["prompt_id"]
        distinct = [judgment for judgment in judgments[response["id"]] if judgment["index"] in row["judgments"]]
        for a, b in scheduled(distinct, meta, request_seed(settings.seed, iteration, "schedule", response["id"])):
            shown = (shown_judgment(a["text"], settings), shown_judgment(b["text"], settings))
            texts = (response["prompt"], response["text"], *shown)
            messages = partial(meta_prompt, *texts, meta.prompt_style, meta.verdict_position)
            name = f"{response['id']}/m{a['index']}-{b['index']}"
            seed = request_seed(settings.seed, iteration, "metajudge", name)
            places = {"first": a["index"], "second": b["index"]}
            record = {"id": name, "response_id": response["id"], "prompt_id": prompt_id, **places}
            yield Item(name, messages, sampling, seed, prompt_id, record)


def read_winner(row: Row, meta: Metajudge) -> dict[str, Any]:
    """A comparison's "winner" ("first", "second" or "tie"), or the "failure" instead."""
    winner = parse_winner(row["text"], row["finish_reason"], meta.verdict_position)
    failed = isinstance(winner, Failure)
    return {"winner": None if failed else winner, "failure": str(winner) if failed else None}


def metajudge(job: Job) -> None:
    """Compare the judgments of one response per prompt."""
    settings, sources, worker = job.settings, Sources.of(job, "judgments"), Worker(job.settings, job.path("model"))
    fields, rows = ("response_id", "index", "text", "score"), read_shards(job.path("judgments"))
    judgments = group_by(({key: row[key] for key in fields} for row in rows), "response_id")
    responses = {row["id"]: row for row in read_shards(sources.responses)}
    spreads = scores.spreads(read_shards(sources.scores)) if sources.scores else None
    chosen = list(choose_meta_judged(responses.values(), judgments, settings, job.iteration, spreads))
    items = metajudge_items(chosen, responses, judgments, worker.chat, settings, job.iteration)
    worker.run(job, items, partial(read_winner, meta=settings.metajudge), meta_judged=chosen)


def _settings(settings: Settings, iteration: int) -> Any:
    section = as_dict(settings.metajudge)
    del section["model"], section["elo_penalty"]  # the model is an input, and the penalty belongs to the pairs
    return generation_settings(settings, iteration, section | changed(settings.guards, "hide_scores"))


INPUTS, OPTIONAL = ("model", "responses"), ("judgments", "scores")
METAJUDGE = Stage(
    "metajudge", "judging.metajudge", metajudge, _settings, INPUTS, OPTIONAL, per_iteration=True, ranks="all"
)

if __name__ == "__main__":
    METAJUDGE.main()
