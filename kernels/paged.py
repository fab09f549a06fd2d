"""Attention over a paged KV cache: keys and values live in blocks that a table names.

Shapes: t tokens of this step, h query heads, k key-value heads, d head_dim, n blocks of s tokens, b sequences.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.rope import Rope, apply_rope


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence in this step: rows [row, row + end - start), positions [start, end)."""

    row: int
    start: int
    end: int
    blocks: list[int]


class PagedAttention:
    """One step's attention, callable as `attend` of `model.llama.Llama.forward`.

    First the step's keys (rotated) and values are stored, then every token attends to its sequence up to itself.
    """

    def __init__(self, cache: Tensor, spans: list[Span]):
        """`cache`: [2, layers, n, s, k, d]. `spans` cover the step's rows in order, those of a single token first."""
        self.cache = cache
        self.slots_t = torch.cat([self._slots(span) for span in spans])
        size, device = cache.shape[3], cache.device
        self.single = [span for span in spans if span.end - span.start == 1]
        self.several = spans[len(self.single) :]
        if self.single:
            width = max(-(-span.end // size) for span in self.single)
            table = [span.blocks[:width] + [0] * (width - len(span.blocks)) for span in self.single]
            self.table_bn = torch.tensor(table, device=device)
            ends_b = torch.tensor([span.end for span in self.single], device=device)
            unseen_bs = torch.arange(width * size, device=device) >= ends_b[:, None]
            zeros = torch.zeros(unseen_bs.shape, dtype=cache.dtype, device=device)
            self.mask_b11s = zeros.masked_fill(unseen_bs, float("-inf"))[:, None, None]
        self.tables = [torch.tensor(span.blocks, device=device) for span in self.several]

    def _slots(self, span: Span) -> Tensor:
        size = self.cache.shape[3]
        positions = torch.arange(span.start, span.end, device=self.cache.device)
        return torch.tensor(span.blocks, device=self.cache.device)[positions // size] * size + positions % size

    def __call__(self, layer: int, q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, rope: Rope) -> Tensor:
        q_thd, k_tkd = apply_rope(q_thd, rope), apply_rope(k_tkd, rope)
        keys, values = self.cache[0, layer], self.cache[1, layer]
        keys.flatten(0, 1).index_copy_(0, self.slots_t, k_tkd)
        values.flatten(0, 1).index_copy_(0, self.slots_t, v_tkd)
        outputs = []
        if self.single:
            outputs.append(self._attend_single(q_thd[: len(self.single)], keys, values))
        for span, table in zip(self.several, self.tables, strict=True):
            rows = slice(span.row, span.row + span.end - span.start)
            k, v = (c[table].flatten(0, 1)[: span.end] for c in (keys, values))
            outputs.append(attend_causal(q_thd[rows], k, v))
        return torch.cat(outputs)

    def _attend_single(self, q_bhd: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """A token of each sequence over its own blocks, padded to the longest."""
        k_bksd, v_bksd = (c[self.table_bn].flatten(1, 2).transpose(1, 2) for c in (keys, values))
        q_bkgd = q_bhd.unflatten(1, (k_bksd.shape[1], -1))
        return F.scaled_dot_product_attention(q_bkgd, k_bksd, v_bksd, attn_mask=self.mask_b11s).flatten(1, 2)


def attend_causal(q_thd: Tensor, k_skd: Tensor, v_skd: Tensor) -> Tensor:
    """The last t of s tokens attend to the s tokens, each up to itself; [t, h, d]."""
    (t, heads, d), (s, kv_heads, _) = q_thd.shape, k_skd.shape
    q_kgtd = q_thd.view(t, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3)
    k_kgsd, v_kgsd = (x.transpose(0, 1)[:, None].expand(-1, heads // kv_heads, -1, -1) for x in (k_skd, v_skd))
    if t == s:
        out = F.scaled_dot_product_attention(q_kgtd, k_kgsd, v_kgsd, is_causal=True)
    else:
        seen_ts = torch.ones(t, s, dtype=torch.bool, device=q_thd.device).tril(s - t)
        out = F.scaled_dot_product_attention(q_kgtd, k_kgsd, v_kgsd, attn_mask=seen_ts)
    return out.permute(2, 0, 1, 3).reshape(t, heads, d)
