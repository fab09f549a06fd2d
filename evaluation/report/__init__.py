"""One or more runs as one self-contained HTML file: `python -m evaluation.report runs/NAME [runs/OTHER ...]`."""

from collections.abc import Sequence
from pathlib import Path

from stages.command import UserError
from stages.files import write_atomic


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report. Raises `UserError` for a folder without a summary of this version, and for missing packages."""
    try:
        from evaluation.report.page import render
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}: pip install '.[report]'") from None
    # A tokenizer may leave a lone surrogate, which UTF-8 can't hold.
    write_atomic(out, render(folders).encode("utf-8", "replace"))
