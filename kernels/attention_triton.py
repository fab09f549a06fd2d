"""Causal attention over packed sequences, forward and backward, in Triton (FlashAttention-2, arXiv 2307.08691).

Within each sequence, with scale c = 1 / sqrt(d) and query i seeing the keys j <= i:

    S_ij = c q_i . k_j     L_i = log sum_j exp S_ij     P_ij = exp(S_ij - L_i)     o_i = sum_j P_ij v_j

and for an incoming gradient do, with D_i = do_i . o_i:

    dv_j = sum_i P_ij do_i     dS_ij = P_ij (do_i . v_j - D_i)     dq_i = c sum_j dS_ij k_j     dk_j = c sum_i dS_ij q_i

Neither S nor P is ever stored: forward keeps a running maximum and sum in fp32 while it walks over the keys, backward
computes P again from L. Products take the inputs' dtype and are summed in fp32.

Tiling. A program of `_forward` and `_backward_queries` has BLOCK_M queries of one head and walks over the keys up to
its last query's, in steps of BLOCK_N. A program of `_backward_keys` has BLOCK_N keys of one key-value head and walks
over the queries of all heads in its group, in steps of BLOCK_M, so that dk and dv are sums in registers: no atomics,
the same bits every time. Which sequence a tile belongs to is found by bisection in `cu_seqlens`: the tiles of
sequence s begin at cu_seqlens[s] // BLOCK + s, which leaves room for a partly filled one in each. So the number of
programs follows from shapes alone, and the host never waits for the lengths.

`do_not_specialize` names what differs from batch to batch, so that no batch is the first of its kind to be compiled
for.

Shapes: t tokens of all sequences, s sequences, h query heads, k key-value heads, d head_dim.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import launch
from kernels.launch import Launch

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

# Tiles by target and by the head size up to which they serve. 80's fit cards with 99 KiB of shared memory, too.
FORWARD = {
    80: {64: Launch(128, 64, 4, 2), 128: Launch(128, 64, 8, 3)},
    90: {64: Launch(128, 128, 8, 3), 128: Launch(128, 128, 8, 2)},
    100: {64: Launch(128, 128, 8, 3), 128: Launch(128, 128, 8, 2)},
}
BACKWARD_KEYS = {
    80: {64: Launch(64, 128, 8, 2), 128: Launch(64, 64, 8, 2)},
    90: {64: Launch(64, 128, 8, 2), 128: Launch(64, 64, 8, 2)},
    100: {64: Launch(64, 128, 8, 2), 128: Launch(64, 128, 8, 2)},
}
BACKWARD_QUERIES = {
    80: {64: Launch(128, 64, 8, 2), 128: Launch(64, 64, 8, 2)},
    90: {64: Launch(128, 64, 8, 2), 128: Launch(128, 64, 8, 2)},
    100: {64: Launch(128, 64, 8, 2), 128: Launch(128, 64, 8, 2)},
}
DELTA_ROWS = 64


@triton.jit
def _sequence_of(tile, cu_seqlens, sequences, BLOCK: tl.constexpr):
    """The last sequence whose first tile is not behind `tile`: (its first token, its length, the tile's first row)."""
    low, high = 0, sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle
    start = tl.load(cu_seqlens + low)
    length = tl.load(cu_seqlens + low + 1) - start
    return start.to(tl.int64), length, (tile - (start // BLOCK + low)) * BLOCK


@triton.jit
def _load(pointer, first, stride, length, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [first, first + BLOCK) of a sequence that begins at `pointer`; zeros beyond `length` and beyond d.

    The first row's offset has 64 bits; from there on 32 do, for strides below 2^24."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    pointers = pointer + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    if D == BLOCK_D:
        return tl.load(pointers, mask=first + rows[:, None] < length, other=0.0)
    return tl.load(pointers, mask=(first + rows[:, None] < length) & (columns[None, :] < D), other=0.0)


@triton.jit
def _store(pointer, first, stride, length, values, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    pointers = pointer + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    mask = (first + rows[:, None] < length) & (columns[None, :] < D)
    tl.store(pointers, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _causal(m0, n0, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether query m0 + i sees key n0 + j, [BLOCK_M, BLOCK_N]."""
    return m0 + tl.arange(0, BLOCK_M)[:, None] >= n0 + tl.arange(0, BLOCK_N)[None, :]


@triton.jit(do_not_specialize=["sequences", "tokens"])
def _forward(
    q, k, v,  # [t, h, d], [t, k, d], [t, k, d]; bf16, fp16 or fp32
    out,  # [t, h, d], contiguous, like q
    lse,  # [h, t] fp32: L
    cu_seqlens,  # [s + 1] int32
    sequences, tokens, scale_log2,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    start, length, m0 = _sequence_of(tl.program_id(1), cu_seqlens, sequences, BLOCK_M)
    if m0 >= length:
        return
    q += start * q_token + head * q_head
    k += start * k_token + head // GROUP * k_head
    v += start * v_token + head // GROUP * v_head
    m = m0 + tl.arange(0, BLOCK_M)
    queries = _load(q, m0, q_token, length, D, BLOCK_M, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for n0 in range(0, tl.minimum(m0 + BLOCK_M, length), BLOCK_N):
        keys = _load(k, n0, k_token, length, D, BLOCK_N, BLOCK_D)
        values = _load(v, n0, v_token, length, D, BLOCK_N, BLOCK_D)
        scores = tl.dot(queries, keys.T, input_precision="ieee") * scale_log2
        scores = tl.where(_causal(m0, n0, BLOCK_M, BLOCK_N), scores, -float("inf"))
        # Every query sees key 0, which is in the first step, so the maximum is finite from there on.
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        rescale = tl.exp2(peak - new_peak)
        acc = tl.dot(weights.to(values.dtype), values, acc * rescale[:, None], input_precision="ieee")
        total = total * rescale + tl.sum(weights, 1)
        peak = new_peak
    _store(out + start * out_token + head * D, m0, out_token, length, acc / total[:, None], D, BLOCK_M, BLOCK_D)
    tl.store(lse + head.to(tl.int64) * tokens + start + m, (peak + tl.log2(total)) / LOG2_E, mask=m < length)


@triton.jit(do_not_specialize=["tokens"])
def _backward_delta(
    out, grad_out,  # [t, h, d]
    delta,  # [h, t] fp32: D
    tokens, out_token, grad_token, grad_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    m0 = tl.program_id(1) * BLOCK_M
    m = m0 + tl.arange(0, BLOCK_M)
    o = _load(out + head * D, m0, out_token, tokens, D, BLOCK_M, BLOCK_D).to(tl.float32)
    do = _load(grad_out + head * grad_head, m0, grad_token, tokens, D, BLOCK_M, BLOCK_D).to(tl.float32)
    tl.store(delta + head.to(tl.int64) * tokens + m, tl.sum(o * do, 1), mask=m < tokens)


@triton.jit(do_not_specialize=["sequences", "tokens"])
def _backward_keys(
    q, k, v,  # [t, h, d], [t, k, d], [t, k, d]
    grad_out,  # [t, h, d]
    lse, delta,  # [h, t] fp32
    grad_k, grad_v,  # [t, k, d], contiguous, like k and v
    cu_seqlens,  # [s + 1] int32
    sequences, tokens, scale, scale_log2,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    start, length, n0 = _sequence_of(tl.program_id(1), cu_seqlens, sequences, BLOCK_N)
    if n0 >= length:
        return
    keys = _load(k + start * k_token + kv_head * k_head, n0, k_token, length, D, BLOCK_N, BLOCK_D)
    values = _load(v + start * v_token + kv_head * v_head, n0, v_token, length, D, BLOCK_N, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # One loop over heads and queries: nested ones need more registers than there are.
    first_m = n0 // BLOCK_M * BLOCK_M
    steps = tl.cdiv(length - first_m, BLOCK_M)
    for step in range(GROUP * steps):
        head, m0 = kv_head * GROUP + step // steps, first_m + step % steps * BLOCK_M
        m, row = m0 + tl.arange(0, BLOCK_M), tokens * head + start
        queries = _load(q + start * q_token + head * q_head, m0, q_token, length, D, BLOCK_M, BLOCK_D)
        do = _load(grad_out + start * grad_token + head * grad_head, m0, grad_token, length, D, BLOCK_M, BLOCK_D)
        # Beyond the sequence L counts as infinite, and so P is zero.
        row_lse = tl.load(lse + row + m, mask=m < length, other=float("inf"))
        row_delta = tl.load(delta + row + m, mask=m < length, other=0.0)
        scores = tl.dot(keys, queries.T, input_precision="ieee") * scale_log2
        weights = tl.exp2(scores - row_lse[None, :] * LOG2_E)
        weights = tl.where(_causal(m0, n0, BLOCK_M, BLOCK_N).T, weights, 0.0)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision="ieee")
        slope = weights * (tl.dot(values, do.T, input_precision="ieee") - row_delta[None, :])
        dk = tl.dot(slope.to(queries.dtype), queries, dk, input_precision="ieee")
    _store(grad_k + start * out_token + kv_head * D, n0, out_token, length, dk * scale, D, BLOCK_N, BLOCK_D)
    _store(grad_v + start * out_token + kv_head * D, n0, out_token, length, dv, D, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=["sequences", "tokens"])
def _backward_queries(
    q, k, v,  # [t, h, d], [t, k, d], [t, k, d]
    grad_out,  # [t, h, d]
    lse, delta,  # [h, t] fp32
    grad_q,  # [t, h, d], contiguous, like q
    cu_seqlens,  # [s + 1] int32
    sequences, tokens, scale, scale_log2,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    start, length, m0 = _sequence_of(tl.program_id(1), cu_seqlens, sequences, BLOCK_M)
    if m0 >= length:
        return
    k += start * k_token + head // GROUP * k_head
    v += start * v_token + head // GROUP * v_head
    m = m0 + tl.arange(0, BLOCK_M)
    queries = _load(q + start * q_token + head * q_head, m0, q_token, length, D, BLOCK_M, BLOCK_D)
    do = _load(grad_out + start * grad_token + head * grad_head, m0, grad_token, length, D, BLOCK_M, BLOCK_D)
    row = head.to(tl.int64) * tokens + start
    row_lse = tl.load(lse + row + m, mask=m < length, other=float("inf"))
    row_delta = tl.load(delta + row + m, mask=m < length, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for n0 in range(0, tl.minimum(m0 + BLOCK_M, length), BLOCK_N):
        keys = _load(k, n0, k_token, length, D, BLOCK_N, BLOCK_D)
        values = _load(v, n0, v_token, length, D, BLOCK_N, BLOCK_D)
        scores = tl.dot(queries, keys.T, input_precision="ieee") * scale_log2
        weights = tl.exp2(scores - row_lse[:, None] * LOG2_E)
        weights = tl.where(_causal(m0, n0, BLOCK_M, BLOCK_N), weights, 0.0)
        slope = weights * (tl.dot(do, values.T, input_precision="ieee") - row_delta[:, None])
        dq = tl.dot(slope.to(keys.dtype), keys, dq, input_precision="ieee")
    _store(grad_q + start * out_token + head * D, m0, out_token, length, dq * scale, D, BLOCK_M, BLOCK_D)


def varlen_attention(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, cu_seqlens: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v within each sequence, causal; [t, h, d] in q's dtype, differentiable in q, k and v.

    `q_thd`, `k_tkd`, `v_tkd` of one dtype, bf16 or fp16 (fp32 in the interpreter), contiguous in d; `cu_seqlens`: int32
    [s + 1], from 0 to t. Raises `UserError` for a head size above 128.
    """
    return _VarlenAttention.apply(q_thd, k_tkd, v_tkd, cu_seqlens)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_thd, k_tkd, v_tkd, cu_seqlens):
        out_thd, lse_ht = forward(q_thd, k_tkd, v_tkd, cu_seqlens)
        ctx.save_for_backward(q_thd, k_tkd, v_tkd, cu_seqlens, out_thd, lse_ht)
        return out_thd

    @staticmethod
    def backward(ctx, grad_thd):
        return *backward(grad_thd, *ctx.saved_tensors), None


def forward(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The attention's result [t, h, d] and its log-sum-exps L, fp32 [h, t]."""
    (tokens, heads, d), kv_heads = q_thd.shape, k_tkd.shape[1]
    out_thd = torch.empty((tokens, heads, d), dtype=q_thd.dtype, device=q_thd.device)
    lse_ht = torch.empty((heads, tokens), dtype=torch.float32, device=q_thd.device)
    tile = launch.choose(FORWARD, q_thd.device, d)
    sequences = len(cu_seqlens) - 1
    if tokens:
        _forward[(heads, tokens // tile.m + sequences)](
            q_thd, k_tkd, v_tkd, out_thd, lse_ht, cu_seqlens, sequences, tokens, d**-0.5 * LOG2_E.value,
            *q_thd.stride()[:2], *k_tkd.stride()[:2], *v_tkd.stride()[:2], out_thd.stride(0),
            GROUP=heads // kv_heads, D=d, BLOCK_D=launch.padded(d), BLOCK_M=tile.m, BLOCK_N=tile.n, **tile.options,
        )  # fmt: skip
    return out_thd, lse_ht


def backward(
    grad_thd: Tensor, q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, cu_seqlens: Tensor, out_thd: Tensor, lse_ht: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for that of the result."""
    if grad_thd.stride(2) != 1:
        grad_thd = grad_thd.contiguous()
    (tokens, heads, d), kv_heads, device = q_thd.shape, k_tkd.shape[1], q_thd.device
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (q_thd, k_tkd, v_tkd))
    if not tokens:
        return grad_q, grad_k, grad_v
    delta_ht, block_d, sequences = torch.empty_like(lse_ht), launch.padded(d), len(cu_seqlens) - 1
    _backward_delta[(heads, triton.cdiv(tokens, DELTA_ROWS))](
        out_thd, grad_thd, delta_ht, tokens, out_thd.stride(0), *grad_thd.stride()[:2],
        D=d, BLOCK_D=block_d, BLOCK_M=DELTA_ROWS,
    )  # fmt: skip
    common = (q_thd, k_tkd, v_tkd, grad_thd, lse_ht, delta_ht)
    sizes = (cu_seqlens, sequences, tokens, d**-0.5, d**-0.5 * LOG2_E.value)
    strides = [stride for x in (q_thd, k_tkd, v_tkd, grad_thd) for stride in x.stride()[:2]]
    tile = launch.choose(BACKWARD_KEYS, device, d)
    _backward_keys[(kv_heads, tokens // tile.n + sequences)](
        *common, grad_k, grad_v, *sizes, *strides, grad_k.stride(0),
        GROUP=heads // kv_heads, D=d, BLOCK_D=block_d, BLOCK_M=tile.m, BLOCK_N=tile.n, **tile.options,
    )  # fmt: skip
    tile = launch.choose(BACKWARD_QUERIES, device, d)
    _backward_queries[(heads, tokens // tile.m + sequences)](
        *common, grad_q, *sizes, *strides, grad_q.stride(0),
        GROUP=heads // kv_heads, D=d, BLOCK_D=block_d, BLOCK_M=tile.m, BLOCK_N=tile.n, **tile.options,
    )  # fmt: skip
    return grad_q, grad_k, grad_v
