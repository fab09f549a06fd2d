"""Rotary position embedding, in the half-split layout of Hugging Face's checkpoints.

Shapes: t tokens, h heads, d head_dim.
"""

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]


def rope_tables(positions_t: Tensor, inverse_frequencies: Tensor) -> Rope:
    """cos and sin, fp32 [t, d], of every token's angles; both halves of d hold the same angles."""
    angles = positions_t[:, None].float() * inverse_frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x_thd: Tensor, rope: Rope) -> Tensor:
    """Rotate each pair (x[i], x[i + d/2]) by its token's angle, in fp32; the result has x's dtype."""
    cos, sin = rope
    x1, x2 = x_thd.float().chunk(2, dim=-1)
    rotated = torch.cat((-x2, x1), dim=-1)
    return (x_thd * cos[:, None] + rotated * sin[:, None]).to(x_thd.dtype)
