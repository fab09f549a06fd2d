"""h = silu(gate) up (arXiv 2002.05202), forward and backward. Shapes: t tokens, i intermediate_size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(gate_up: Tensor) -> Tensor:
    """h [t, i]; gate and up are the halves of `gate_up` [t, 2 i]."""
    gate_ti, up_ti = gate_up.chunk(2, dim=-1)
    return F.silu(gate_ti).mul_(up_ti)


def backward(grad_ti: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `gate_up`, and h; `grad_ti`, that of h, is overwritten. For s = sigmoid(gate):

    dup = dh silu(gate)        dgate = dh up s (1 + gate (1 - s))
    """
    gate_ti, up_ti = gate_up.chunk(2, dim=-1)
    silu_ti = F.silu(gate_ti)
    grad_gate_up = torch.empty_like(gate_up)
    grad_gate_ti, grad_up_ti = grad_gate_up.chunk(2, dim=-1)
    torch.mul(grad_ti, silu_ti, out=grad_up_ti)
    torch.ops.aten.silu_backward(grad_ti.mul_(up_ti), gate_ti, grad_input=grad_gate_ti)
    return grad_gate_up, silu_ti.mul_(up_ti)
