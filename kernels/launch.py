"""Which kernels run, and with what tiles.

Triton's kernels take tensors on CUDA. On a CPU their eager references run, unless TRITON_INTERPRET=1 asks for
Triton's interpreter. `attention = "sdpa"` turns the kernels off, to find out whether they cause a fault.
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stages.files import UserError

Attention = Literal["triton", "sdpa"]


@dataclass(frozen=True)
class Launch:
    """A kernel's tile, rows by columns, its warps, and the stages of its software pipeline."""

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
    """Whether Triton's kernels run for tensors like this one; `UserError` where they should but cannot."""
    if attention == "sdpa" or not (tensor.is_cuda or interpreted()):
        return False
    if tensor.is_cuda and tensor.dtype == torch.float32:
        raise UserError('float32 on CUDA has no kernels; set [model] dtype = "bfloat16" or attention = "sdpa"')
    if importlib.util.find_spec("triton") is None:
        raise UserError("the kernels need triton, which is not installed: pip install --editable '.[kernels]'")
    return True


def target(device: torch.device) -> int:
    """The key of the tables of launch settings: 80 for compute capabilities 8.x and 12.x and the interpreter, 90 for
    9.x, 100 for 10.x. Raises `UserError` for other cards."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    settings = {8: 80, 9: 90, 10: 100, 12: 80}.get(major) if torch.version.hip is None else None
    if settings is None:
        raise UserError(f'{device}: no kernels for compute capability {major}.{minor}; set [model] attention = "sdpa"')
    return settings


def choose(table: dict[int, dict[int, Launch]], device: torch.device, head_dim: int) -> Launch:
    """A kernel's launch for this head size. Raises `UserError` for a head size beyond the table."""
    for largest, launch in table[target(device)].items():
        if head_dim <= largest:
            return launch
    raise UserError(f'head_dim {head_dim}: the kernels go up to {largest}; set [model] attention = "sdpa"')
