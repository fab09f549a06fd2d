"""Benchmarks: each command prints JSON lines. What those of generation and training share: arguments, workload."""

import argparse
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from stages.files import UserError


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of both: model and workload."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    default = Path(__file__).with_name("workload.py")
    parser.add_argument("--workload", "--pairs", type=Path, default=default, help="file like tools/bench/workload.py")
    return parser


def load_module(path: Path) -> ModuleType:
    """A Python file as a module; `UserError` where there is none."""
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: not a Python file; name one that defines what tools/bench/workload.py does")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
