"""Benchmarks: each command prints JSON lines. What those of generation and training share is the workload."""

import gc
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from stages.command import UserError

WORKLOAD: dict[str, Any] = {"type": Path, "default": Path(__file__).with_name("workload.py")}
WORKLOAD |= {"help": "a file like tools/bench/workload.py; default: that one"}


def load_module(path: Path) -> Any:
    """What a Python file defines; `UserError` where there is none."""
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{path}: not a Python file; name one that defines what tools/bench/workload.py does")
    return SimpleNamespace(**runpy.run_path(str(path)))


def free() -> None:
    """Return a GPU's memory that no tensor has, and measure its peak from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
