"""Does the meta-judge prefer the judgment that fits the response?

A model compares pairs of judgments of which one is right by construction, in both orders. The report has how often the
right one wins (a comparison without a winner counts half), how often the first one wins among decided comparisons, and
how often both orders name the same judgment. Intervals are bootstrap percentiles over pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from evaluation.pairwise import Record
from evaluation.statistics import bootstrap
from judging.metajudge import read_winner
from judging.rubric import judgment_text, meta_prompt
from model.chat import ChatFormat
from sampling.worker import Item, Worker, sampling_of
from stages.files import UserError, read_jsonl, read_shards
from stages.records import group_by
from stages.seeds import request_seed
from stages.settings import Settings
from stages.stage import Job, Output, first_rank

KEYS = ("prompt", "response", "judgments", "winner")


def read_comparisons(path: Path) -> list[Record]:
    """The rows of a file of pairs of judgments. Raises `UserError` for an empty file and a missing key."""
    rows = list(read_jsonl(path, KEYS))
    if not rows:
        raise UserError(f"{path}: no pairs of judgments; name a file of rows with {', '.join(KEYS)}")
    return rows


def comparison_items(rows: Iterable[Record], chat: ChatFormat, settings: Settings) -> Iterator[Item]:
    """Both orders of each row {prompt, response, judgments: [{score, justification} x 2], winner}.

    The judgments differ in their scores or, with equal scores, in the evidence alone.
    """
    meta, sampling = settings.metajudge, sampling_of(settings.metajudge, chat)
    for number, row in enumerate(rows):
        judgments = row["judgments"]
        texts = [judgment_text(j["score"], j["justification"], settings.judge.verdict_position) for j in judgments]
        differ_in = "evidence" if judgments[0]["score"] == judgments[1]["score"] else "score"
        for first in (0, 1):
            name = f"c{number:04}/m{first}-{1 - first}"
            shown = (row["prompt"], row["response"], texts[first], texts[1 - first])
            right = ("first", "second")[first if row["winner"] == "first" else 1 - first]
            record = {"id": name, "case": number, "first": first, "right": right, "differ_in": differ_in}
            messages = partial(meta_prompt, *shown, meta.prompt_style, meta.verdict_position)
            seed = request_seed(settings.seed, 0, "meta-agreement", name)
            yield Item(name, messages, sampling, seed, str(number), record)


def report(comparisons: Sequence[Record]) -> Record:
    """Agreement, overall and by the judgments' difference; first-position rate, consistency of orders, parse rate."""
    cases = list(group_by(comparisons, "case").values())
    decided = [[row["winner"] for row in rows if row["winner"] in ("first", "second")] for rows in cases]
    credits = [
        [float(row["winner"] == row["right"]) if row["winner"] in ("first", "second") else 0.5 for row in rows]
        for rows in cases
    ]
    kinds = [rows[0]["differ_in"] for rows in cases]
    return {
        "comparisons": len(comparisons),
        "parse_rate": round(sum(row["winner"] is not None for row in comparisons) / len(comparisons), 4),
        "agreement": bootstrap(credits),
        "by_kind": {
            kind: bootstrap([own for own, differ_in in zip(credits, kinds, strict=True) if differ_in == kind])
            for kind in ("score", "evidence")
        },
        "first_position": bootstrap([[float(winner == "first") for winner in own] for own in decided]),
        "consistency": bootstrap([[float(own[0] != own[1])] for own in decided if len(own) == 2]),
    }


def measure_metajudge(worker: Worker, job: Job) -> None:
    """Let a model compare the pairs of judgments, and write the measurement."""
    comparisons = job.part("meta-agreement", "comparisons")
    items = comparison_items(read_comparisons(job.path("comparisons")), worker.chat, job.settings)
    worker.run(comparisons, items, partial(read_winner, meta=job.settings.metajudge))
    if first_rank():
        Output({"agreement.json": report(list(read_shards(comparisons.out)))}).write(job)
