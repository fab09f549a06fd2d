"""Rotary position embedding of queries and keys, also with the cache's write of keys and values, in one Triton kernel.

For each pair (x_i, x_{i + d/2}) of a query or key at a position with angle a_i, in fp32:

    y_i = x_i cos a_i - x_{i + d/2} sin a_i     y_{i + d/2} = x_{i + d/2} cos a_i + x_i sin a_i

With a norm, x is first replaced by x weight / sqrt(mean(x^2) + eps), rounded as `model.layers.HeadNorm` does.
A program has one token. Shapes: t tokens, h query heads, k key-value heads, d head_dim, n blocks of s tokens.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor, nn

from kernels.norm_triton import weighted

Rope = tuple[Tensor, Tensor]


@triton.jit
def _rotate(
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


def rotate(x_thd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`kernels.rope.rotate` in one kernel."""
    return _launch(x_thd, x_thd[:, :0], (cos, sin), None, (None, None), None)


def rotate_and_store(
    qk_thd: Tensor, v_tkd: Tensor, rope: Rope, cache: Tensor, slots_tk: Tensor, norm: nn.Module | None = None
) -> Tensor:
    """`kernels.rope.rotate_and_store` in one kernel."""
    return _launch(qk_thd, v_tkd, rope, slots_tk, cache, norm)


def _launch(qk_thd: Tensor, v_tkd: Tensor, rope: Rope, slots_tk: Any, cache: Any, norm: Any) -> Tensor:
    (tokens, heads, d), kv_heads, out_thd = qk_thd.shape, v_tkd.shape[1], qk_thd.new_empty(qk_thd.shape)
    _rotate[(tokens,)](
        qk_thd, v_tkd, *rope, norm and norm.weight, norm.eps if norm else 0.0,
        slots_tk, cache[0], cache[1], out_thd, *qk_thd.stride()[:2], *v_tkd.stride()[:2],
        HEADS=heads - kv_heads, KV_HEADS=kv_heads, D=d,
        BLOCK_HEADS=triton.next_power_of_2(heads), BLOCK_KV=triton.next_power_of_2(kv_heads),
        BLOCK_HALF=triton.next_power_of_2(d // 2), BLOCK_D=triton.next_power_of_2(d), num_warps=4,
    )  # fmt: skip
    return out_thd
