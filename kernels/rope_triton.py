"""Rotary position embedding of queries and keys in Triton: in the engine with the cache's write of keys and values in
one kernel, in training forward and backward.

For each pair (x_i, x_{i + d/2}) of a query or key at a position with angle a_i, in fp32:

    y_i = x_i cos a_i - x_{i + d/2} sin a_i     y_{i + d/2} = x_{i + d/2} cos a_i + x_i sin a_i

With a norm, x is first replaced by x weight / sqrt(mean(x^2) + eps), rounded as `model.layers.HeadNorm` does; for its
gradients see `kernels.norm`. A program has one token, or in a backward pass every so many-th. Shapes: t tokens, h query
heads, k key-value heads, d head_dim, n blocks of s tokens, p programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from kernels.norm_triton import PROGRAMS, weighted
from kernels.rope import Rope


@triton.jit
def _forward(
    qk, v,  # [t, h + k, d], [t, k, d], contiguous in d; bf16, fp16 or fp32
    cos, sin,  # [t, d] fp32; the first half of sin is negated
    norm, eps,  # [2 d]: the norm's weight, of queries and of keys; or None
    slots,  # [t, k] int64: rows of keys and values seen as [n k s, d]; or None, and nothing is stored
    keys, values, out,  # written: [n, k, s, d] twice, [t, h + k, d], contiguous, like qk
    qk_token, qk_head, v_token, v_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, half = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_HALF)
    in_half = half < D // 2
    c = tl.load(cos + token * D + half, mask=in_half, other=0.0)
    s = tl.load(sin + token * D + D // 2 + half, mask=in_half, other=0.0)
    mask = (head[:, None] < HEADS + KV_HEADS) & in_half[None, :]
    x = qk + token * qk_token + head[:, None] * qk_head + half[None, :]
    x1 = tl.load(x, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(x + D // 2, mask=mask, other=0.0).to(tl.float32)
    if norm is not None:
        scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / D + eps)[:, None]
        weight = norm + tl.where(head < HEADS, 0, D)[:, None] + half[None, :]
        x1, x2 = weighted(x1 * scale, weight, mask), weighted(x2 * scale, weight + D // 2, mask)
    y1 = (x1 * c[None, :] - x2 * s[None, :]).to(out.dtype.element_ty)
    y2 = (x2 * c[None, :] + x1 * s[None, :]).to(out.dtype.element_ty)
    y = out + token * ((HEADS + KV_HEADS) * D) + head[:, None] * D + half[None, :]
    tl.store(y, y1, mask=mask)
    tl.store(y + D // 2, y2, mask=mask)
    if slots is not None:
        is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
        key_slot = tl.load(slots + token * KV_HEADS + head - HEADS, mask=is_key, other=0)
        stored = keys + (key_slot * D)[:, None] + half[None, :]
        tl.store(stored, y1, mask=is_key[:, None] & in_half[None, :])
        tl.store(stored + D // 2, y2, mask=is_key[:, None] & in_half[None, :])
        kv_head, columns = tl.arange(0, BLOCK_KV), tl.arange(0, BLOCK_D)
        mask = (kv_head[:, None] < KV_HEADS) & (columns[None, :] < D)
        value = tl.load(v + token * v_token + kv_head[:, None] * v_head + columns[None, :], mask=mask, other=0.0)
        value_slot = tl.load(slots + token * KV_HEADS + kv_head, mask=kv_head < KV_HEADS, other=0)
        tl.store(values + (value_slot * D)[:, None] + columns[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    grad, qk,  # [t, h + k, d], contiguous, and the input, only with a norm
    cos, sin, norm, eps,  # as above
    grad_qk, partial,  # written: [t, h + k, d], contiguous; sums for the weight's gradient, [p, h + k, d] fp32
    tokens, qk_token, qk_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    head, half = tl.arange(0, BLOCK_HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    in_half, mask = half < D // 2, (head < HEADS + KV_HEADS) & (half < D // 2)
    offsets = head * D + half
    if norm is not None:
        weight = norm + tl.where(head < HEADS, 0, D) + half
        w1 = tl.load(weight, mask=mask, other=0.0).to(tl.float32)
        w2 = tl.load(weight + D // 2, mask=mask, other=0.0).to(tl.float32)
        total1, total2 = tl.zeros_like(w1), tl.zeros_like(w2)
    for step in range(tl.program_id(0), tokens, tl.num_programs(0)):
        token = tl.cast(step, tl.int64)
        row = token * ((HEADS + KV_HEADS) * D) + offsets
        c = tl.load(cos + token * D + half, mask=in_half, other=0.0)
        s = tl.load(sin + token * D + D // 2 + half, mask=in_half, other=0.0)
        g1 = tl.load(grad + row, mask=mask, other=0.0).to(tl.float32)
        g2 = tl.load(grad + row + D // 2, mask=mask, other=0.0).to(tl.float32)
        g1, g2 = g1 * c + g2 * s, g2 * c - g1 * s
        if norm is not None:
            x = qk + token * qk_token + head * qk_head + half
            x1 = tl.load(x, mask=mask, other=0.0).to(tl.float32)
            x2 = tl.load(x + D // 2, mask=mask, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / D + eps)[:, None]
            x1, x2 = x1 * scale, x2 * scale
            total1, total2 = total1 + g1 * x1, total2 + g2 * x2
            g1, g2 = g1 * w1, g2 * w2
            mean = (tl.sum(g1 * x1 + g2 * x2, 1) / D)[:, None]
            g1, g2 = scale * (g1 - x1 * mean), scale * (g2 - x2 * mean)
        tl.store(grad_qk + row, g1.to(grad_qk.dtype.element_ty), mask=mask)
        tl.store(grad_qk + row + D // 2, g2.to(grad_qk.dtype.element_ty), mask=mask)
    if norm is not None:
        sums = partial + tl.program_id(0) * ((HEADS + KV_HEADS) * D) + offsets
        tl.store(sums, total1, mask=mask)
        tl.store(sums + D // 2, total2, mask=mask)


def rotate_and_store(
    qk_thd: Tensor, v_tkd: Tensor, rope: Rope, cache: Tensor, slots_tk: Tensor, norm: nn.Module | None = None
) -> Tensor:
    """`kernels.rope.rotate_and_store` in one kernel."""
    out_thd = qk_thd.new_empty(qk_thd.shape)
    if len(qk_thd):
        _forward[(len(qk_thd),)](
            qk_thd, v_tkd, *rope, norm and norm.weight, norm.eps if norm else 0.0,
            slots_tk, cache[0], cache[1], out_thd, *qk_thd.stride()[:2], *v_tkd.stride()[:2],
            **_constants(qk_thd, v_tkd.shape[1]), BLOCK_KV=triton.next_power_of_2(v_tkd.shape[1]),
            BLOCK_D=triton.next_power_of_2(qk_thd.shape[2]), num_warps=4,
        )  # fmt: skip
    return out_thd


def apply_rope(x_thd: Tensor, rope: Rope, norm: nn.Module | None = None) -> Tensor:
    """`kernels.rope.apply_rope` in one kernel each way; with a norm, of queries and keys."""
    return _Rotation.apply(x_thd, *rope, *((norm.weight, norm.eps, norm.heads) if norm else (None, 0.0, (0, 0))))


class _Rotation(torch.autograd.Function):
    """Keeps nothing of the size of its input; with a norm the input."""

    @staticmethod
    def forward(ctx, qk_thd, cos, sin, norm, eps, heads):
        ctx.save_for_backward(qk_thd if norm is not None else None, cos, sin, norm)
        ctx.eps, ctx.heads, out_thd = eps, heads, qk_thd.new_empty(qk_thd.shape)
        if len(qk_thd):
            _forward[(len(qk_thd),)](
                qk_thd, None, cos, sin, norm, eps, None, None, None, out_thd, *qk_thd.stride()[:2], 0, 0,
                **_constants(qk_thd, heads[1]), BLOCK_KV=1, BLOCK_D=1, num_warps=4,
            )  # fmt: skip
        return out_thd

    @staticmethod
    def backward(ctx, grad_thd):
        (qk_thd, cos, sin, norm), grad_thd = ctx.saved_tensors, grad_thd.contiguous()
        grad_qk_thd, partial, programs = torch.empty_like(grad_thd), None, min(len(grad_thd), PROGRAMS)
        if norm is not None:
            partial = grad_thd.new_empty(programs, *grad_thd.shape[1:], dtype=torch.float32)
        if programs:
            _backward[(programs,)](
                grad_thd, qk_thd, cos, sin, norm, ctx.eps, grad_qk_thd, partial, len(grad_thd),
                *(grad_thd if norm is None else qk_thd).stride()[:2], **_constants(grad_thd, ctx.heads[1]), num_warps=8,
            )  # fmt: skip
        if partial is None:
            return grad_qk_thd, *[None] * 5
        grad_norm = torch.cat([side_hd.sum(0) for side_hd in partial.sum(0).split(ctx.heads)]).to(norm.dtype)
        return grad_qk_thd, None, None, grad_norm, None, None


def _constants(qk_thd: Tensor, kv_heads: int) -> dict[str, int]:
    _, heads, d = qk_thd.shape
    blocks = {"BLOCK_HEADS": triton.next_power_of_2(heads), "BLOCK_HALF": triton.next_power_of_2(d // 2)}
    return {"HEADS": heads - kv_heads, "KV_HEADS": kv_heads, "D": d} | blocks
