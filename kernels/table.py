"""Attention of single tokens over whole block tables, in shapes that depend on nothing but the tables' size.

What `kernels.paged` does for decoding, without reading shared blocks once: no step's content decides a shape, so that
the forward pass can be a CUDA graph.

Shapes: b tokens, one a sequence, h query heads, k key-value heads, g query heads a key-value head, d head_dim, n blocks
of s tokens in a table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.rope import Rope, apply_rope


class TableAttention:
    """One step's attention, callable as `attend` of `model.llama.Llama.forward`."""

    def __init__(self, cache: Tensor, positions_b: Tensor, table_bn: Tensor):
        """`cache`: [layers, 2, blocks, k, s, d]; `positions_b`, `table_bn`: int64."""
        self.cache, self.table_bn = cache, table_bn
        self.kv_heads, size = cache.shape[3:5]
        block_b1 = table_bn.gather(1, (positions_b // size).unsqueeze(1))
        rows_bk = block_b1 * self.kv_heads + torch.arange(self.kv_heads, device=cache.device)
        self.slots = (rows_bk * size + (positions_b % size).unsqueeze(1)).flatten()
        unseen_bs = torch.arange(table_bn.shape[1] * size, device=cache.device) > positions_b.unsqueeze(1)
        zeros = torch.zeros(unseen_bs.shape, dtype=cache.dtype, device=cache.device)
        self.bias_b11s = zeros.masked_fill(unseen_bs, float("-inf")).unsqueeze(1).unsqueeze(1)

    def __call__(self, layer: int, qk_bhd: Tensor, v_bkd: Tensor, rope: Rope) -> Tensor:
        qk_bhd = apply_rope(qk_bhd, rope)
        q_bhd, k_bkd = qk_bhd.split((qk_bhd.shape[1] - self.kv_heads, self.kv_heads), dim=1)
        kv_heads, size, d = self.cache.shape[3:]
        keys, values = self.cache.select(0, layer).unbind(0)  # each [blocks, k, s, d]
        for stored, new in ((keys, k_bkd), (values, v_bkd)):
            stored.view(-1, d).index_copy_(0, self.slots, new.flatten(0, 1))
        k_bksd, v_bksd = (
            x.index_select(0, self.table_bn.flatten())
            .view(len(q_bhd), -1, kv_heads, size, d)
            .transpose(1, 2)
            .flatten(2, 3)
            for x in (keys, values)
        )
        q_bkgd = q_bhd.unflatten(1, (kv_heads, -1))
        return F.scaled_dot_product_attention(q_bkgd, k_bksd, v_bksd, attn_mask=self.bias_b11s).flatten(1, 2)
