"""Causal attention over packed sequences: the training path.

Shapes: t tokens of all segments, s segments, h query heads, k key-value heads, d head_dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import launch
from kernels.launch import Attention
from kernels.rope import Rope, apply_rope
from kernels.transfer import to_device

ROWS = 256
"""Queries at a time: bounds the memory, and leaves out most keys that come later."""


@dataclass(frozen=True)
class Segments:
    """Which packed tokens see one another.

    A segment is a run of tokens, each of which sees those before it in the segment and, if the segment continues
    another one (its prefix), all of that one. So the tokens that several sequences begin with are computed once:
    prompt, chosen, rejected are three segments, of which the latter two continue the first. Those that continue a
    segment stand right behind it, and a prefix has no prefix itself. A plain sequence is a segment by itself.
    """

    borders: list[int]
    """[s + 1], from 0 to t; segment i has the tokens borders[i] to borders[i + 1] - 1."""
    prefixes: list[int]
    """[s]; the segment that each one continues, or -1."""
    cu_seqlens: Tensor
    """`borders` on the device, int32."""
    reach_3s: Tensor
    """int32 [3, s] on the device: first token and length of each one's prefix, and the token behind the last one that
    sees it, in it or in a segment that continues it."""

    @classmethod
    def make(
        cls, lengths: Sequence[int], prefixes: Sequence[int] | None = None, device: torch.device | None = None
    ) -> "Segments":
        """Segments of these lengths; `prefixes` as above, by default none."""
        prefixes = [-1] * len(lengths) if prefixes is None else list(prefixes)
        borders = [0]
        for count in lengths:
            borders.append(borders[-1] + count)
        ends = borders[1:]
        for i, prefix in enumerate(prefixes):
            if prefix >= 0:
                assert prefixes[prefix] < 0 and all(p == prefix for p in prefixes[prefix + 1 : i]), "not in preorder"
                ends[prefix] = borders[i + 1]
        starts = [borders[prefix] if prefix >= 0 else 0 for prefix in prefixes]
        shared = [lengths[prefix] if prefix >= 0 else 0 for prefix in prefixes]
        table = to_device(borders + starts + shared + ends, torch.int32, device or torch.device("cpu"))
        return cls(borders, prefixes, table[: len(borders)], table[len(borders) :].view(3, -1))

    def ranges(self) -> Iterator[tuple[int, int, range]]:
        """Of each segment that has tokens: the first one, the one behind the last, and the prefix's."""
        for i, prefix in enumerate(self.prefixes):
            if self.borders[i] < self.borders[i + 1]:
                seen = range(self.borders[prefix], self.borders[prefix + 1]) if prefix >= 0 else range(0)
                yield self.borders[i], self.borders[i + 1], seen


def varlen_attention(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys that each query sees; [t, h, d] in q's dtype.

    Scores, weights and their slopes are fp32, of `ROWS` queries at a time; backward computes them again.
    """
    return _VarlenAttention.apply(q_thd, k_tkd, v_tkd, segments)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_thd, k_tkd, v_tkd, segments):
        ctx.save_for_backward(q_thd, k_tkd, v_tkd)
        ctx.segments = segments
        out_thd = torch.empty_like(q_thd, memory_format=torch.contiguous_format)
        for first, last, keys in _blocks(segments):
            k_knd, v_knd = (_rows(x, keys) for x in (k_tkd, v_tkd))
            weights = _weights(_folded(q_thd[first:last], len(k_knd)), k_knd, last - first)
            out_thd[first:last] = _unfolded(torch.bmm(weights.to(v_knd.dtype), v_knd), last - first)
        return out_thd

    @staticmethod
    def backward(ctx, grad_thd):
        """With P the weights and c = 1 / sqrt(d): dv = P^T do, dS = P (do v^T - sum_j P do v^T), dq = c dS k,
        dk = c dS^T q."""
        q_thd, k_tkd, v_tkd = ctx.saved_tensors
        grad_q = torch.empty_like(q_thd, memory_format=torch.contiguous_format)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_tkd, v_tkd))
        for first, last, keys in _blocks(ctx.segments):
            k_knd, v_knd = (_rows(x, keys) for x in (k_tkd, v_tkd))
            q_krd, grad_krd = (_folded(x[first:last], len(k_knd)) for x in (q_thd, grad_thd))
            weights = _weights(q_krd, k_knd, last - first)
            slope = torch.bmm(grad_krd.float() * q_thd.shape[2] ** -0.5, v_knd.float().transpose(1, 2))
            slope.sub_(torch.linalg.vecdot(weights, slope)[..., None]).mul_(weights)
            weights, slope = weights.to(q_thd.dtype), slope.to(q_thd.dtype)
            grad_q[first:last] = _unfolded(torch.bmm(slope, k_knd), last - first)
            for total, rows, columns in ((grad_k, slope, q_krd), (grad_v, weights, grad_krd)):
                part, done = torch.bmm(rows.transpose(1, 2), columns).transpose(0, 1), 0
                for run in keys:
                    total[run.start : run.stop] += part[done : done + len(run)]
                    done += len(run)
        return grad_q, grad_k.to(k_tkd.dtype), grad_v.to(v_tkd.dtype), None


def _blocks(segments: Segments) -> Iterator[tuple[int, int, list[range]]]:
    """Runs of at most `ROWS` queries of one segment, [first, last), and the runs of keys up to the last of them."""
    for start, end, prefix in segments.ranges():
        for first in range(start, end, ROWS):
            last = min(first + ROWS, end)
            yield first, last, [run for run in (prefix, range(start, last)) if len(run)]


def _rows(x_tkd: Tensor, runs: list[range]) -> Tensor:
    """The rows of all runs, [k, n, d]."""
    return torch.cat([x_tkd[run.start : run.stop].transpose(0, 1) for run in runs], dim=1)


def _folded(x_rhd: Tensor, kv_heads: int) -> Tensor:
    """[k, g r, d]: the query heads of one key-value head, g of them, are rows of one product."""
    return x_rhd.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _unfolded(x_krd: Tensor, rows: int) -> Tensor:
    """[r, h, d] again."""
    return x_krd.unflatten(1, (-1, rows)).permute(2, 0, 1, 3).flatten(1, 2)


def _weights(q_krd: Tensor, k_knd: Tensor, rows: int) -> Tensor:
    """softmax(q k^T / sqrt(d)), fp32 [k, g r, n], of `rows` queries a head, the last of which sees all n keys."""
    scores = torch.bmm(q_krd.float() * q_krd.shape[2] ** -0.5, k_knd.float().transpose(1, 2))
    future = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
    scores.unflatten(1, (-1, rows))[..., -rows:].masked_fill_(future, -torch.inf)
    return scores.softmax(-1)


class VarlenAttention:
    """Attention for packed training sequences, callable as `attend` of `model.llama.Llama.forward`."""

    def __init__(self, segments: Segments, attention: Attention = "triton"):
        self.segments, self.attention = segments, attention

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope) -> Tensor:
        kv_heads = v_tkd.shape[1]
        q_thd, k_tkd = apply_rope(qk_thd, rope).split((qk_thd.shape[1] - kv_heads, kv_heads), dim=1)
        v_tkd = v_tkd.contiguous()  # else backward would keep the unrotated queries and keys beside it
        if launch.use_triton(self.attention, v_tkd):
            from kernels import attention_triton

            return attention_triton.varlen_attention(q_thd, k_tkd, v_tkd, self.segments)
        return varlen_attention(q_thd, k_tkd, v_tkd, self.segments)
