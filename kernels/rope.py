"""Rotary position embedding, in Hugging Face's half-split layout.

Shapes: t tokens, h heads (of queries, in `rotate_and_store`), k key-value heads, d head_dim, n blocks of s tokens.
"""

import torch
from torch import Tensor, nn

Rope = tuple[Tensor, Tensor]


def rope_tables(positions_t: Tensor, inverse_frequencies: Tensor) -> Rope:
    """cos and sin, fp32 [t, 1, d], of every token's angles; the first half of sin is negated."""
    angles = positions_t[:, None, None].float() * inverse_frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x_thd: Tensor, rope: Rope, norm: nn.Module | None = None, triton: bool = False) -> Tensor:
    """Rotate each pair (x[i], x[i + d/2]), after the norm, by its token's angle, in fp32; the result has x's dtype."""
    x_thd = x_thd if norm is None else norm(x_thd, triton)
    if not triton:
        return _Rotation.apply(x_thd, *rope, rotate)
    from kernels import rope_triton

    return _Rotation.apply(x_thd, *rope, rope_triton.rotate)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_thd, cos, sin, rotate):
        ctx.save_for_backward(cos, sin)
        ctx.function = rotate
        return rotate(x_thd, cos, sin)

    @staticmethod
    def backward(ctx, grad_thd):
        cos, sin = ctx.saved_tensors
        return ctx.function(grad_thd, cos, -sin), None, None, None


def rotate(x_thd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x_thd.float()
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x_thd.dtype)


def rotate_and_store(
    qk_thd: Tensor, v_tkd: Tensor, rope: Rope, cache: Tensor, slots_tk: Tensor, norm: nn.Module | None = None
) -> Tensor:
    """Queries and keys rotated, [t, h + k, d]; keys and values also stored in a layer's cache [2, n, k, s, d], at the
    rows `slots_tk` (int64) of the layer's keys and values seen as [n k s, d]. `norm`: RMSNorm of each head's query and
    key before its rotation, with a weight [2 d], of queries and of keys."""
    rotated_thd, slots = apply_rope(qk_thd, rope, norm), slots_tk.flatten()
    keys, values = cache.flatten(1, 3)
    keys.index_copy_(0, slots, rotated_thd[:, -v_tkd.shape[1] :].flatten(0, 1))
    values.index_copy_(0, slots, v_tkd.flatten(0, 1))
    return rotated_thd
