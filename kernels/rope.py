"""Rotary position embedding, in the half-split layout of Hugging Face's checkpoints.

Shapes: t tokens, h heads, d head_dim.
"""

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]


def rope_tables(positions_t: Tensor, inverse_frequencies: Tensor) -> Rope:
    """cos and sin, fp32 [t, 1, d], of every token's angles; the first half of sin is negated."""
    angles = positions_t[:, None, None].float() * inverse_frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x_thd: Tensor, rope: Rope) -> Tensor:
    """Rotate each pair (x[i], x[i + d/2]) by its token's angle, in fp32; the result has x's dtype."""
    cos, sin = rope
    x = x_thd.float()
    x1, x2 = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((x2, x1), dim=-1), sin).to(x_thd.dtype)
