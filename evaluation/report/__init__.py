"""A run as one HTML file that needs nothing else: `python -m evaluation.report runs/NAME [runs/OTHER ...]`.

Tables, pictures, and a browser of all pairs, to read on a phone as well as on a desk, in light and in dark
(`evaluation/report/page.py`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages.files import UserError, write_atomic
from stages.settings import load_settings


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of a run, or of several side by side.

    Raises `UserError` for a folder without a summary, for more runs than there are colours, and where the packages
    that draw it are missing.
    """
    try:
        from evaluation.report.page import render
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install '.[report]'") from None
    write_atomic(out, render(folders))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a run, or several side by side, as one HTML file.")
    parser.add_argument("runs", nargs="*", type=Path, help="folders such as runs/smollm2-135m")
    parser.add_argument("--config", type=Path, help="without a folder: the run that has this config's name")
    parser.add_argument("--out", type=Path, help="default: report.html in the run's folder; of several, beside them")
    arguments = parser.parse_args()
    if bool(arguments.runs) == bool(arguments.config):
        raise UserError("evaluation.report: name either folders of runs or --config")
    runs = arguments.runs or [Path("runs") / load_settings(arguments.config).name]
    out = arguments.out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    write_report(runs, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")
