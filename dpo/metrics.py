"""The metrics of a run: metrics.jsonl, a line a step, and TensorBoard files if the config asks for them."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from stages.files import UserError

METRICS = "metrics.jsonl"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process so far, in MiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def summary_writer() -> Any:
    """TensorBoard's class of writers. Raises UserError when tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "trainer.tensorboard is on, but tensorboard is not installed: pip install tensorboard, or turn it off"
        ) from None
    return SummaryWriter


class MetricsLog:
    """The metrics of a run in `folder`. Only one rank writes them."""

    def __init__(
        self, folder: Path, length: int = 0, writes: bool = True, tensorboard: bool = False, next_step: int = 0
    ):
        """A continued run keeps the first `length` bytes, and TensorBoard's points before `next_step`."""
        self.path, self.length, self.writes, self.board = folder / METRICS, length, writes, None
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(min(length, file.tell()))
        if tensorboard:
            self.board = summary_writer()(str(folder / "tensorboard"), purge_step=next_step)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write a line, and a point of each TensorBoard curve."""
        line = (json.dumps(metrics) + "\n").encode()
        self.length += len(line)
        if not self.writes:
            return
        with self.path.open("ab") as file:
            file.write(line)
        if self.board is not None:
            for name in metrics.keys() - {"step", "split"}:
                self.board.add_scalar(f"{metrics['split']}/{name}", metrics[name], metrics["step"])
            self.board.flush()
