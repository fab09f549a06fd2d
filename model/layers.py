"""The model's layers. The backward passes by hand keep fewer tensors than autograd would.

Shapes: t tokens, d hidden_size, i intermediate_size; in linear layers i and o, the sizes of input and output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.int8 import Int8Weight, int8_linear

Weight = Tensor | Int8Weight  # a plain tensor [o, i], or a packed one for inference


class Linear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x_ti: Tensor, weight_oi: Weight, bias_o: Tensor | None = None) -> Tensor:
    """x W^T + b [t, o], W plain or packed; accumulates in fp32, or exactly in int8."""
    if isinstance(weight_oi, Int8Weight):
        y_to = int8_linear(x_ti, weight_oi)
        return y_to if bias_o is None else y_to.add_(bias_o)
    if weight_oi.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x_ti, weight_oi, bias_o, "none", [], "")
    return F.linear(x_ti, weight_oi, bias_o)


class RMSNorm(nn.Module):
    """n weight with n = x / sqrt(mean(x^2) + eps) (arXiv 1910.07467), statistics in fp32; [t, d] in x's dtype."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_td: Tensor) -> Tensor:
        return _RMSNorm.apply(x_td, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """`RMSNorm` of each head's query or key, [t, h + k, d]; its weight [2 d] is the queries', then the keys'."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, eps: float):
        super().__init__(2 * head_dim, eps)
        self.heads = (heads, kv_heads)

    def forward(self, qk_thd: Tensor) -> Tensor:
        sides = zip(self.weight.chunk(2), self.heads, strict=True)
        return _RMSNorm.apply(qk_thd, torch.cat([weight_d.expand(n, -1) for weight_d, n in sides]), self.eps)


class _RMSNorm(torch.autograd.Function):
    """Keeps the input alone. For an incoming gradient g, and s = 1 / sqrt(mean(x^2) + eps):

    dweight = sum_t g n        dx = s (g weight - n mean(g weight n))
    """

    @staticmethod
    def forward(ctx, x_td, weight_d, eps):
        x = x_td.float()
        scale_t1 = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x_td, weight_d, scale_t1)
        return weight_d * (x * scale_t1).to(x_td.dtype)

    @staticmethod
    def backward(ctx, grad_td):
        x_td, weight_d, scale_t1 = ctx.saved_tensors
        normal_td, grad = x_td.float() * scale_t1, grad_td.float()
        grad_weight_d = (grad * normal_td).sum(0).to(weight_d.dtype) if ctx.needs_input_grad[1] else None
        grad = grad * weight_d
        mean_t1 = torch.linalg.vecdot(grad, normal_td)[..., None] / x_td.shape[-1]
        grad_x_td = torch.addcmul(grad, normal_td, mean_t1, value=-1).mul_(scale_t1)
        return grad_x_td.to(x_td.dtype), grad_weight_d, None


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202); gate and up are one matrix, rows in that order."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x_td: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x_td)
        if hasattr(self.down_proj, "lora"):  # an adapter needs h itself (dpo/lora.py)
            return self.down_proj(_SwiGLU.apply(gate_up, None))
        return _SwiGLU.apply(gate_up, self.down_proj.weight)


class _SwiGLU(torch.autograd.Function):
    """h W^T with h = silu(gate) up, or h where W is None; keeps gate and up [t, 2 i] alone. For s = sigmoid(gate) and
    an incoming gradient g:

    dW = g^T h        dh = g W        dup = dh silu(gate)        dgate = dh up s (1 + gate (1 - s))
    """

    @staticmethod
    def forward(ctx, gate_up, weight_di):
        ctx.save_for_backward(gate_up, weight_di)
        gate, up = gate_up.chunk(2, dim=-1)
        hidden_ti = F.silu(gate).mul_(up)
        return hidden_ti if weight_di is None else linear(hidden_ti, weight_di)

    @staticmethod
    def backward(ctx, grad_td):
        gate_up, weight_di = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        silu_ti = F.silu(gate)
        grad_weight_di = grad_td.t() @ (silu_ti * up) if ctx.needs_input_grad[1] else None
        grad_ti = grad_td.clone() if weight_di is None else grad_td @ weight_di
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate_ti, grad_up_ti = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad_ti, silu_ti, out=grad_up_ti)
        torch.ops.aten.silu_backward(grad_ti.mul_(up), gate, grad_input=grad_gate_ti)
        return grad_gate_up, grad_weight_di
