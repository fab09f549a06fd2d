"""The metrics of a run: their file, and the memory and floating-point operations that they measure."""

import resource
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpo.packing import MicroBatch
from model.config import LlamaConfig
from stages.command import UserError
from stages.files import to_json

METRICS = "metrics.jsonl"

PEAK_FLOPS = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "B300": 2250e12}
"""Dense bf16 operations a second by part of the GPU's name; figures of the manufacturers."""


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process so far, in MiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forward_flops(config: LlamaConfig, batch: MicroBatch) -> int:
    """Operations of a forward pass: 2 per weight and token (in the head: per target), and 4 head_dim per head, query
    and visible key. A backward pass takes twice as many."""
    ranges = batch.segments.ranges()
    seen = sum((end - start) * (end - start + 1 + 2 * len(prefix)) // 2 for start, end, prefix in ranges)
    products = 2 * config.block_weights * batch.tokens + 2 * config.head_weights * len(batch.targets_n)
    return products + 4 * config.num_hidden_layers * config.q_size * seen


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak operations a second: the manufacturer's figure for a known GPU in bf16, else that of a large product."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and dtype != torch.float32 else ""
    known = (flops for part, flops in PEAK_FLOPS.items() if part in name)
    return next(known, None) or product_flops(device, dtype, 0 if device.type == "cuda" else 1024, 3)


def product_flops(device: torch.device, dtype: torch.dtype, size: int = 0, repeats: int = 10) -> float:
    """Operations a second in a product of two [size, size] matrices: the best of `repeats`."""
    size = size or (8192 if device.type == "cuda" else 2048)  # less on a GPU mostly measures launches
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return best_rate(lambda: (a @ b)[0, 0].item(), 2 * size**3, repeats)


def best_rate(run: Callable[[], object], operations: int, repeats: int = 10) -> float:
    """Operations a second: the best of `repeats` runs of `operations` each."""
    return operations / min(timeit.repeat(run, number=1, repeat=repeats))


def summary_writer() -> Any:
    """TensorBoard's class of writers; `UserError` where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("trainer.tensorboard is on: pip install tensorboard, or turn it off") from None
    return SummaryWriter


class MetricsLog:
    """The metrics of a run in `folder`; a continued one keeps `length` bytes, and points before `next_step`."""

    def __init__(self, folder: Path, length: int = 0, writes: bool = True, board: bool = False, next_step: int = 0):
        self.path, self.length, self.writes, self.board = folder / METRICS, length, writes, None
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.truncate(min(length, file.tell()))
        if writes and board:
            self.board = summary_writer()(str(folder / "tensorboard"), purge_step=next_step)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write a line, and a point of each TensorBoard curve."""
        line = to_json(metrics, self.path).encode()
        self.length += len(line)
        if self.writes:
            with self.path.open("ab") as file:
                file.write(line)
        if self.board is not None:
            for name in metrics.keys() - {"step", "split"}:
                self.board.add_scalar(f"{metrics['split']}/{name}", metrics[name], metrics["step"])
            self.board.flush()
