"""h = silu(gate) up, forward and backward, in Triton: `kernels.swiglu` has the equations.

A program has one token and BLOCK_I columns of h. Shapes: t tokens, i intermediate_size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_I = 1024


@triton.jit
def _gate_and_up(gate_up, SIZE: tl.constexpr, BLOCK_I: tl.constexpr):
    """(Offsets of this program's gates in [t, 2 i] and of its h in [t, i], mask, gate, up, sigmoid(gate)); fp32."""
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    row, mask = token * (2 * SIZE) + columns, columns < SIZE
    gate = tl.load(gate_up + row, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row + SIZE, mask=mask, other=0.0).to(tl.float32)
    return row, token * SIZE + columns, mask, gate, up, 1.0 / (1.0 + tl.exp(-gate))


@triton.jit
def _forward(gate_up, out, SIZE: tl.constexpr, BLOCK_I: tl.constexpr):
    """Of [t, 2 i], contiguous, bf16, fp16 or fp32: h [t, i] is written."""
    _, row, mask, gate, up, s = _gate_and_up(gate_up, SIZE, BLOCK_I)
    tl.store(out + row, (gate * s * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward(grad, gate_up, grad_gate_up, out, SIZE: tl.constexpr, BLOCK_I: tl.constexpr):
    """Of [t, i] and [t, 2 i], contiguous: the gradient [t, 2 i] and h [t, i], perhaps in `grad`, are written."""
    pair, row, mask, gate, up, s = _gate_and_up(gate_up, SIZE, BLOCK_I)
    g = tl.load(grad + row, mask=mask, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(grad_gate_up + pair, (g * up * s * (1.0 + gate * (1.0 - s))).to(dtype), mask=mask)
    tl.store(grad_gate_up + pair + SIZE, (g * gate * s).to(dtype), mask=mask)
    tl.store(out + row, (gate * s * up).to(dtype), mask=mask)


def forward(gate_up: Tensor) -> Tensor:
    """`kernels.swiglu.forward` in one kernel."""
    tokens, size = len(gate_up), gate_up.shape[1] // 2
    out_ti = gate_up.new_empty(tokens, size)
    if tokens:
        _forward[(tokens, triton.cdiv(size, BLOCK_I))](gate_up, out_ti, SIZE=size, BLOCK_I=BLOCK_I)
    return out_ti


def backward(grad_ti: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.swiglu.backward` in one kernel."""
    grad_gate_up, (tokens, size) = torch.empty_like(gate_up), grad_ti.shape
    if tokens:
        grid = (tokens, triton.cdiv(size, BLOCK_I))
        _backward[grid](grad_ti, gate_up, grad_gate_up, grad_ti, SIZE=size, BLOCK_I=BLOCK_I)
    return grad_gate_up, grad_ti
