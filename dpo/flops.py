"""Floating-point operations: the number in a micro-batch, and the machine's peak rate."""

import time
from collections.abc import Callable

import torch

from dpo.packing import MicroBatch
from kernels.segments import Segments
from model.config import LlamaConfig

PEAK_FLOPS = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "B300": 2250e12}
"""Dense bf16 operations a second by part of the GPU's name; figures of the manufacturers."""


def forward_flops(config: LlamaConfig, batch: MicroBatch) -> int:
    """Operations of a forward pass: 2 per weight and token, and 4 head_dim per head, query and visible key.

    The output head counts only for the targets. A backward pass takes twice as many; recomputation is not counted.
    """
    block = config.hidden_size * (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    attention = 4 * config.q_size * seen_keys(batch.segments)
    layers = config.num_hidden_layers * (2 * block * batch.tokens + attention)
    return layers + 2 * config.vocab_size * config.hidden_size * len(batch.targets_n)


def seen_keys(segments: Segments) -> int:
    """Sum over all queries of the keys that the query attends to."""
    return sum((end - start) * (end - start + 1 + 2 * len(prefix)) // 2 for start, end, prefix in segments.ranges())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak operations a second: the manufacturer's figure for a known GPU in bf16, else that of a large product."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        figures = [flops for part, flops in PEAK_FLOPS.items() if part in name]
        if figures:
            return figures[0]
    return product_flops(device, dtype, 0 if device.type == "cuda" else 1024, 3)


def product_flops(device: torch.device, dtype: torch.dtype, size: int = 0, repeats: int = 10) -> float:
    """Operations a second in a product of two [size, size] matrices: the best of `repeats`.

    The default size is 2048, on a GPU 8192: a smaller product there mostly measures launch and synchronisation.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return best_rate(lambda: (a @ b)[0, 0].item(), 2 * size**3, repeats)


def best_rate(run: Callable[[], object], operations: int, repeats: int = 10) -> float:
    """Operations a second: the best of `repeats` runs of `operations` each."""
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = max(best, operations / (time.perf_counter() - started))
    return best
