"""The report's page, made from the folders of runs.

Text by models and users can't act in the page: jinja2 escapes it, the page's script shows it as text nodes, and a
Content-Security-Policy allows only this script and no requests.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from evaluation.report.plots import ReportedIteration, ReportedRun, plots
from evaluation.summary import cells, notes, summary_lines
from judging.scores import EXPLANATIONS
from judging.trace import Document, comparison_label, judgment_label, read_lineage, response_label, verdict
from stages.command import UserError
from stages.files import MANIFEST, digest, read_manifest, read_sealed
from stages.records import Record
from stages.rows import NUMBER, TEXT, read_rows

TEMPLATES = Path(__file__).parent / "templates"
TEXT_BUDGET = 20_000_000  # characters of prompts and pairs' texts in one page; those behind may have as many again
LIMITS = (16_000, 8_000, 4_000, 2_000, 1_000, 600, 300, 150)
CURVES = {"split": TEXT} | dict.fromkeys(("loss", "reward_chosen", "reward_rejected"), NUMBER)
LABEL = 80  # characters of a label, about; they count, too


def render(folders: Sequence[Path]) -> str:
    """The page, the same bytes for the same runs. Raises `UserError` for a run without a summary of this version."""
    mend = "name a run's folder, or let iterate.py finish its first iteration"
    runs = [ReportedRun(own.resolve().name, own, read_sealed(own / "summary.json", mend)) for own in folders]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.folder)
    budget = TEXT_BUDGET // max(sum(len(run.summary.get("iterations", ())) for run in runs), 1)
    printed = [_printed(run, budget) for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    script = (TEMPLATES / "browser.js").read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    command = shlex.join(["python", "-m", "evaluation.report", *(str(run.folder) for run in runs)])
    data = [
        {"name": f"{run.name}, iteration {own.number}", "folder": f"{run.folder}", "prompts": own.prompts}
        for run in runs
        for own in run.iterations
        if own.prompts
    ]
    names = {"command": command, "data": data, "script": script, "script_hash": script_hash}
    return environment.get_template("report.html").render(runs=printed, plots=plots(runs), **names)


def _printed(run: ReportedRun, budget: int) -> Record:
    summary = run.summary
    try:
        run.iterations = [_read_iteration(run, row, budget) for row in summary["iterations"]]
        rows, facts = summary["models"], {"name": run.name, "model": summary["model"], "seed": summary["seed"]}
        tables = {"models": cells(rows), "notes": list(notes(rows)), "cost": list(_cost(run))}
        return facts | tables | {"gone": run.gone, "summary": "\n".join(summary_lines(summary))}
    except KeyError as error:
        why = f"of another version ({error} is missing); `make iterate` writes a new one"
        raise UserError(f"{run.folder}/summary.json: {why}") from None


def _read_iteration(run: ReportedRun, row: Record, budget: int) -> ReportedIteration:
    """An iteration with its training metrics and prompts. What has been deleted or changed is left out and named in the
    run's `gone`."""
    iteration = ReportedIteration(row["iteration"], row)
    try:
        path = run.folder / f"iter{iteration.number}" / "train" / "metrics.jsonl"
        made, own = read_manifest(path.parents[1] / "checkpoint") or {}, digest(path)
        if made.get("metrics", own) != own:
            raise UserError(f"{path}: not as the training wrote it; repeat that stage")
        iteration.metrics = [step.checked(**CURVES) for step in read_rows(path)]
    except UserError as error:
        run.gone.append(f"no training curves of iteration {iteration.number}: {error}")
    try:
        _, documents = read_lineage(run.folder, iteration.number)
    except UserError as error:
        run.gone.append(f"no pairs, Elo scores and scores by length of iteration {iteration.number}: {error}")
        return iteration
    responses = [response for document in documents.values() for response in document["responses"]]
    iteration.scored = [(one["characters"], float(one["score"])) for one in responses if one["score"] is not None]
    iteration.elo = [own["elo"]["elo"] for one in responses for own in one["judgments"] if own["elo"]]
    iteration.prompts = shown_prompts([*documents.values()], budget)
    return iteration


def _cost(run: ReportedRun) -> Iterator[list[str]]:
    """Stage, seconds, new tokens of all ranks and new tokens a second, by the manifests in the run's folder."""
    folders = [Path(run.summary["sft"]["checkpoint"]), *(path.parent for path in sorted(run.folder.rglob(MANIFEST)))]
    for folder in folders:
        made = read_manifest(folder) or {}
        if (seconds := made.get("seconds")) is not None:
            name = folder.relative_to(run.folder) if folder.is_relative_to(run.folder) else folder
            tokens = made.get("new_tokens") or 0
            rate = f"{tokens / seconds:,.0f}" if tokens and seconds else ""
            yield [f"{name}", f"{seconds:,.1f}", f"{tokens:,}" if tokens else "", rate]


def shown_prompts(documents: Sequence[Document], budget: int) -> list[list[Any]]:
    """For each prompt [id, text, entries, responses, comparisons], with about 2 x `budget` characters in all.

    A response, judgment or comparison is [label, text or None, part in the pair, texts behind this text].
    """
    pairs, behind = [len(document["prompt"]) for document in documents], list[int]()
    for document in documents:
        for row in document["responses"]:
            (pairs if _in_pair(document, row) else behind).append(len(row["text"]))
            for own in row["judgments"]:
                (pairs if own["part"] else behind).append(len(own["text"]))
        behind += [len(row["text"]) for row in document["comparisons"]]
    return [_prompt(document, _limit(pairs, budget), _limit(behind, budget)) for document in documents]


def _limit(lengths: Sequence[int], budget: int) -> int:
    """The longest text with which all fit into the budget; 0 where even the shortest limit does not suffice."""
    limits = (max(lengths, default=0), *(limit - LABEL for limit in LIMITS))
    return next((limit for limit in limits if sum(LABEL + min(length, limit) for length in lengths) <= budget), 0)


def _prompt(document: Document, limit: int, behind: int) -> list[Any]:
    responses = []
    for row in document["responses"]:
        # Judgments whose text is left out keep their line if they were compared.
        judgments: list[list[Any]] = [
            [judgment_label(own), _cut(own["text"], limit if own["part"] else behind), own["part"] or "", []]
            for own in row["judgments"]
            if behind or own["part"] or own["elo"]
        ]
        verdicts = "" if behind else "; judgments: " + ", ".join(map(verdict, row["judgments"]))
        text = _cut(row["text"], limit if _in_pair(document, row) else behind)
        responses.append([response_label(row) + verdicts, text, row["part"] or "", judgments])
    rows = document["comparisons"] if behind else ()
    comparisons: list[list[Any]] = [[comparison_label(row), _cut(row["text"], behind), "", []] for row in rows]
    return [document["prompt_id"], _cut(document["prompt"], limit), [*_entries(document)], responses, comparisons]


def _entries(document: Document) -> Iterator[list[str]]:
    """[id, kind, outcome] of each pair and each missing pair, for the browser's list."""
    for pair in document["pairs"]:
        if pair["kind"] == "actor":
            outcome = f"{pair['chosen_score']:.4g} over {pair['rejected_score']:.4g}"
        else:
            outcome = f"Elo {pair['chosen_elo']:.2f} over {pair['rejected_elo']:.2f}"
        yield [pair["id"], f"{pair['kind']} pair", outcome]
    for kind, reason in document["none"].items():
        yield [f"none/{kind}/{document['prompt_id']}", f"no {kind} pair: {EXPLANATIONS[reason]}", ""]


def _in_pair(document: Document, row: Document) -> bool:
    """Whether a response is shown at full length: part of a pair, judged by one, or its prompt has no actor pair."""
    judged = any(pair.get("response_id") == row["id"] for pair in document["pairs"])
    return bool(row["part"]) or judged or "actor" in document["none"]


def _cut(text: str, limit: int) -> str | None:
    if len(text) <= limit or not limit:
        return text if limit else None
    return f"{text[:limit]}\N{HORIZONTAL ELLIPSIS} [cut: {len(text) - limit:,} more characters]"
