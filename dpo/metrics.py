"""Where a run's metrics go: metrics.jsonl, a line a step, and TensorBoard's files if asked."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from files import UserError

METRICS = "metrics.jsonl"


def peak_memory_mib(device: torch.device) -> float:
    """The most memory, MiB, that this process has had so far: on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class MetricsLog:
    """The metrics of a run in `folder`, written by one rank. A continued run goes on behind `length` bytes."""

    def __init__(self, folder: Path, length: int = 0, writes: bool = True, tensorboard: bool = False):
        """Raises `UserError` when TensorBoard is asked for and not installed."""
        self.path, self.length, self.writes, self.board = folder / METRICS, length, writes, None
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(min(length, file.tell()))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "trainer.tensorboard is on, but tensorboard is not there: pip install tensorboard, or turn it off"
                ) from None
            step = sum(1 for _ in self.path.open("rb"))
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def write(self, metrics: dict[str, Any]) -> None:
        """A line, and a point of each curve."""
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
