"""Products in int8 for inference, on processors that multiply integers fast (VNNI) but have no bfloat16 units.

A weight has a scale for each output channel, an input one for each token; products of integers are exact:

    x_t = s_t (a_t + c_t / 254)    W_o = r_o b_o    y_to = s_t r_o sum_i (a_ti + c_ti / 254) b_oi

c, which rounds a's remainder, is left out of an input of one part. Shapes: t tokens, i inputs, o outputs, n parts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127  # integers lie in [-LARGEST, LARGEST]
FINER = 2 * LARGEST  # steps of c in a step of a, whose rounding error is at most half a step
ZERO = 128  # zero point of inputs: oneDNN's fast product takes unsigned inputs and subtracts this
LEAST = 1e-30  # lower bound of a row's largest magnitude, so that a row of zeros has a scale


@dataclass(frozen=True)
class Int8Weight:  # a weight [o, i] in oneDNN's layout, of use to `int8_linear` alone
    integers: Tensor
    scale_o: Tensor  # fp32; r / LARGEST, so that a token's largest magnitude can serve as its scale
    zero_o: Tensor  # int64, zeros
    parts: int  # of an input: 1 or 2

    @classmethod
    def of(cls, weight_oi: Tensor, parts: int = 1) -> "Int8Weight":
        integers_noi, peak_o1 = rounded(weight_oi.float(), 1)
        layout = torch.ops.onednn.qlinear_prepack(integers_noi[0], None)
        return cls(layout, peak_o1.flatten() / LARGEST**2, torch.zeros(len(weight_oi), dtype=torch.int64), parts)


def rounded(x_ti: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Rows of fp32 `x_ti` in steps of their peaks / LARGEST, int8 [n, t, i]; and the peaks, fp32 [t, 1]."""
    peak_t1 = x_ti.abs().amax(-1, keepdim=True).clamp_min_(LEAST)
    integers_nti = x_ti.new_empty((parts, *x_ti.shape), dtype=torch.int8)
    scaled_ti = x_ti * (LARGEST / peak_t1)
    if parts == 2:
        integers_nti[0] = first_ti = scaled_ti.round()
        scaled_ti.sub_(first_ti).mul_(FINER)
    integers_nti[-1] = scaled_ti.round_()
    return integers_nti, peak_t1


def int8_linear(x_ti: Tensor, weight: Int8Weight) -> Tensor:
    """x W^T, fp32 [t, o], for fp32 `x_ti`."""
    integers_nti, peak_t1 = rounded(x_ti, weight.parts)
    shifted_nti = integers_nti.bitwise_xor_(-ZERO).view(torch.uint8)  # adds ZERO by flipping the highest bit
    integers = (weight.integers, weight.scale_o, weight.zero_o, None)
    y_nto = torch.ops.onednn.qlinear_pointwise(shifted_nti, 1.0, ZERO, *integers, 1.0, 0, torch.float32, "none", [], "")
    y_to = y_nto[0] if weight.parts == 1 else torch.add(y_nto[0], y_nto[1], alpha=1 / FINER)
    return y_to.mul_(peak_t1)
