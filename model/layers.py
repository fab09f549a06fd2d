"""The model's layers. The backward passes by hand keep fewer tensors than autograd would.

Shapes: t tokens, d hidden_size, i intermediate_size; in linear layers i and o, the sizes of input and output.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import swiglu
from kernels.int8 import Int8Weight, int8_linear
from kernels.norm import add_norm

Weight = Tensor | Int8Weight  # a plain tensor [o, i], or a packed one for inference
Head = Callable[[Tensor, Weight], Tensor]  # (hidden [t, d], weight [v, d]) -> what the caller needs, such as logits


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias)

    def forward(self, x: Tensor, head: Head | None = None) -> Tensor:
        """x W^T + b or, for a model's head, what `head` makes of x and W."""
        return head(x, self.weight) if head else linear(x, self.weight, self.bias)


def linear(x_ti: Tensor, weight_oi: Weight, bias_o: Tensor | None = None) -> Tensor:
    """x W^T + b [t, o], W plain or packed; accumulates in fp32, or exactly in int8."""
    if isinstance(weight_oi, Int8Weight):
        y_to = int8_linear(x_ti, weight_oi)
        return y_to if bias_o is None else y_to.add_(bias_o)
    if weight_oi.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x_ti, weight_oi, bias_o, "none", [], "")
    return F.linear(x_ti, weight_oi, bias_o)


class RMSNorm(nn.Module):
    """RMSNorm behind a residual connection (`kernels.norm`): the sum x + update, or x, and its norm, both [t, d]."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_td: Tensor, update_td: Tensor | None = None, triton: bool = False) -> tuple[Tensor, Tensor]:
        return add_norm(x_td, update_td, self.weight, self.eps, triton)


class HeadNorm(nn.Module):
    """RMSNorm of each head's query or key, [t, h + k, d]; its weight [2 d] is the queries', then the keys'."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2 * head_dim))
        self.eps, self.heads = eps, (heads, kv_heads)

    def forward(self, qk_thd: Tensor, triton: bool = False) -> Tensor:
        sides = zip(self.weight.chunk(2), self.heads, strict=True)
        weight_hd = torch.cat([weight_d.expand(n, -1) for weight_d, n in sides])
        return add_norm(qk_thd, None, weight_hd, self.eps, triton)[1]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202); gate and up are one matrix, rows in that order."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x_td: Tensor, triton: bool = False) -> Tensor:
        functions = swiglu.forward, swiglu.backward
        if triton:
            from kernels import swiglu_triton

            functions = swiglu_triton.forward, swiglu_triton.backward
        gate_up = self.gate_up_proj(x_td)
        if hasattr(self.down_proj, "lora"):  # an adapter needs h itself (dpo/lora.py)
            return self.down_proj(_SwiGLU.apply(gate_up, None, *functions))
        return _SwiGLU.apply(gate_up, self.down_proj.weight, *functions)


class _SwiGLU(torch.autograd.Function):
    """h W^T with h = silu(gate) up, or h where W is None; keeps gate and up [t, 2 i] alone. For an incoming gradient g,
    with `kernels.swiglu` for gate and up:

    dh = g W        dW = g^T h
    """

    @staticmethod
    def forward(ctx, gate_up, weight_di, forward, backward):
        ctx.save_for_backward(gate_up, weight_di)
        ctx.function, hidden_ti = backward, forward(gate_up)
        return hidden_ti if weight_di is None else linear(hidden_ti, weight_di)

    @staticmethod
    def backward(ctx, grad_td):
        gate_up, weight_di = ctx.saved_tensors
        grad_ti = grad_td.clone() if weight_di is None else grad_td @ weight_di
        grad_gate_up, hidden_ti = ctx.function(grad_ti, gate_up)
        grad_weight_di = grad_td.t() @ hidden_ti if ctx.needs_input_grad[1] else None
        return grad_gate_up, grad_weight_di, None, None
