"""Benchmarks: each command prints JSON lines. What the ones of generation and training share: arguments, workload."""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

from stages.files import UserError


def arguments(description: str, *types: str) -> argparse.ArgumentParser:
    """Model, workload and type of products, one of `types` besides the usual ones."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    default = Path(__file__).with_name("workload.py")
    parser.add_argument("--workload", "--pairs", type=Path, default=default, help="file like tools/bench/workload.py")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", *types], default="auto")
    return parser


def load_module(path: Path) -> ModuleType:
    """A Python file as a module. Raises `UserError` where it is missing or not Python."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: not a Python file; name one that defines what tools/bench/workload.py does")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
