"""One or more runs as one self-contained HTML file: `python -m evaluation.report runs/NAME [runs/OTHER ...]`.

It holds the table of models, plots, seconds and tokens, and a browser of all pairs, in light and dark (`page.py`).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages.files import UserError, write_atomic
from stages.settings import load_settings


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of one run, or of several side by side.

    Raises `UserError` for a folder without a summary of this version, and for missing packages.
    """
    try:
        from evaluation.report.page import render
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install '.[report]'") from None
    # A tokenizer may leave a lone surrogate, which UTF-8 can't hold.
    write_atomic(out, render(folders).encode("utf-8", "replace"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one run, or several side by side, as one HTML file.")
    parser.add_argument("runs", nargs="*", type=Path, help="folders such as runs/smollm2-135m")
    parser.add_argument("--config", type=Path, help="in place of folders: the run with this config's name")
    parser.add_argument(
        "--out", type=Path, help="default: report.html in the run's folder; for several runs, in the folder above"
    )
    arguments = parser.parse_args()
    if bool(arguments.runs) == bool(arguments.config):
        raise UserError("evaluation.report: name either folders of runs or --config")
    runs = arguments.runs or [Path("runs") / load_settings(arguments.config).name]
    out = arguments.out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    write_report(runs, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")
