"""Does the meta-judge prefer the judgment that fits the response?

A model compares pairs of judgments of which one is right by construction, in both orders. The report has how often the
right one wins (a comparison without a winner counts half), how often the first one wins among decided comparisons, and
how often both orders name the same judgment. Intervals are bootstrap percentiles over pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from evaluation.agreement import half_credit
from evaluation.statistics import by_group, each, share
from judging.metajudge import read_winner
from judging.rubric import judgment_text, meta_prompt
from model.chat import ChatFormat
from sampling.worker import Item, Worker, sampling_of
from stages.files import UserError, read_jsonl, read_shards
from stages.records import Record, group_by
from stages.seeds import request_seed
from stages.settings import Settings
from stages.stage import Job, Output, first_rank


def read_comparisons(path: Path) -> list[Record]:
    """The rows of a file of pairs of judgments. Raises `UserError` for an empty file and a missing key."""
    keys = ("prompt", "response", "judgments", "winner")
    if rows := list(read_jsonl(path, keys)):
        return rows
    raise UserError(f"{path}: no pairs of judgments; name a file of rows with {', '.join(keys)}")


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
    decided = [row for row in comparisons if row["winner"] in ("first", "second")]
    credits = [(r["case"], half_credit(r["winner"] or "tie", r["right"]), r["differ_in"]) for r in comparisons]
    cases = group_by(decided, "case").values()
    return {
        "comparisons": len(comparisons),
        "parse_rate": share(sum(row["winner"] is not None for row in comparisons), len(comparisons)),
        "agreement": by_group((case, credit) for case, credit, _ in credits),
        "by_kind": {
            kind: by_group((case, credit) for case, credit, own in credits if own == kind)
            for kind in ("score", "evidence")
        },
        "first_position": by_group((row["case"], row["winner"] == "first") for row in decided),
        "consistency": each(rows[0]["winner"] != rows[1]["winner"] for rows in cases if len(rows) == 2),
    }


def measure_metajudge(worker: Worker, job: Job) -> None:
    """Let a model compare the pairs of judgments, and write the measurement."""
    comparisons = job.part("meta-agreement", "comparisons")
    items = comparison_items(read_comparisons(job.path("comparisons")), worker.chat, job.settings)
    worker.run(comparisons, items, partial(read_winner, meta=job.settings.metajudge))
    if first_rank():
        Output({"agreement.json": report(list(read_shards(comparisons.out)))}).write(job)
