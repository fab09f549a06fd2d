"""h = silu(gate) up, forward and backward, in Triton: `kernels.swiglu` has the equations.

A program has one token and BLOCK_I columns. Shapes: t tokens, i intermediate_size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_I = 1024


@triton.jit
def _activate(
    grad, gate_up,  # [t, i], or None in the forward pass, and [t, 2 i]; contiguous; bf16, fp16 or fp32
    grad_gate_up, out,  # written: [t, 2 i], and h [t, i], which may be in the place of its gradient
    SIZE: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    row, pair, mask = token * SIZE + column, token * 2 * SIZE + column, column < SIZE
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + pair, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + pair + SIZE, mask=mask, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-gate))
    if grad is not None:
        g = tl.load(grad + row, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_gate_up + pair, (g * up * s * (1.0 + gate * (1.0 - s))).to(dtype), mask=mask)
        tl.store(grad_gate_up + pair + SIZE, (g * gate * s).to(dtype), mask=mask)
    tl.store(out + row, (gate * s * up).to(dtype), mask=mask)


def forward(gate_up: Tensor) -> Tensor:
    """`kernels.swiglu.forward` in one kernel."""
    out_ti = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _launch(None, gate_up, None, out_ti)
    return out_ti


def backward(grad_ti: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.swiglu.backward` in one kernel."""
    grad_gate_up = torch.empty_like(gate_up)
    _launch(grad_ti, gate_up, grad_gate_up, grad_ti)
    return grad_gate_up, grad_ti


def _launch(grad_ti: Tensor | None, gate_up: Tensor, grad_gate_up: Tensor | None, out_ti: Tensor) -> None:
    tokens, size = out_ti.shape
    grid = (tokens, triton.cdiv(size, BLOCK_I))
    _activate[grid](grad_ti, gate_up, grad_gate_up, out_ti, SIZE=size, BLOCK_I=BLOCK_I)
