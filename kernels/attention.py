"""Causal attention over packed sequences: the training path.

Shapes: t tokens of all segments, s segments, h query heads, k key-value heads, d head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import launch
from kernels.launch import Attention
from kernels.rope import Rope, apply_rope
from kernels.transfer import to_device


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
        for length in lengths:
            borders.append(borders[-1] + length)
        ends = borders[1:]
        for i, prefix in enumerate(prefixes):
            if prefix >= 0:
                assert prefixes[prefix] < 0 and all(p == prefix for p in prefixes[prefix + 1 : i]), "not in preorder"
                ends[prefix] = borders[i + 1]
        first = [borders[prefix] if prefix >= 0 else 0 for prefix in prefixes]
        length = [lengths[prefix] if prefix >= 0 else 0 for prefix in prefixes]
        device = device or torch.device("cpu")
        table = to_device(borders + first + length + ends, torch.int32, device)
        return cls(borders, prefixes, table[: len(borders)], table[len(borders) :].view(3, -1))


def varlen_attention(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, segments: Segments) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys that each query sees; [t, h, d] in q's dtype.

    The query heads of one key-value head stand in a dimension of their own, so that keys and values are expanded as
    views.
    """
    (_, heads, d), kv_heads = q_thd.shape, k_tkd.shape[1]
    lengths = [end - start for start, end in zip(segments.borders, segments.borders[1:], strict=False)]
    outputs = []
    parts = [x.split(lengths) for x in (q_thd, k_tkd, v_tkd)]
    for i, prefix in enumerate(segments.prefixes):
        q, k, v = (part[i] for part in parts)
        mask = None
        if prefix >= 0:
            k, v = torch.cat((parts[1][prefix], k)), torch.cat((parts[2][prefix], v))
            mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(lengths[prefix])
        q_kgtd = q.view(-1, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3)
        k_kgtd, v_kgtd = (x.transpose(0, 1)[:, None].expand(-1, heads // kv_heads, -1, -1) for x in (k, v))
        out_kgtd = F.scaled_dot_product_attention(q_kgtd, k_kgtd, v_kgtd, attn_mask=mask, is_causal=mask is None)
        outputs.append(out_kgtd.permute(2, 0, 1, 3).reshape(-1, heads, d))
    return torch.cat(outputs)


class VarlenAttention:
    """Attention for packed training sequences, callable as `attend` of `model.llama.Llama.forward`."""

    def __init__(self, segments: Segments, attention: Attention = "triton"):
        self.segments, self.attention = segments, attention

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope) -> Tensor:
        kv_heads = v_tkd.shape[1]
        q_thd, k_tkd = apply_rope(qk_thd, rope).split((qk_thd.shape[1] - kv_heads, kv_heads), dim=1)
        if launch.use_triton(self.attention, v_tkd):
            from kernels import attention_triton

            return attention_triton.varlen_attention(q_thd, k_tkd, v_tkd, self.segments)
        return varlen_attention(q_thd, k_tkd, v_tkd, self.segments)
