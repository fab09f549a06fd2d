"""The report's page, made from the folders of runs.

Text by models and users can't act in the page: jinja2 escapes names, the page's script shows packed texts as text
nodes (`browser.py`), and a Content-Security-Policy allows only this script and no requests.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from evaluation.report.browser import CHUNK, Evidence, pack, read_evidence
from evaluation.report.cost import cost
from evaluation.report.parts import ReportedIteration, ReportedRun, Row, look_up
from evaluation.report.plots import SERIES
from evaluation.report.sections import elo_spread, sections
from evaluation.report.standings import COLUMNS, cards, cells, names, note, numbers, with_values
from judging.scores import EXPLANATIONS
from stages.files import UserError, read_jsonl

TEMPLATES = Path(__file__).parent / "templates"
MOST = len(SERIES)
"""The most runs in one report: each has a colour."""


def render(folders: Sequence[Path]) -> str:
    """The page of these runs. The same runs give the same bytes.

    Raises `UserError` for a folder without a summary, and for more runs than there are colours.
    """
    if len(folders) > MOST:
        raise UserError(f"{len(folders)} runs: a report has colours for {MOST}; name fewer")
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "browser.js").read_text(encoding="utf-8")
    pairs = pack([[(i.number, i.evidence) for i in run.iterations] for run in runs])
    columns = with_values(runs, COLUMNS)
    page = {
        "runs": [{"name": run.name, "facts": facts(run)} for run in runs],
        "titles": list(dict.fromkeys(title for run in runs for title in facts(run))),
        "command": shlex.join(["python", "-m", "evaluation.report", *(str(run.folder) for run in runs)]),
        "gone": [(run.name, why) for run in runs for why in run.gone],
        "columns": columns,
        "standings": [[(row, list(cells(row, columns))) for row in run.models] for run in runs],
        "note": note(runs),
        "cards": list(cards(runs)),
        "models": names(runs),
        "numbers": numbers(runs),
        "sections": [*sections(runs), cost(runs)] if any(run.iterations for run in runs) else [],
        "iterations": sorted({i.number for run in runs for i in run.iterations}),
        "pairs": pairs,
        "report": {
            "runs": [{"name": run.name, "folder": str(run.folder)} for run in runs],
            "reasons": EXPLANATIONS,
            "chunk": CHUNK,
            "limits": pairs["limits"],
            "outcomesOnly": pairs["outcomes_only"],
        },
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template("report.html").render(page)


def read_run(folder: Path) -> ReportedRun:
    """A run's summary, and the training metrics and pairs of each of its iterations.

    Deleted files are left out and named in `gone`. Raises `UserError` where the summary is missing or of another
    version.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a run's folder, or let iterate.py finish its first iteration")
    run = ReportedRun(folder.resolve().name, folder, _document(path))
    if missing := _missing(run.summary):
        raise UserError(
            f"{path}: of another version ({missing} is missing); `make iterate` of this run writes a new one"
        )
    for row in run.summary["iterations"]:
        path = folder / f"iter{row['iteration']}"
        metrics: list[Row] = []
        evidence = Evidence([], {})
        try:
            metrics = list(read_jsonl(path / "train" / "metrics.jsonl"))
        except UserError as error:
            run.gone.append(f"no training curves of iteration {row['iteration']}: {error}")
        try:
            evidence = read_evidence(path)
        except UserError as error:
            run.gone.append(f"no pairs, Elo scores and scores by length of iteration {row['iteration']}: {error}")
        row = row | {"elo": {"spread": elo_spread(evidence)}}
        run.iterations.append(ReportedIteration(row["iteration"], row, metrics, evidence))
    return run


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); `make iterate` of this run writes a new one") from None


def _missing(summary: Row) -> str | None:
    """The first key that the report needs and the summary lacks, if any."""
    needed = (
        ("model", "seed", "sft", "iterations"),
        ("iteration", "rho", "pairs", "bias", "dpo", "seconds", "new_tokens"),
        ("name", "win_rate_by", "win_rate_way"),
    )
    parts = ([summary], summary.get("iterations", []), summary.get("models", []))
    return next(
        (key for rows, keys in zip(parts, needed, strict=True) for row in rows for key in keys if key not in row), None
    )


def facts(run: ReportedRun) -> dict[str, str]:
    """The run's model and main settings."""
    rows = {"Seed model": run.summary["model"], "Random seed": str(run.summary["seed"])}
    path = run.folder / "settings.json"
    settings = _document(path) if path.is_file() else {}
    for title, key in (
        ("Prompts per iteration", "respond.prompts_per_iteration"),
        ("Responses per prompt, K", "respond.K"),
        ("Judgments per response, N", "judge.N"),
    ):
        if (value := look_up(settings, key)) is not None:
            rows[title] = f"{value:,}" if isinstance(value, int) else str(value)
    rhos = [f"{i.row['rho']:g}" for i in run.iterations]
    return rows | {"Iterations": str(len(rhos)), "Length control, rho": ", ".join(rhos) or "-"}
