"""Linear layers whose weight may be packed: laid out once for oneDNN's product on a CPU, not anew in every call.

Shapes: t tokens, i and o sizes of input and output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.int8 import Int8Weight, int8_linear

Weight = Tensor | Int8Weight
"""A plain tensor [o, i], or a packed one for inference."""


class Linear(nn.Linear):
    """x W^T; the weight is a plain tensor, or a packed one for inference."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)

    def take(self, weight: Weight) -> None:
        """Have this weight, which is no longer a parameter, in place of the one there was."""
        del self.weight
        self.weight = weight  # type: ignore[assignment]


def linear(x_ti: Tensor, weight_oi: Weight) -> Tensor:
    """x W^T [t, o], W plain or packed; accumulates in fp32, or exactly in int8."""
    if isinstance(weight_oi, Int8Weight):
        return int8_linear(x_ti, weight_oi)
    if weight_oi.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x_ti, weight_oi, None, "none", [], "")
    return F.linear(x_ti, weight_oi)


def packable(weight: Tensor) -> bool:
    """Whether packing pays: oneDNN multiplies this weight, and would lay it out anew in every call (bf16 on a CPU)."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()


def packed(weight_oi: Tensor, products: torch.dtype, parts: int = 1) -> Weight:
    """The weight in oneDNN's layout, for products in its own dtype, or in int8 with so many parts of an input
    (`kernels.int8.Int8Weight.parts`): of use to `linear` alone."""
    if products == torch.int8:
        return Int8Weight.of(weight_oi, parts)
    return torch.ops.mkldnn._reorder_linear_weight(weight_oi)
