"""Exact temperature and top-p sampling without a sort, from a counter-based noise stream.

A token is in the nucleus when the tokens more probable than it hold less than `top_p` of the mass (tokens of equal
probability are in or out together). So: draw from the whole distribution, keep the draw when it is in the nucleus,
else draw again. What is kept is distributed exactly as the renormalised nucleus, and a redraw happens with the mass
that top-p cuts off, 1 - p at most.

The noise of a draw is Philox-4x32-10 (Salmon et al., SC 2011) of (seed, position, attempt): no draw depends on the
batch, the rank or the order.

Shapes: b sequences, v vocabulary, c chunks of the vocabulary, w tokens a chunk.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
CHUNK = 256


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
    """High and low 32 bits of a 32-bit product; int64 holds no unsigned 64-bit one, so a goes in halves."""
    low_part, high_part = (a & 0xFFFF) * b, (a >> 16) * b
    low = (low_part & MASK) + ((high_part & 0xFFFF) << 16)
    high = (high_part >> 16) + (low_part >> 32) + (low >> 32)
    return high & MASK, low & MASK


def uniform(seed_b: Tensor, position_b: Tensor, attempt: int) -> Tensor:
    """Uniform numbers in (0, 1), fp64 [b], of each (seed, position, attempt)."""
    zero = torch.zeros_like(position_b)
    counter = (position_b & MASK, (position_b >> 32) & MASK, zero + attempt, zero)
    return (philox(counter, (seed_b & MASK, (seed_b >> 32) & MASK)).double() + 0.5) / 2**32


def sample(
    logits_bv: Tensor, temperature_b: Tensor, top_p_b: Tensor, seed_b: Tensor, position_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row: (ids int64 [b], log-probabilities fp32 [b] at the temperature, before top-p).

    `logits_bv` fp32; `temperature_b` 0 means greedy. `seed_b`, `position_b` int64.
    """
    greedy_b = temperature_b == 0
    scaled_bv = logits_bv / torch.where(greedy_b, 1.0, temperature_b)[:, None]
    maximum_b, best_b = scaled_bv.max(dim=-1)
    weight_bv = (scaled_bv - maximum_b[:, None]).exp_()
    chunks_bcw = F.pad(weight_bv, (0, -weight_bv.shape[1] % CHUNK)).unflatten(1, (-1, CHUNK))
    chunk_sum_bc = chunks_bcw.sum(-1).double()
    total_b = chunk_sum_bc.sum(-1)
    ids_b = best_b.clone()
    pending = (~greedy_b).nonzero()[:, 0]
    attempt = 0
    while len(pending):
        target_b = uniform(seed_b[pending], position_b[pending], attempt) * total_b[pending]
        drawn_b = _invert(chunks_bcw, chunk_sum_bc, pending, target_b)
        drawn_weight_b = weight_bv[pending, drawn_b]
        rows_bv = weight_bv if len(pending) == len(weight_bv) else weight_bv[pending]
        above_b = torch.where(rows_bv > drawn_weight_b[:, None], rows_bv, 0.0).sum(-1)
        ids_b[pending] = drawn_b
        pending = pending[above_b >= top_p_b[pending] * total_b[pending]]
        attempt += 1
    logprob_b = scaled_bv.gather(1, ids_b[:, None])[:, 0] - maximum_b - total_b.log()
    return ids_b, logprob_b.float()


def _invert(chunks_bcw: Tensor, chunk_sum_bc: Tensor, rows: Tensor, target_b: Tensor) -> Tensor:
    """The index at which each row's running sum passes the target: the chunk first, then within it."""
    running_bc = chunk_sum_bc[rows].cumsum(-1)
    chunk_b = torch.searchsorted(running_bc, target_b[:, None])[:, 0].clamp(max=running_bc.shape[1] - 1)
    before_b = (running_bc.gather(1, chunk_b[:, None]) - chunk_sum_bc[rows].gather(1, chunk_b[:, None]))[:, 0]
    inside_bw = chunks_bcw[rows, chunk_b].double().cumsum(-1)
    # Rounding may put the target past the chunk's last sum: then the last token that has any weight.
    remainder_b = torch.minimum(target_b - before_b, inside_bw[:, -1])
    return chunk_b * CHUNK + torch.searchsorted(inside_bw, remainder_b[:, None])[:, 0]
