"""RMSNorm behind a residual connection, forward and backward, in Triton: `kernels.norm` has the equations.

A program of `_forward` has one token, and normalises each of its heads, or all of it as one. The programs of
`_backward` take tokens in turns, and write sums over their own for the weight's gradient: no atomics.

Shapes: t tokens, h heads, or 1, d head_dim, or hidden_size, p programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 256  # of a backward pass: two a multiprocessor, and their sums are small beside the inputs


@triton.jit
def weighted(x, weights, mask):
    """x, rounded, times the weights, rounded: fp32, with roundings to the weights' dtype."""
    w = tl.load(weights, mask=mask, other=0.0)
    return (x.to(w.dtype).to(tl.float32) * w.to(tl.float32)).to(w.dtype).to(tl.float32)


@triton.jit
def _forward(
    x, update, weight,  # [t, h, d], contiguous but for x_token; its like, contiguous, or None; [h, d]; all of one dtype
    y, out, scale,  # written, contiguous: [t, h, d], only with an update; [t, h, d]; s, [t, h] fp32
    x_token, eps, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token, head, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_D)[None, :]
    mask, offsets = (head[:, None] < HEADS) & (column < D), head[:, None] * D + column
    row = token * (HEADS * D) + offsets
    values = tl.load(x + token * x_token + offsets, mask=mask, other=0.0)
    if update is not None:
        values = (values.to(tl.float32) + tl.load(update + row, mask=mask, other=0.0).to(tl.float32)).to(values.dtype)
        tl.store(y + row, values, mask=mask)
    values = values.to(tl.float32)
    s = tl.rsqrt(tl.sum(values * values, 1) / D + eps)
    tl.store(scale + token * HEADS + head, s, mask=head < HEADS)
    tl.store(out + row, weighted(values * s[:, None], weight + offsets, mask).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    grad_y, grad, y, weight, scale,  # [t, h, d] or None; [t, h, d]; that but for y_token; [h, d]; [t, h] fp32
    grad_x, partial,  # written: [t, h, d], and sums for the weight's gradient, [p, h, d] fp32
    tokens, y_token, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head, column = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_D)[None, :]
    mask, offsets = (head[:, None] < HEADS) & (column < D), head[:, None] * D + column
    w = tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros_like(w)
    for step in range(tl.program_id(0), tokens, tl.num_programs(0)):
        token = tl.cast(step, tl.int64)
        row = token * (HEADS * D) + offsets
        s = tl.load(scale + token * HEADS + head, mask=head < HEADS, other=0.0)[:, None]
        normal = tl.load(y + token * y_token + offsets, mask=mask, other=0.0).to(tl.float32) * s
        g = tl.load(grad + row, mask=mask, other=0.0).to(tl.float32)
        total += g * normal
        g *= w
        dx = s * (g - normal * (tl.sum(g * normal, 1) / D)[:, None])
        if grad_y is not None:
            dx += tl.load(grad_y + row, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + row, dx.to(grad_x.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0) * (HEADS * D) + offsets, total, mask=mask)


def forward(x_td: Tensor, update_td: Tensor | None, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`kernels.norm.forward` in one kernel, for x [t, d] or [t, h, d]; of each token's part contiguous."""
    y_td, out_td = x_td if update_td is None else x_td.new_empty(x_td.shape), x_td.new_empty(x_td.shape)
    scale_t1 = x_td.new_empty(*x_td.shape[:-1], 1, dtype=torch.float32)
    _forward[(len(x_td),)](
        x_td, update_td, weight_d, y_td, out_td, scale_t1, x_td.stride(0), eps, **_constants(weight_d)
    )
    return y_td, out_td, scale_t1


def backward(
    grad_y_td: Tensor | None, grad_td: Tensor, y_td: Tensor, weight_d: Tensor, scale_t1: Tensor, weighted: bool = True
) -> tuple[Tensor, Tensor | None]:
    """`kernels.norm.backward` in one kernel and a sum."""
    grad_y_td, grad_td = grad_y_td if grad_y_td is None else grad_y_td.contiguous(), grad_td.contiguous()
    grad_x_td, partial = torch.empty_like(grad_td), y_td.new_empty(PROGRAMS, *weight_d.shape, dtype=torch.float32)
    _backward[(PROGRAMS,)](
        grad_y_td, grad_td, y_td, weight_d, scale_t1, grad_x_td, partial, len(y_td), y_td.stride(0),
        **_constants(weight_d),
    )  # fmt: skip
    return grad_x_td, partial.sum(0).to(weight_d.dtype) if weighted else None


def _constants(weight_d: Tensor) -> dict[str, int]:
    heads, d = weight_d.numel() // weight_d.shape[-1], weight_d.shape[-1]
    rows, columns = triton.next_power_of_2(heads), triton.next_power_of_2(d)
    warps = min(max(rows * columns // 256, 1), 16)
    return {"HEADS": heads, "D": d, "BLOCK_HEADS": rows, "BLOCK_D": columns, "num_warps": warps}
