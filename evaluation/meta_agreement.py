"""Does the meta-judge prefer the judgment that fits the response?

A model is shown pairs of judgments of which one is right by construction, each in both orders. Reported: how often the
right one wins (a comparison without a winner counts half), how often the first one does among the decided, and how
often both orders name the same judgment. Intervals are bootstrap percentiles over pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.statistics import bootstrap
from judging.metajudge import comparison_record
from judging.rubric import judgment_text, meta_prompt
from model.chat import ChatFormat
from sampling.generate import Item, Worker, first_rank, generation_key, read_units, request_seed
from sampling.request import Sampling
from stages.files import UserError, is_complete, read_jsonl, write_json, write_manifest
from stages.settings import Settings

KEYS = ("prompt", "response", "judgments", "winner")
KINDS = ("score", "evidence")
"""What two judgments of a case differ in: their scores, or with equal scores the evidence alone."""


def read_comparisons(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of pairs of judgments. Raises `UserError` where it holds none, or one lacks a key."""
    rows = list(read_jsonl(path, KEYS))
    if not rows:
        raise UserError(f"{path}: no pairs of judgments; name a file of rows with {', '.join(KEYS)}")
    return rows


def comparison_items(rows: Iterable[dict[str, Any]], chat: ChatFormat, settings: Settings) -> Iterator[Item]:
    """Both orders of each row {prompt, response, judgments: [{score, justification} x 2], winner}."""
    meta = settings.metajudge
    sampling = Sampling(meta.temperature, meta.top_p, meta.max_new_tokens, chat.stop_ids)
    for number, row in enumerate(rows):
        texts = [
            judgment_text(j["score"], j["justification"], settings.judge.verdict_position) for j in row["judgments"]
        ]
        for first in (0, 1):
            name = f"c{number:04}/m{first}-{1 - first}"
            shown = (row["prompt"], row["response"], texts[first], texts[1 - first])
            right = ("first", "second")[first if row["winner"] == "first" else 1 - first]
            known = {"id": name, "case": number, "first": first, "right": right, "differ_in": _kind(row)}
            seed = request_seed(settings.seed, 0, "meta-agreement", name)
            yield Item(
                name,
                partial(meta_prompt, *shown, meta.prompt_style, meta.verdict_position),
                sampling,
                seed,
                str(number),
                known,
            )


def report(comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Agreement, by what the judgments differ in too, first-position rate, consistency over both orders, parse rate."""
    cases: dict[int, list[dict[str, Any]]] = {}
    for row in comparisons:
        cases.setdefault(row["case"], []).append(row)
    decided = [[row for row in rows if row["winner"] in ("first", "second")] for rows in cases.values()]
    outcomes = {number: [_outcome(row) for row in rows] for number, rows in cases.items()}
    both = [rows for rows in decided if len(rows) == 2]
    parsed = sum(row["winner"] is not None for row in comparisons)
    return {
        "comparisons": len(comparisons),
        "parse_rate": round(parsed / len(comparisons), 4),
        "agreement": bootstrap(list(outcomes.values())),
        "by_kind": {
            kind: bootstrap(
                [[_outcome(row) for row in rows] for rows in cases.values() if rows[0]["differ_in"] == kind]
            )
            for kind in KINDS
        },
        "first_position": bootstrap([[float(row["winner"] == "first") for row in rows] for rows in decided]),
        "consistency": bootstrap([[float(a["winner"] != b["winner"])] for a, b in both]),
    }


def _kind(row: dict[str, Any]) -> str:
    first, second = (judgment["score"] for judgment in row["judgments"])
    return "evidence" if first == second else "score"


def _outcome(row: dict[str, Any]) -> float:
    return float(row["winner"] == row["right"]) if row["winner"] in ("first", "second") else 0.5


def meta_agreement_key(settings: Settings, model_dir: Path, cases: Path) -> str:
    """The identity of a measurement."""
    inputs: dict[str, Path | str] = {"model": model_dir, "cases": cases}
    names = ("temperature", "top_p", "max_new_tokens", "form", "verdict")
    section = {name: getattr(settings.metajudge, name) for name in names} | {
        "judgments": settings.judge.verdict_position
    }
    return generation_key("meta-agreement", settings, section, 0, inputs)


def measure_metajudge(worker: Worker, cases: Path, out: Path) -> None:
    """Have a model compare the pairs of judgments, and write the measurement to `out` unless it is there."""
    settings = worker.settings
    key = meta_agreement_key(settings, worker.model_dir, cases)
    if is_complete(out, key):
        return
    work, path = out / "comparisons", out / "agreement.json"
    items = list(comparison_items(read_comparisons(cases), worker.chat, settings))
    record = partial(comparison_record, chat=worker.chat, meta=settings.metajudge)
    worker.run("meta-agreement", items, work, key, record)
    if first_rank():
        write_json(path, report(list(read_units(work))))
        write_manifest(out, "meta-agreement", key, [path])
