"""The report's page, from the folders of runs.

What models and users wrote is data in it: names pass through jinja2's escaping, texts stand in packed chunks that the
page's script shows as text nodes (`browser.py`), and a Content-Security-Policy allows this one script and no request.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from evaluation.report.browser import CHUNK, REASONS, Evidence, pack, read_evidence
from evaluation.report.cost import cost
from evaluation.report.plots import SERIES
from evaluation.report.sections import Iteration, Row, Run, elo_spread, look_up, sections
from evaluation.report.standings import COLUMNS, cards, cells, measured, models, names, note, numbers
from stages.files import UserError, read_jsonl

TEMPLATES = Path(__file__).parent / "templates"
MOST = len(SERIES)
"""Runs in one report: one a colour."""


def render(folders: Sequence[Path]) -> str:
    """The page of these runs; the same runs give the same bytes.

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
    chosen = measured(runs, COLUMNS)
    page = {
        "runs": [{"name": run.name, "facts": facts(run)} for run in runs],
        "titles": list(dict.fromkeys(title for run in runs for title in facts(run))),
        "command": shlex.join(["python", "-m", "evaluation.report", *(str(run.folder) for run in runs)]),
        "gone": [(run.name, why) for run in runs for why in run.gone],
        "columns": chosen,
        "standings": [[(row, list(cells(row, chosen))) for row in models(run)] for run in runs],
        "note": note(runs),
        "cards": list(cards(runs)),
        "models": names(runs),
        "numbers": numbers(runs),
        "sections": [*sections(runs), cost(runs)] if any(run.iterations for run in runs) else [],
        "iterations": sorted({i.number for run in runs for i in run.iterations}),
        "pairs": pairs,
        "known": {
            "runs": [{"name": run.name, "folder": str(run.folder)} for run in runs],
            "reasons": REASONS,
            "chunk": CHUNK,
            "limits": pairs["limits"],
            "outcomesOnly": pairs["outcomes_only"],
        },
        "style": (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template("report.html").render(page)


def read_run(folder: Path) -> Run:
    """A run's summary, and for each iteration in it the metrics of its training and what is behind its pairs.

    What has been deleted since, to save room, is left out, and `Run.gone` says so. Raises `UserError` where the summary
    is not there, or another version's.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a run's folder, or let iterate.py finish its first iteration")
    run = Run(folder.resolve().name, folder, _document(path))
    if missing := _missing(run.summary):
        raise UserError(f"{path}: of another version ({missing} is missing); `make iterate` of this run writes it anew")
    for row in run.summary["iterations"]:
        place = folder / f"iter{row['iteration']}"
        metrics: list[Row] = []
        evidence = Evidence([], {})
        try:
            metrics = list(read_jsonl(place / "train" / "metrics.jsonl"))
        except UserError as error:
            run.gone.append(f"no curves of training in iteration {row['iteration']}: {error}")
        try:
            evidence = read_evidence(place)
        except UserError as error:
            run.gone.append(f"no pairs, Elo scores and scores by length of iteration {row['iteration']}: {error}")
        row = row | {"elo": {"spread": elo_spread(evidence)}}
        run.iterations.append(Iteration(row["iteration"], row, metrics, evidence))
    return run


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); `make iterate` of this run writes it anew") from None


def _missing(summary: Row) -> str | None:
    """The first key that the report needs and the summary lacks."""
    needed = (
        ("model", "seed", "sft", "iterations"),
        ("iteration", "rho", "pairs", "bias", "dpo", "seconds", "new_tokens"),
        ("name", "win_rate_by", "win_rate_way"),
    )
    parts = ([summary], summary.get("iterations", []), summary.get("models", []))
    return next(
        (key for rows, keys in zip(parts, needed, strict=True) for row in rows for key in keys if key not in row), None
    )


def facts(run: Run) -> dict[str, str]:
    """What was run, in a few words."""
    found = {"Seed model": run.summary["model"], "Random seed": str(run.summary["seed"])}
    path = run.folder / "settings.json"
    settings = _document(path) if path.is_file() else {}
    for title, key in (
        ("Prompts an iteration", "respond.prompts_per_iteration"),
        ("Responses a prompt, K", "respond.K"),
        ("Judgments a response, N", "judge.N"),
    ):
        if (value := look_up(settings, key)) is not None:
            found[title] = f"{value:,}" if isinstance(value, int) else str(value)
    rhos = [f"{i.row['rho']:g}" for i in run.iterations]
    return found | {"Iterations": str(len(rhos)), "Length control, rho": ", ".join(rhos) or "-"}
