"""Causal attention over packed sequences: the training path.

Shapes: t tokens of all sequences, h query heads, k key-value heads, d head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import launch
from kernels.launch import Attention
from kernels.rope import Rope, apply_rope


def varlen_attention(q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, cu_seqlens: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v within each sequence, causal; [t, h, d] in q's dtype.

    `cu_seqlens`: int32 [sequences + 1], the sequences' borders. The query heads of one key-value head stand in a
    dimension of their own, so that keys and values are expanded as views.
    """
    (_, heads, d), kv_heads = q_thd.shape, k_tkd.shape[1]
    group, lengths = heads // kv_heads, cu_seqlens.diff().tolist()
    outputs = []
    for q, k, v in zip(q_thd.split(lengths), k_tkd.split(lengths), v_tkd.split(lengths), strict=True):
        q_kgtd = q.view(-1, kv_heads, group, d).permute(1, 2, 0, 3)
        k_kgtd = k.transpose(0, 1)[:, None].expand(-1, group, -1, -1)
        v_kgtd = v.transpose(0, 1)[:, None].expand(-1, group, -1, -1)
        out_kgtd = F.scaled_dot_product_attention(q_kgtd, k_kgtd, v_kgtd, is_causal=True)
        outputs.append(out_kgtd.permute(2, 0, 1, 3).reshape(-1, heads, d))
    return torch.cat(outputs)


class VarlenAttention:
    """Attention for packed training sequences, callable as `attend` of `model.llama.Llama.forward`."""

    def __init__(self, cu_seqlens: Tensor, attention: Attention = "triton"):
        """`cu_seqlens`: int32 [sequences + 1], the sequences' borders in the packed tokens."""
        self.cu_seqlens, self.attention = cu_seqlens, attention

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope) -> Tensor:
        kv_heads = v_tkd.shape[1]
        q_thd, k_tkd = apply_rope(qk_thd, rope).split((qk_thd.shape[1] - kv_heads, kv_heads), dim=1)
        if launch.use_triton(self.attention, v_tkd):
            from kernels import attention_triton

            return attention_triton.varlen_attention(q_thd, k_tkd, v_tkd, self.cu_seqlens)
        return varlen_attention(q_thd, k_tkd, v_tkd, self.cu_seqlens)
