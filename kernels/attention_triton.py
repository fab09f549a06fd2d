"""Causal attention over packed segments, forward and backward, in Triton (FlashAttention-2, arXiv 2307.08691).

Query i sees the keys j <= i of its own segment and all keys of the segment's prefix (`kernels.segments`). With scale
c = 1 / sqrt(d) and j over the keys that i sees:

    S_ij = c q_i . k_j     L_i = log sum_j exp S_ij     P_ij = exp(S_ij - L_i)     o_i = sum_j P_ij v_j

and for an incoming gradient do, with D_i = do_i . o_i and i over the queries that see j:

    dv_j = sum_i P_ij do_i     dS_ij = P_ij (do_i . v_j - D_i)     dq_i = c sum_j dS_ij k_j     dk_j = c sum_i dS_ij q_i

Tiling. A program of `_forward` and `_backward_queries` has BLOCK_M queries of one head and walks over the keys of the
prefix, then of its own segment up to its last query, in steps of BLOCK_N. A program of `_backward_keys` has BLOCK_N
keys of one key-value head and walks over the queries of its group's heads in steps of BLOCK_M: no atomics. These
queries are one range of tokens, since continuations stand directly behind their prefix; so one test, key <= query,
masks prefix and segment. The tiles of segment s begin at cu_seqlens[s] // BLOCK + s, which leaves room for one partly
filled tile in each, so the number of programs follows from shapes alone. `do_not_specialize` lists what differs from
batch to batch, so that no batch causes a compilation.

Shapes: t tokens of all segments, s segments, h query heads, k key-value heads, d head_dim.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import launch
from kernels.launch import Launch
from kernels.segments import Segments

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

# Tiles by target and largest head size. Those of 80 also fit cards with 99 KiB of shared memory.
FORWARD = {
    80: {64: Launch(128, 32, 4, 3), 128: Launch(128, 32, 8, 3), 256: Launch(64, 32, 8, 2)},
    90: {64: Launch(128, 128, 8, 3), 128: Launch(128, 128, 8, 2), 256: Launch(64, 64, 8, 2)},
    100: {64: Launch(128, 128, 8, 3), 128: Launch(128, 128, 8, 2), 256: Launch(128, 64, 8, 2)},
}
BACKWARD_KEYS = {
    80: {64: Launch(64, 128, 8, 2), 128: Launch(64, 64, 8, 2), 256: Launch(32, 32, 8, 1)},
    90: {64: Launch(64, 128, 8, 2), 128: Launch(32, 64, 4, 2), 256: Launch(32, 64, 8, 2)},
    100: {128: Launch(64, 128, 8, 2), 256: Launch(32, 64, 8, 2)},
}
BACKWARD_QUERIES = {
    80: {64: Launch(128, 64, 8, 2), 128: Launch(64, 64, 8, 2), 256: Launch(32, 32, 8, 1)},
    90: {128: Launch(64, 64, 4, 2), 256: Launch(64, 32, 8, 2)},
    100: {128: Launch(128, 64, 8, 2), 256: Launch(128, 32, 8, 2)},
}
DELTA_ROWS = 64


@triton.jit
def _segment_of(tile, cu_seqlens, segments, BLOCK: tl.constexpr):
    """A tile's segment: (index, first token, token behind its last, the tile's first token)."""
    low, high = 0, segments
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle
    start = tl.load(cu_seqlens + low)
    return low, start, tl.load(cu_seqlens + low + 1), start + (tile - (start // BLOCK + low)) * BLOCK


@triton.jit
def _load(pointer, first, stride, end, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of the tokens [first, first + BLOCK); zeros from `end` on and beyond d. The first offset needs 64 bits."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    pointers = pointer + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    if D == BLOCK_D:
        return tl.load(pointers, mask=rows[:, None] < end - first, other=0.0)
    return tl.load(pointers, mask=(rows[:, None] < end - first) & (columns[None, :] < D), other=0.0)


@triton.jit
def _store(pointer, first, stride, end, values, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    pointers = pointer + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    mask = (rows[:, None] < end - first) & (columns[None, :] < D)
    tl.store(pointers, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _keys_of(step, prefix_steps, prefix_start, prefix_end, start, end, BLOCK_N: tl.constexpr):
    """(First key of a step, key behind the last of its segment), so that one loop serves prefix and segment."""
    own = step >= prefix_steps
    return tl.where(own, start - prefix_steps * BLOCK_N, prefix_start) + step * BLOCK_N, tl.where(own, end, prefix_end)


@triton.jit
def _up_to(last, COLUMNS: tl.constexpr):
    """Whether j <= last_i for column j of row i: [len(last), COLUMNS]. In halves, because on compute capability 10.0 a
    thread has half a row: so it compares with constants of the code, which take no registers."""
    halves, columns = tl.arange(0, 2) * (COLUMNS // 2), tl.arange(0, COLUMNS // 2)
    up_to = last[:, None, None] - halves[None, :, None] >= columns[None, None, :]
    return up_to.reshape(last.shape[0], COLUMNS)


@triton.jit(do_not_specialize=["segments", "tokens"], do_not_specialize_on_alignment=["reach"])
def _forward(
    q, k, v,  # [t, h, d], [t, k, d], [t, k, d]; bf16, fp16 or fp32
    out, lse,  # written: [t, h, d], contiguous, like q, and L, [h, t] fp32
    cu_seqlens, reach,  # [s + 1], [3, s]; int32
    segments, tokens, scale_log2,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    segment, start, end, m0 = _segment_of(tl.program_id(1), cu_seqlens, segments, BLOCK_M)
    if m0 >= end:
        return
    k += head // GROUP * k_head
    v += head // GROUP * v_head
    m = m0 + tl.arange(0, BLOCK_M)
    queries = _load(q + head * q_head, m0, q_token, end, D, BLOCK_M, BLOCK_D)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    prefix_start, prefix_length = tl.load(reach + segment), tl.load(reach + segments + segment)
    prefix_end, prefix_steps, own_steps = (
        prefix_start + prefix_length,
        prefix_length // BLOCK_N,
        (m0 - start) // BLOCK_N,
    )
    for masked in tl.static_range(2):  # first the steps whose keys all queries see
        if masked:
            prefix_start, start = prefix_start + prefix_steps * BLOCK_N, start + own_steps * BLOCK_N
            prefix_steps = tl.cdiv(prefix_end - prefix_start, BLOCK_N)
            own_steps = tl.cdiv(tl.minimum(m0 + BLOCK_M, end) - start, BLOCK_N)
        for step in range(prefix_steps + own_steps):
            n0, keys_end = _keys_of(step, prefix_steps, prefix_start, prefix_end, start, end, BLOCK_N)
            keys = _load(k, n0, k_token, keys_end, D, BLOCK_N, BLOCK_D)
            values = _load(v, n0, v_token, keys_end, D, BLOCK_N, BLOCK_D)
            scores = tl.dot(queries, keys.T, input_precision="ieee")
            if masked:
                scores = tl.where(_up_to(tl.minimum(m, keys_end - 1) - n0, BLOCK_N), scores, -float("inf"))
            # Every query sees the first key of its prefix and of its segment: the maximum is finite from step 0 on.
            new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
            weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
            rescale = tl.exp2(peak - new_peak)
            acc = tl.dot(weights.to(values.dtype), values, acc * rescale[:, None], input_precision="ieee")
            total = total * rescale + tl.sum(weights, 1)
            peak = new_peak
    _store(out + head * D, m0, out_token, end, acc / total[:, None], D, BLOCK_M, BLOCK_D)
    tl.store(lse + head.to(tl.int64) * tokens + m, (peak + tl.log2(total)) / LOG2_E, mask=m < end)


@triton.jit(do_not_specialize=["tokens"])
def _backward_delta(
    out, grad_out, delta,  # [t, h, d], [t, h, d], and written: D, [h, t] fp32
    tokens, out_token, grad_token, grad_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    m0 = tl.program_id(1) * BLOCK_M
    m = m0 + tl.arange(0, BLOCK_M)
    o = _load(out + head * D, m0, out_token, tokens, D, BLOCK_M, BLOCK_D).to(tl.float32)
    do = _load(grad_out + head * grad_head, m0, grad_token, tokens, D, BLOCK_M, BLOCK_D).to(tl.float32)
    tl.store(delta + head.to(tl.int64) * tokens + m, tl.sum(o * do, 1), mask=m < tokens)


@triton.jit(do_not_specialize=["segments", "tokens"], do_not_specialize_on_alignment=["reach"])
def _backward_keys(
    q, k, v, grad_out, lse, delta,  # as above; L and D [h, t] fp32
    grad_k, grad_v,  # written: [t, k, d], contiguous, like k and v
    cu_seqlens, reach,
    segments, tokens, scale, scale_log2,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    segment, _, end, n0 = _segment_of(tl.program_id(1), cu_seqlens, segments, BLOCK_N)
    if n0 >= end:
        return
    keys = _load(k + kv_head * k_head, n0, k_token, end, D, BLOCK_N, BLOCK_D)
    values = _load(v + kv_head * v_head, n0, v_token, end, D, BLOCK_N, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # One loop over heads and queries: nested ones need more registers than there are.
    queries_end = tl.load(reach + 2 * segments + segment)
    steps = tl.cdiv(queries_end - n0, BLOCK_M)
    for step in range(GROUP * steps):
        head, m0 = kv_head * GROUP + step // steps, n0 + step % steps * BLOCK_M
        m, row = m0 + tl.arange(0, BLOCK_M), tl.cast(tokens, tl.int64) * head
        queries = _load(q + head * q_head, m0, q_token, queries_end, D, BLOCK_M, BLOCK_D)
        do = _load(grad_out + head * grad_head, m0, grad_token, queries_end, D, BLOCK_M, BLOCK_D)
        # Beyond the last query L counts as infinite, and so P is zero.
        row_lse = tl.load(lse + row + m, mask=m < queries_end, other=float("inf"))
        row_delta = tl.load(delta + row + m, mask=m < queries_end, other=0.0)
        scores = tl.dot(keys, queries.T, input_precision="ieee") * scale_log2
        weights = tl.exp2(scores - row_lse[None, :] * LOG2_E)
        weights = tl.where(_up_to(n0 + tl.arange(0, BLOCK_N) - m0 - 1, BLOCK_M), 0.0, weights)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision="ieee")
        slope = weights * (tl.dot(values, do.T, input_precision="ieee") - row_delta[None, :])
        dk = tl.dot(slope.to(queries.dtype), queries, dk, input_precision="ieee")
    _store(grad_k + kv_head * D, n0, out_token, end, dk * scale, D, BLOCK_N, BLOCK_D)
    _store(grad_v + kv_head * D, n0, out_token, end, dv, D, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=["segments", "tokens"], do_not_specialize_on_alignment=["reach"])
def _backward_queries(
    q, k, v, grad_out, lse, delta,  # as above
    grad_q,  # written: [t, h, d], contiguous, like q
    cu_seqlens, reach,
    segments, tokens, scale, scale_log2,
    q_token, q_head, k_token, k_head, v_token, v_head, grad_token, grad_head, out_token,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    segment, start, end, m0 = _segment_of(tl.program_id(1), cu_seqlens, segments, BLOCK_M)
    if m0 >= end:
        return
    k += head // GROUP * k_head
    v += head // GROUP * v_head
    m, row = m0 + tl.arange(0, BLOCK_M), head.to(tl.int64) * tokens
    queries = _load(q + head * q_head, m0, q_token, end, D, BLOCK_M, BLOCK_D)
    do = _load(grad_out + head * grad_head, m0, grad_token, end, D, BLOCK_M, BLOCK_D)
    row_lse = tl.load(lse + row + m, mask=m < end, other=float("inf"))
    row_delta = tl.load(delta + row + m, mask=m < end, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    prefix_start, prefix_length = tl.load(reach + segment), tl.load(reach + segments + segment)
    prefix_steps = tl.cdiv(prefix_length, BLOCK_N)
    for step in range(prefix_steps + tl.cdiv(tl.minimum(m0 + BLOCK_M, end) - start, BLOCK_N)):
        n0, keys_end = _keys_of(step, prefix_steps, prefix_start, prefix_start + prefix_length, start, end, BLOCK_N)
        keys = _load(k, n0, k_token, keys_end, D, BLOCK_N, BLOCK_D)
        values = _load(v, n0, v_token, keys_end, D, BLOCK_N, BLOCK_D)
        scores = tl.dot(queries, keys.T, input_precision="ieee") * scale_log2
        weights = tl.exp2(scores - row_lse[:, None] * LOG2_E)
        weights = tl.where(_up_to(tl.minimum(m, keys_end - 1) - n0, BLOCK_N), weights, 0.0)
        slope = weights * (tl.dot(do, values.T, input_precision="ieee") - row_delta[:, None])
        dq = tl.dot(slope.to(keys.dtype), keys, dq, input_precision="ieee")
    _store(grad_q + head * D, m0, out_token, end, dq * scale, D, BLOCK_M, BLOCK_D)


def forward(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """The attention's result [t, h, d] and its log-sum-exps L, fp32 [h, t]. Inputs of one dtype, bf16 or fp16 (fp32 in
    the interpreter), contiguous in d. `UserError` for a head size above 256."""
    (tokens, heads, d), count = q_thd.shape, len(segments.prefixes)
    out_thd, lse_ht = q_thd.new_empty(q_thd.shape), q_thd.new_empty(heads, tokens, dtype=torch.float32)
    tile, constants = _launch(FORWARD, q_thd, k_tkd)
    if tokens:
        _forward[(heads, tokens // tile.m + count)](
            q_thd, k_tkd, v_tkd, out_thd, lse_ht, segments.cu_seqlens, segments.reach_3s, count, tokens,
            d**-0.5 * LOG2_E.value, *_strides(q_thd, k_tkd, v_tkd), out_thd.stride(0), **constants,
        )  # fmt: skip
    return out_thd, lse_ht


def backward(
    grad_thd: Tensor, q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments, out_thd: Tensor, lse_ht: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given the gradient of the result."""
    grad_thd = grad_thd if grad_thd.stride(2) == 1 else grad_thd.contiguous()
    (tokens, heads, d), count = q_thd.shape, len(segments.prefixes)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q_thd, k_tkd, v_tkd))
    if not tokens:
        return grad_q, grad_k, grad_v
    delta_ht = torch.empty_like(lse_ht)
    _backward_delta[(heads, triton.cdiv(tokens, DELTA_ROWS))](
        out_thd, grad_thd, delta_ht, tokens, out_thd.stride(0), *_strides(grad_thd),
        D=d, BLOCK_D=max(16, triton.next_power_of_2(d)), BLOCK_M=DELTA_ROWS,
    )  # fmt: skip
    inputs = (q_thd, k_tkd, v_tkd, grad_thd)
    sizes = (segments.cu_seqlens, segments.reach_3s, count, tokens, d**-0.5, d**-0.5 * LOG2_E.value, *_strides(*inputs))
    tile, constants = _launch(BACKWARD_KEYS, q_thd, k_tkd)
    grid = (k_tkd.shape[1], tokens // tile.n + count)
    _backward_keys[grid](*inputs, lse_ht, delta_ht, grad_k, grad_v, *sizes, grad_k.stride(0), **constants)
    tile, constants = _launch(BACKWARD_QUERIES, q_thd, k_tkd)
    grid = (heads, tokens // tile.m + count)
    _backward_queries[grid](*inputs, lse_ht, delta_ht, grad_q, *sizes, grad_q.stride(0), **constants)
    return grad_q, grad_k, grad_v


def _launch(table: dict[int, dict[int, Launch]], q_thd: Tensor, k_tkd: Tensor) -> tuple[Launch, dict[str, int]]:
    """A kernel's tile, and the constants of its launch."""
    (_, heads, d), kv_heads, tile = q_thd.shape, k_tkd.shape[1], launch.choose(table, q_thd.device, q_thd.shape[2])
    sizes = {"GROUP": heads // kv_heads, "D": d, "BLOCK_D": max(16, triton.next_power_of_2(d))}
    return tile, sizes | {"BLOCK_M": tile.m, "BLOCK_N": tile.n} | tile.options


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]
