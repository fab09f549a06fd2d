"""The report's page, made from the folders of runs.

Text by models and users can't act in the page: jinja2 escapes it, the page's script shows it as text nodes, and a
Content-Security-Policy allows only this script and no requests.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from evaluation.report.browser import TEXT_BUDGET, shown_prompts
from evaluation.report.plots import ReportedIteration, ReportedRun, plots
from evaluation.summary import cells, notes, summary_lines
from judging.trace import read_lineage
from stages.files import MANIFEST, UserError, read_json, read_jsonl, read_manifest
from stages.records import Record

TEMPLATES = Path(__file__).parent / "templates"


def render(folders: Sequence[Path]) -> str:
    """The page of these runs. The same runs give the same bytes.

    Raises `UserError` for a folder without a summary, and for a summary of another version.
    """
    runs = [_read_summary(folder) for folder in folders]
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
    return environment.get_template("report.html").render(
        runs=printed,
        plots=plots(runs),
        command=shlex.join(["python", "-m", "evaluation.report", *(str(run.folder) for run in runs)]),
        data=[
            {"name": f"{run.name}, iteration {own.number}", "folder": f"{run.folder}", "prompts": own.prompts}
            for run in runs
            for own in run.iterations
            if own.prompts
        ],
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read_summary(folder: Path) -> ReportedRun:
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a run's folder, or let iterate.py finish its first iteration")
    try:
        return ReportedRun(folder.resolve().name, folder, read_json(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); `make iterate` of this run writes a new one") from None


def _printed(run: ReportedRun, budget: int) -> Record:
    """Read a run's iterations; returns what the page prints of the run."""
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
    """An iteration with its training metrics and prompts. Deleted files are left out and named in the run's `gone`."""
    iteration = ReportedIteration(row["iteration"], row)
    try:
        iteration.metrics = list(read_jsonl(run.folder / f"iter{iteration.number}" / "train" / "metrics.jsonl"))
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
