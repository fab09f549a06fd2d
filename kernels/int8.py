"""Products in int8, for processors that multiply integers fast (VNNI) but have no bfloat16 units; for inference alone.

A weight is rounded once, with a scale for each output channel, an input in every call, with a scale for each token;
both are symmetric about zero. With integers a and b the product is exact, so that a token's result depends neither on
the other tokens of the batch nor on the order of the sum:

    x_t = s_t a_t    W_o = r_o b_o    y_to = s_t r_o sum_i a_ti b_oi

Shapes: t tokens, i and o sizes of input and output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127
"""Integers lie in [-LARGEST, LARGEST]."""

ZERO = 128
"""What stands for 0 in an input: oneDNN's fast product takes inputs without a sign, and takes this off again."""

LEAST = 1e-30
"""Of the largest magnitude of a token or an output channel: one that is all zeros has a scale too."""


@dataclass(frozen=True)
class Int8Weight:
    """A weight [o, i] in oneDNN's layout, of use to `int8_linear` alone."""

    integers: Tensor
    scale_o: Tensor
    """fp32; r / LARGEST, so that a token's largest magnitude can stand for its scale."""
    zero_o: Tensor
    """int64, zeros."""

    @classmethod
    def of(cls, weight_oi: Tensor) -> "Int8Weight":
        """Of a weight in any float dtype."""
        integers_oi, peak_o1 = rounded(weight_oi.float())
        scale_o = peak_o1.flatten() / LARGEST**2
        packed = torch.ops.onednn.qlinear_prepack(integers_oi, None)
        return cls(packed, scale_o, torch.zeros(len(scale_o), dtype=torch.int64))


def rounded(x_td: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of fp32 `x_td` as integers, int8 [t, d], of its largest magnitude / LARGEST, which is fp32 [t, 1]."""
    peak_t1 = x_td.abs().amax(-1, keepdim=True).clamp_min_(LEAST)
    return (x_td * (LARGEST / peak_t1)).round_().to(torch.int8), peak_t1


def int8_linear(x_ti: Tensor, weight: Int8Weight) -> Tensor:
    """x W^T, fp32 [t, o], for fp32 `x_ti`."""
    integers_ti, peak_t1 = rounded(x_ti)
    shifted_ti = integers_ti.bitwise_xor_(-ZERO).view(torch.uint8)  # ZERO added: the highest bit turned over
    y_to = torch.ops.onednn.qlinear_pointwise(
        shifted_ti,
        1.0,
        ZERO,
        weight.integers,
        weight.scale_o,
        weight.zero_o,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return y_to.mul_(peak_t1)
