"""Exact temperature and top-p sampling without a sort, from a counter-based noise stream.

A token is in the nucleus if the tokens more probable than it hold less than `top_p` of the mass; the sampler draws from
the whole distribution until a draw is in it. The noise of a draw is Philox-4x32-10 (Salmon et al., SC 2011) of (seed,
position, attempt). Shapes: b sequences, v vocabulary, c chunks of the vocabulary, w tokens a chunk.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
CHUNK = 256
CPU_ROWS = 16
ATTEMPTS = 4


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
    """The first 32-bit word of Philox-4x32-10 for four counter words and two key words, each int64 [b]."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = _multiply(MULTIPLIERS[0], c[0])
        high1, low1 = _multiply(MULTIPLIERS[1], c[2])
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + WEYL[0]) & MASK, (k[1] + WEYL[1]) & MASK]
    return c[0]


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32-bit product; a is split, since int64 cannot hold an unsigned 64-bit product."""
    low_part, high_part = (a & 0xFFFF) * b, (a >> 16) * b
    low = (low_part & MASK) + ((high_part & 0xFFFF) << 16)
    high = (high_part >> 16) + (low_part >> 32) + (low >> 32)
    return high & MASK, low & MASK


def uniform(seed_b: Tensor, position_b: Tensor, first_attempt: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), fp64 [b, ATTEMPTS], for each (seed, position) and consecutive attempts."""
    seed, position = seed_b[:, None], position_b[:, None].expand(-1, ATTEMPTS)
    attempt = torch.arange(first_attempt, first_attempt + ATTEMPTS, device=seed.device).expand_as(position)
    counter = (position & MASK, (position >> 32) & MASK, attempt, torch.zeros_like(position))
    return (philox(counter, (seed & MASK, (seed >> 32) & MASK)).double() + 0.5) / 2**32


def sample(
    logits_bv: Tensor, temperature_b: Tensor, top_p_b: Tensor, seed_b: Tensor, position_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row: (ids int64 [b], log-probabilities fp32 [b] at the temperature, before top-p).
    `logits_bv` of any float dtype, computed on in fp32; `temperature_b` 0 is greedy. `seed_b`, `position_b` int64."""
    columns = (logits_bv, temperature_b, top_p_b, seed_b, position_b, uniform(seed_b, position_b))
    # A CPU takes a few rows at a time, so that each pass finds the last pass's results in the processor's cache.
    rows = CPU_ROWS if logits_bv.device.type == "cpu" else len(logits_bv)
    parts = [_sample_rows(*part) for part in zip(*(column.split(rows) for column in columns), strict=True)]
    ids, logprobs = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(logprobs)


def _sample_rows(
    logits_bv: Tensor, temperature_b: Tensor, top_p_b: Tensor, seed_b: Tensor, position_b: Tensor, noise_ba: Tensor
) -> tuple[Tensor, Tensor]:
    """`sample` with the noise of the first attempts, `noise_ba`."""
    greedy_b = temperature_b == 0
    scaled_bv = logits_bv.to(torch.float32, copy=True).div_(torch.where(greedy_b, 1.0, temperature_b)[:, None])
    ids_b = scaled_bv.argmax(-1) if greedy_b.any() else torch.zeros_like(seed_b)
    weight_bv = scaled_bv.softmax(-1)
    chunks_bcw = F.pad(weight_bv, (0, -weight_bv.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK))
    chunk_sum_bc = chunks_bcw.sum(-1).double()
    total_b = chunk_sum_bc.sum(-1)
    pending = (~greedy_b & total_b.isfinite()).nonzero()[:, 0]  # of logits with nan all is nan, the returned value, too
    attempt = 0
    while len(pending):
        if attempt and attempt % ATTEMPTS == 0:
            noise_ba = uniform(seed_b, position_b, attempt)
        drawn_b = _invert(chunks_bcw, chunk_sum_bc, pending, noise_ba[pending, attempt % ATTEMPTS] * total_b[pending])
        ids_b[pending] = drawn_b
        weight_b, total, top_p = weight_bv[pending, drawn_b], total_b[pending], top_p_b[pending]
        # A draw with more mass than top-p cuts off is in the nucleus: all other tokens hold less than top-p.
        pending, weight_b, total, top_p = (
            x[weight_b <= (1 - top_p) * total] for x in (pending, weight_b, total, top_p)
        )
        rows_bcw = chunks_bcw[pending]
        above = (rows_bcw * (rows_bcw > weight_b[:, None, None])).sum(-1).double().sum(-1)
        pending = pending[(above >= top_p * total) & (above > 0)]  # the most probable token is kept, even with top-p 0
        attempt += 1
    return ids_b, (weight_bv.gather(1, ids_b[:, None])[:, 0].log() - total_b.log()).float()


def _invert(chunks_bcw: Tensor, chunk_sum_bc: Tensor, rows: Tensor, target_b: Tensor) -> Tensor:
    """The index at which each row's running sum passes the target: first the chunk, then the token in it."""
    running_bc = chunk_sum_bc[rows].cumsum(-1)
    chunk_b = torch.searchsorted(running_bc, target_b[:, None])[:, 0].clamp(max=running_bc.shape[1] - 1)
    before_b = (running_bc.gather(1, chunk_b[:, None]) - chunk_sum_bc[rows].gather(1, chunk_b[:, None]))[:, 0]
    inside_bw = chunks_bcw[rows, chunk_b].double().cumsum(-1)
    # Rounding may put the target past the chunk's last sum; then the last token with any weight is drawn.
    remainder_b = torch.minimum(target_b - before_b, inside_bw[:, -1])
    return chunk_b * CHUNK + torch.searchsorted(inside_bw, remainder_b[:, None])[:, 0]
