"""RMSNorm behind a residual connection, forward and backward, in Triton: `kernels.norm` has the equations.

A program of `_forward` has one token. The programs of `_backward`, a constant number, each walk over every so many-th
token and write one row of partial sums for the weight's gradient: no atomics. Shapes: t tokens, d hidden_size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 384  # of a backward pass: three a multiprocessor, and the partial sums are small beside the inputs


@triton.jit
def weighted(x, weights, mask):
    """x, rounded, times the weights, rounded: fp32, with roundings to the weights' dtype."""
    w = tl.load(weights, mask=mask, other=0.0)
    return (x.to(w.dtype).to(tl.float32) * w.to(tl.float32)).to(w.dtype).to(tl.float32)


@triton.jit
def _forward(
    x, update, weight,  # [t, d], [t, d] or None, [d]; contiguous; bf16, fp16 or fp32
    y, out, scale,  # written: [t, d], only with an update; [t, d]; s, [t] fp32
    eps, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    mask, row = columns < D, token * D + columns
    values = tl.load(x + row, mask=mask, other=0.0)
    if update is not None:
        values = (values.to(tl.float32) + tl.load(update + row, mask=mask, other=0.0).to(tl.float32)).to(values.dtype)
        tl.store(y + row, values, mask=mask)
    values = values.to(tl.float32)
    s = tl.rsqrt(tl.sum(values * values, 0) / D + eps)
    tl.store(scale + token, s)
    tl.store(out + row, weighted(values * s, weight + columns, mask).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    grad_y, grad, y, weight, scale,  # [t, d] or None, [t, d], [t, d], [d], [t] fp32; contiguous
    grad_x, partial,  # written: [t, d], and sums for the weight's gradient, [programs, d] fp32
    tokens, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK_D)
    mask = columns < D
    w = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        row, s = tl.cast(token, tl.int64) * D + columns, tl.load(scale + token)
        normal = tl.load(y + row, mask=mask, other=0.0).to(tl.float32) * s
        g = tl.load(grad + row, mask=mask, other=0.0).to(tl.float32)
        total += g * normal
        g *= w
        dx = s * (g - normal * (tl.sum(g * normal, 0) / D))
        if grad_y is not None:
            dx += tl.load(grad_y + row, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + row, dx.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0) * D + columns, total, mask=mask)


def forward(x_td: Tensor, update_td: Tensor | None, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.norm.forward` in one kernel; inputs contiguous."""
    y_td, out_td = x_td if update_td is None else torch.empty_like(x_td), torch.empty_like(x_td)
    scale_t1 = x_td.new_empty(len(x_td), 1, dtype=torch.float32)
    if len(x_td):
        _forward[(len(x_td),)](x_td, update_td, weight_d, y_td, out_td, scale_t1, eps, **_constants(weight_d))
    return y_td, out_td, scale_t1


def backward(
    grad_y_td: Tensor | None, grad_td: Tensor, y_td: Tensor, weight_d: Tensor, scale_t1: Tensor
) -> tuple[Tensor, Tensor]:
    """`kernels.norm.backward` in one kernel and a sum."""
    grad_y_td, grad_td = grad_y_td if grad_y_td is None else grad_y_td.contiguous(), grad_td.contiguous()
    grad_x_td, tokens = torch.empty_like(y_td), len(y_td)
    partial = y_td.new_empty(min(tokens, PROGRAMS), len(weight_d), dtype=torch.float32)
    if tokens:
        _backward[(len(partial),)](
            grad_y_td, grad_td, y_td, weight_d, scale_t1, grad_x_td, partial, tokens, **_constants(weight_d)
        )
    return grad_x_td, partial.sum(0).to(weight_d.dtype)


def _constants(weight_d: Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(len(weight_d))
    return {"D": len(weight_d), "BLOCK_D": block, "num_warps": min(max(block // 512, 1), 16)}
