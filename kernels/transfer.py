"""Numbers to the device and back: on CUDA through pinned memory, so that copies do not wait for each other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Sequence, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of `values` on the device; on CUDA the copy is only queued."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(*tensors: Tensor) -> list[list]:
    """The tensors' values. On CUDA all copies are queued before one synchronisation."""
    if tensors[0].is_cuda:
        tensors = tuple(torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors)
        torch.cuda.current_stream().synchronize()
    return [tensor.tolist() for tensor in tensors]
