"""Which kernels run, with what tiles, and how numbers reach the device and come back.

On a CPU the kernels' eager references run, unless TRITON_INTERPRET=1 asks for Triton's interpreter.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.command import UserError

Attention = Literal["triton", "sdpa"]
CPU = torch.device("cpu")


class Launch(NamedTuple):  # a kernel's tile, rows by columns, its warps, and the stages of its software pipeline
    m: int
    n: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(attention: Attention, tensor: Tensor) -> bool:
    """Whether Triton's kernels run for such tensors; `UserError` where they should but cannot."""
    if attention == "sdpa" or not (tensor.is_cuda or interpreted()):
        return False
    if tensor.is_cuda and tensor.dtype == torch.float32:
        raise UserError('float32 on CUDA has no kernels; set [model] dtype = "bfloat16" or attention = "sdpa"')
    if importlib.util.find_spec("triton") is None:
        raise UserError("the kernels need triton, which is not installed: pip install --editable '.[kernels]'")
    return True


def target(device: torch.device) -> int:
    """The key of the launch tables, 80 also for the interpreter. `UserError` for a card without settings."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    if (settings := {8: 80, 9: 90, 10: 100, 12: 80}.get(major)) is None or torch.version.hip:
        raise UserError(f'{device}: no kernels for compute capability {major}.{minor}; set [model] attention = "sdpa"')
    return settings


def choose(table: dict[int, dict[int, Launch]], device: torch.device, head_dim: int) -> Launch:
    """A kernel's launch for this head size; `UserError` for one beyond the table."""
    for largest, launch in table[target(device)].items():
        if head_dim <= largest:
            return launch
    raise UserError(f'head_dim {head_dim}: the kernels go up to {largest}; set [model] attention = "sdpa"')


def to_device(values: Sequence | np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `values` on the device; on CUDA the copy, from pinned memory, is only queued."""
    tensor = torch.from_numpy(np.array(values)).to(dtype)  # several times as fast as torch.tensor for lists
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(*tensors: Tensor) -> list[list]:
    """The tensors' values. On CUDA all copies are queued before one synchronisation."""
    if tensors[0].is_cuda:
        tensors = tuple(torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors)
        torch.cuda.current_stream().synchronize()
    return [tensor.tolist() for tensor in tensors]
