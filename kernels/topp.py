"""Exact temperature and top-p sampling in Triton, without a sort, as in `sampling.sampler`.

With x the logits of a row, T its temperature, w[i] = exp((x[i] - max x) / T) and W their sum, a draw is the first i at
which w[0] + ... + w[i] >= u W, with u from Philox-4x32-10 of (seed, position, attempt). It is kept if the tokens more
probable than it hold less than top_p W; else the next attempt draws again. Two cases need no pass over the row: a draw
with w > (1 - top_p) W is kept, and one no more probable than a rejected one is rejected too.

Tiling. A program of the first kernel writes the maxima and sums of m chunks of a row. One of the second has a row: it
draws a chunk from the c sums, then a token of the chunk, and walks the row only if a draw must be tested.

Shapes: b sequences, v vocabulary, c chunks of the vocabulary, m chunks a tile, n tokens a chunk.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox_impl

from kernels import launch
from kernels.attention_triton import LOG2_E
from kernels.launch import Launch

CHUNK = 256
# With 16 warps the second kernel has 8 tokens a thread, so its sums fit the registers.
CHUNK_LAUNCH = Launch(16, CHUNK, warps=4, stages=1)
DRAW_LAUNCH = {target: Launch(16, CHUNK, warps=16, stages=5 if target == 80 else 4) for target in (80, 90, 100)}


@triton.jit
def _chunk_kernel(
    logits, temperature,  # [b, v], any float dtype; [b] fp32
    highest, mass,  # written: each chunk's maximum and sum of exp((x - maximum) / T), [b, c] fp32
    stride, vocabulary, chunks,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunk_m = tl.program_id(1) * M + tl.arange(0, M)
    token_mn = chunk_m[:, None] * N + tl.arange(0, N)[None, :]
    x_mn = tl.load(logits + row * stride + token_mn, mask=token_mn < vocabulary, other=float("-inf")).to(tl.float32)
    highest_m = tl.max(x_mn, 1)
    # The sum of a chunk of -inf alone is 0 with any finite reference, and NaN with its own maximum.
    reference_m = tl.where(highest_m == float("-inf"), 0.0, highest_m)
    mass_m = tl.sum(_weight(x_mn, reference_m[:, None], _rate(tl.load(temperature + row))), 1)
    tl.store(highest + row * chunks + chunk_m, highest_m, mask=chunk_m < chunks)
    tl.store(mass + row * chunks + chunk_m, mass_m, mask=chunk_m < chunks)


@triton.jit
def _draw_kernel(
    logits, temperature, top_p,  # [b, v], any float dtype; [b] fp32
    seed, position,  # [b] int64
    highest, mass,  # as above
    ids, logprobs,  # written: [b], int64 and fp32
    stride, vocabulary, chunks,
    C: tl.constexpr,  # chunks, to the next power of two
    M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_row = logits + row * stride
    t = tl.load(temperature + row)
    p = tl.load(top_p + row)
    rate = _rate(t)
    chunk_c = tl.arange(0, C)
    highest_c = tl.load(highest + row * chunks + chunk_c, mask=chunk_c < chunks, other=float("-inf"))
    mass_c = tl.load(mass + row * chunks + chunk_c, mask=chunk_c < chunks, other=0.0)
    top = tl.max(highest_c, 0)
    mass_c = (mass_c * _weight(highest_c, top, rate)).to(tl.float64)
    running_c = tl.cumsum(mass_c, 0)
    total = tl.sum(mass_c, 0)

    token = tl.full([], 0, tl.int32)
    x_token = top
    if t == 0:
        chunk = _first(highest_c == top, chunk_c, chunks - 1)
        x_n, lane_n = _load_chunk(x_row, chunk, vocabulary, N)
        token = chunk * N + _first(x_n == top, lane_n, N - 1)

    # The loop ends for any input: comparisons with NaN are false, and nothing is above the most probable token.
    pending = t != 0
    attempt = tl.full([], 0, tl.uint32)
    x_rejected = top
    while pending:
        target = _uniform(tl.load(seed + row), tl.load(position + row), attempt) * total
        chunk = _first((running_c >= target) & (mass_c > 0), chunk_c, chunks - 1)
        remainder = target - tl.sum(tl.where(chunk_c < chunk, mass_c, 0.0), 0)
        x_n, lane_n = _load_chunk(x_row, chunk, vocabulary, N)
        w_n = _weight(x_n, top, rate)
        running_n = tl.cumsum(w_n.to(tl.float64), 0)
        # Rounding may put the target past the chunk's last sum; then the last token with any weight is drawn.
        remainder = tl.minimum(remainder, tl.max(tl.where(w_n > 0, running_n, 0.0), 0))
        lane = _first((running_n >= remainder) & (w_n > 0), lane_n, N - 1)
        token = chunk * N + lane
        x_token = tl.max(tl.where(lane_n == lane, x_n, float("-inf")), 0)
        if (attempt == 0) | (x_token > x_rejected):
            pending = _weight(x_token, top, rate) <= (1 - p) * total
            if pending:
                above = _mass_above(x_row, x_token, top, rate, vocabulary, M, N, STAGES)
                pending = (above >= p * total) & (above > 0)
            x_rejected = x_token
        attempt += 1

    tl.store(ids + row, tl.minimum(token, vocabulary - 1).to(tl.int64))
    tl.store(logprobs + row, (x_token - top) / tl.where(t == 0, 1.0, t) - tl.log(total).to(tl.float32))


@triton.jit
def _rate(temperature):
    """log2(e) / T, with T = 1 where it is 0."""
    return tl.div_rn(LOG2_E, tl.where(temperature == 0, 1.0, temperature))


@triton.jit
def _weight(x, highest, rate):
    """exp((x - highest) / T). The difference comes first, because it is exact for logits near the highest."""
    return tl.exp2((x - highest) * rate)


@triton.jit
def _first(condition, index, last):
    """The lowest index, at most `last`, at which the condition holds; else `last`."""
    return tl.min(tl.where(condition, tl.minimum(index, last), last), 0)


@triton.jit
def _load_chunk(x_row, chunk, vocabulary, N: tl.constexpr):
    """The logits of a chunk, fp32 [n], -inf past the end of the vocabulary, and their places in it."""
    lane_n = tl.arange(0, N)
    token_n = chunk * N + lane_n
    return tl.load(x_row + token_n, mask=token_n < vocabulary, other=float("-inf")).to(tl.float32), lane_n


@triton.jit
def _mass_above(x_row, x_token, highest, rate, vocabulary, M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr):
    """The sum, fp64, of the weights of all logits greater than `x_token`."""
    token_mn = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    sum_mn = tl.zeros((M, N), tl.float32)
    for start in tl.range(0, vocabulary, M * N, num_stages=STAGES):
        inside_mn = token_mn < vocabulary - start
        x_mn = tl.load(x_row + start + token_mn, mask=inside_mn, other=float("-inf")).to(tl.float32)
        sum_mn += tl.where(x_mn > x_token, _weight(x_mn, highest, rate), 0.0)
    return tl.sum(tl.sum(sum_mn, 1).to(tl.float64), 0)


@triton.jit
def _uniform(seed, position, attempt):
    """The noise of an attempt: fp64 in (0, 1), from the first word of Philox-4x32-10."""
    word, _, _, _ = philox_impl(
        position.to(tl.uint32), (position >> 32).to(tl.uint32), attempt, tl.zeros_like(attempt),
        seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    return (word.to(tl.float64) + 0.5) * 2.0**-32


def sample(
    logits_bv: Tensor, temperature_b: Tensor, top_p_b: Tensor, seed_b: Tensor, position_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row: (ids int64 [b], log-probabilities fp32 [b] at the temperature, before top-p).

    `temperature_b` and `top_p_b` fp32: temperature 0 is greedy, the lowest index among equals; top-p 0 leaves the most
    probable token and its equals. `seed_b`, `position_b` int64. `ValueError` for rows that are not contiguous.
    """
    rows, vocabulary = logits_bv.shape
    if vocabulary == 0 or (vocabulary > 1 and logits_bv.stride(1) != 1):
        raise ValueError("logits must have a vocabulary, contiguous within a row")
    temperature_b, top_p_b, seed_b, position_b = (x.contiguous() for x in (temperature_b, top_p_b, seed_b, position_b))
    ids_b, logprobs_b = seed_b.new_empty(rows), temperature_b.new_empty(rows)
    if rows == 0:
        return ids_b, logprobs_b
    chunks = triton.cdiv(vocabulary, CHUNK)
    highest_bc, mass_bc = temperature_b.new_empty(2, rows, chunks)
    sizes = (logits_bv.stride(0), vocabulary, chunks)
    first, second = CHUNK_LAUNCH, DRAW_LAUNCH[launch.target(logits_bv.device)]
    grid = (rows, triton.cdiv(chunks, first.m))
    _chunk_kernel[grid](logits_bv, temperature_b, highest_bc, mass_bc, *sizes, M=first.m, N=first.n, **first.options)
    _draw_kernel[(rows,)](
        logits_bv, temperature_b, top_p_b, seed_b, position_b, highest_bc, mass_bc, ids_b, logprobs_b, *sizes,
        C=triton.next_power_of_2(chunks), M=second.m, N=second.n, STAGES=second.stages, **second.options,
    )  # fmt: skip
    return ids_b, logprobs_b
