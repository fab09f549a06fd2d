"""A run as one HTML file that needs nothing else: `python -m evaluation.report runs/NAME [runs/OTHER ...]`.

Tables, pictures, and a browser of all pairs, to read on a phone as well as on a desk, in light and in dark. What models
and users wrote is data in it: names pass through jinja2's escaping, texts stand in packed chunks that the page's script
shows as text nodes (`evaluation/browser.py`), and a Content-Security-Policy allows this one script and no request.
"""

import argparse
import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.browser import CHUNK, REASONS, pack, read_evidence
from evaluation.plots import SERIES
from evaluation.sections import Iteration, Run, derived, look_up, sections
from evaluation.standings import cards, cells, columns, models, note
from files import UserError, command, read_jsonl, write_atomic

try:
    import jinja2
except ImportError:
    raise UserError("evaluation.report needs matplotlib and jinja2: pip install '.[report]'") from None

TEMPLATES = Path(__file__).parent / "templates"
MOST = len(SERIES)
"""Runs in one report: one a colour."""


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of a run, or of several side by side.

    Raises `UserError` for a folder without a summary, and for more runs than there are colours.
    """
    if len(folders) > MOST:
        raise UserError(f"{len(folders)} runs: a report has colours for {MOST}; name fewer")
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.folder)
    write_atomic(out, render(runs))


def read_run(folder: Path) -> Run:
    """A run's summary, and for each iteration in it the metrics of its training and what is behind its pairs."""
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a run's folder, or let iterate.py finish its first iteration")
    summary = json.loads(path.read_text(encoding="utf-8"))
    iterations = []
    for row in summary["iterations"]:
        place = folder / f"iter{row['iteration']}"
        metrics = list(read_jsonl(place / "train" / "metrics.jsonl"))
        evidence = read_evidence(place)
        iterations.append(Iteration(row["iteration"], row | derived(row, evidence), metrics, evidence))
    return Run(folder.resolve().name, folder, summary, iterations)


def render(runs: Sequence[Run]) -> str:
    """The page. The same runs give the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "browser.js").read_text(encoding="utf-8")
    pairs = pack([[(i.number, i.evidence) for i in run.iterations] for run in runs])
    chosen = columns(runs)
    page = {
        "runs": [{"name": run.name, "facts": facts(run)} for run in runs],
        "titles": list(dict.fromkeys(title for run in runs for title in facts(run))),
        "command": "python -m evaluation.report " + " ".join(str(run.folder) for run in runs),
        "columns": chosen,
        "standings": [[(row, list(cells(row, chosen))) for row in models(run)] for run in runs],
        "note": note(runs),
        "cards": list(cards(runs, chosen)),
        "sections": list(sections(runs)),
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


def facts(run: Run) -> dict[str, str]:
    """What was run, in a few words."""
    found = {"Seed model": run.summary["model"], "Random seed": str(run.summary["seed"])}
    path = run.folder / "settings.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for title, key in (
        ("Prompts an iteration", "respond.prompts_per_iteration"),
        ("Responses a prompt, K", "respond.K"),
        ("Judgments a response, N", "judge.N"),
    ):
        if (value := look_up(settings, key)) is not None:
            found[title] = f"{value:,}"
    rhos = [f"{i.row['rho']:g}" for i in run.iterations]
    return found | {"Iterations": str(len(rhos)), "Length control, rho": ", ".join(rhos) or "-"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a run, or several side by side, as one HTML file.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders such as runs/smollm2-135m")
    parser.add_argument("--out", type=Path, help="default: report.html in the run's folder; of several, beside them")
    arguments = parser.parse_args()
    first = arguments.runs[0]
    out = arguments.out or (first if len(arguments.runs) == 1 else first.parent) / "report.html"
    write_report(arguments.runs, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    command(main)
