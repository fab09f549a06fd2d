"""SwiGLU's product with a backward pass by hand, which keeps the input alone.

Shapes: t tokens, i intermediate_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) up of a tensor [t, 2 i] of both, gate first (arXiv 2002.05202); [t, i].

    With s = sigmoid(gate) and an incoming gradient g: dup = g silu(gate), dgate = g up s (1 + gate (1 - s)).
    """
    return _SiluProduct.apply(gate_up)


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.cat((torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate) * grad), dim=-1)
