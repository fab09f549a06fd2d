"""SwiGLU with a backward pass by hand, which keeps gate and up alone and computes their product again.

Shapes: t tokens, d hidden_size, i intermediate_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear import linear


def swiglu(gate_up: Tensor, weight_di: Tensor) -> Tensor:
    """(silu(gate) up) W^T (arXiv 2002.05202) of a tensor [t, 2 i] of both, gate first; [t, d].

    With h = silu(gate) up, s = sigmoid(gate) and an incoming gradient g: dW = g^T h, dh = g W, dup = dh silu(gate),
    dgate = dh up s (1 + gate (1 - s)).
    """
    return _SwiGLU.apply(gate_up, weight_di)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, weight_di):
        ctx.save_for_backward(gate_up, weight_di)
        gate, up = gate_up.chunk(2, dim=-1)
        return linear(F.silu(gate).mul_(up), weight_di)

    @staticmethod
    def backward(ctx, grad_td):
        gate_up, weight_di = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        silu_ti = F.silu(gate)
        grad_weight_di = grad_td.t() @ (silu_ti * up)
        grad_ti = grad_td @ weight_di
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate_ti, grad_up_ti = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad_ti, silu_ti, out=grad_up_ti)
        torch.ops.aten.silu_backward(grad_ti.mul_(up), gate, grad_input=grad_gate_ti)
        return grad_gate_up, grad_weight_di
