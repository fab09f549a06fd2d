"""Attention over a paged KV cache: keys and values live in blocks that a table names.

Prefill spans attend one by one. Decode tokens attend together: each run of blocks is read once for all of its readers
(`kernels.metadata`), whose partial results o_j are merged by their log-sum-exps l_j: o = sum_j exp(l_j - l) o_j.

Shapes: t tokens of this step, h query heads, k key-value heads, g query heads a key-value head, d head_dim, n blocks of
s tokens in the cache, b decode tokens, p runs of c tokens in one product, r readers of a run, j runs of a token.
"""

import math
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.attention import bounded
from kernels.launch import Attention
from kernels.metadata import AttentionMetadata, QuerySpan, SharedRun, batches
from kernels.rope import Rope, rotate_and_store

ALIGNED = 64  # bytes


class PagedAttention:
    """One step's attention, callable as `attend` of `model.llama.Llama.forward`: it stores the step's keys and values,
    then every token attends to its sequence up to itself."""

    attention: Attention = "sdpa"

    def __init__(self, cache: Tensor, metadata: AttentionMetadata, heads: int):
        """`cache`: [layers, 2, n, k, s, d]; `heads`: h."""
        self.cache = cache
        (self.kv_heads, size), device = cache.shape[3:5], cache.device
        slots = [(span.blocks[i // size] * self.kv_heads, i % size) for span in metadata.spans for i in span.positions]
        row_t1, place_t1 = torch.tensor(slots, device=device).split(1, dim=1)
        self.slots_tk = (row_t1 + torch.arange(self.kv_heads, device=device)) * size + place_t1
        self.prefill = [PrefillAttention(cache, span) for span in metadata.prefill]
        self.batches = [RunBatch(cache, runs, heads) for runs in batches(metadata.shared_runs())]
        parts: list[list[int]] = [[] for _ in metadata.decode]  # each token's rows in the batches' results
        row = 0
        for batch in self.batches:
            for run in batch.runs:
                for i, reader in enumerate(run.readers, start=row):
                    parts[reader].append(i)
                row += batch.readers
        if parts:
            self.parts_bj = _padded(parts).to(device)
            padding_bj = torch.arange(self.parts_bj.shape[1]) >= torch.tensor([len(rows) for rows in parts])[:, None]
            self.padding_bj = torch.where(padding_bj, -torch.inf, 0.0).to(device)

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope, norm: nn.Module | None = None) -> Tensor:
        cache = self.cache[layer]
        qk_thd = rotate_and_store(qk_thd, v_tkd, rope, cache, self.slots_tk, norm)
        q_thd, k_tkd = qk_thd.split((qk_thd.shape[1] - self.kv_heads, self.kv_heads), dim=1)
        outputs = [self._decode(qk_thd, cache)] if self.batches else []
        outputs += [attend(q_thd, k_tkd, v_tkd, cache) for attend in self.prefill]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _decode(self, qk_thd: Tensor, cache: Tensor) -> Tensor:
        """[b, h, d]; the decode tokens are the first b of `qk_thd` [t, h + k, d]."""
        merged = self.parts_bj.shape[1] > 1
        results = [batch(qk_thd, cache, merged) for batch in self.batches]
        output, *lse = (torch.cat(side) for side in zip(*results, strict=True))
        if not merged:
            return output[self.parts_bj[:, 0]]
        weights_bjh = (lse[0][self.parts_bj] + self.padding_bj[..., None]).softmax(1)
        return (output[self.parts_bj] * weights_bjh[..., None]).sum(1).to(output.dtype)


class PrefillAttention:
    """Several tokens of one sequence attend to what the cache holds before them and, causally, to themselves."""

    def __init__(self, cache: Tensor, span: QuerySpan):
        self.kv_heads, size = cache.shape[3:5]
        self.rows, self.end, self.bias_ts = slice(span.row, span.row + len(span.positions)), span.end, None
        if span.start:  # else the step's own keys and values are all there is
            self.block_rows = _block_rows(torch.tensor(span.blocks[: -(-span.end // size)])[None], cache)
            unseen_ts = torch.ones(len(span.positions), span.end, dtype=torch.bool, device=cache.device)
            self.bias_ts = torch.where(unseen_ts.triu_(span.start + 1), -torch.inf, 0.0).to(cache.dtype)

    def __call__(self, q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, cache: Tensor) -> Tensor:
        """[t of the span, h, d]; `q_thd`, `k_tkd`, `v_tkd` of all the step's tokens."""
        q_kgtd = q_thd[self.rows].transpose(0, 1).unflatten(0, (self.kv_heads, -1))
        if self.bias_ts is None:
            k_ksd, v_ksd = (x[self.rows].transpose(0, 1) for x in (k_tkd, v_tkd))
        else:
            k_ksd, v_ksd = _gather(cache, self.block_rows, self.kv_heads)[:, :, : self.end]
        k_kgsd, v_kgsd = (x[:, None].expand(-1, q_kgtd.shape[1], -1, -1) for x in (k_ksd, v_ksd))
        causal = self.bias_ts is None
        plain = q_kgtd.device.type == "cpu" and not bounded(q_kgtd, k_ksd)
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            out_kgtd = F.scaled_dot_product_attention(q_kgtd, k_kgsd, v_kgsd, attn_mask=self.bias_ts, is_causal=causal)
        return out_kgtd.flatten(0, 1).transpose(0, 1)


class RunBatch:
    """Runs of similar length with a similar number of readers: their attention is one batched product."""

    def __init__(self, cache: Tensor, runs: list[SharedRun], heads: int):
        (self.kv_heads, size), device = cache.shape[3:5], cache.device
        # Padding may be any block and any reader: it is masked, or its result is never used.
        tables, readers_pr = (_padded(rows) for rows in ([run.blocks for run in runs], [run.readers for run in runs]))
        self.runs, self.readers = runs, readers_pr.shape[1]
        heads_kg = torch.arange(heads).view(self.kv_heads, 1, -1)
        self.query_rows = (readers_pr[:, None, :, None] * (heads + self.kv_heads) + heads_kg).flatten().to(device)
        self.block_rows = _block_rows(tables, cache)
        tokens_p = torch.tensor([run.tokens for run in runs]).repeat_interleave(self.kv_heads)
        unseen_p1c = torch.arange(tables.shape[1] * size) >= tokens_p[:, None, None]
        self.bias_p1c = torch.where(unseen_p1c, -torch.inf, 0.0).to(device)

    def __call__(self, qk_thd: Tensor, cache: Tensor, merged: bool) -> tuple[Tensor, ...]:
        """Outputs [p r, h, d] and, for merging, their log-sum-exps [p r, h], fp32."""
        q_pmd = qk_thd.flatten(0, 1).index_select(0, self.query_rows).view(len(self.bias_p1c), -1, qk_thd.shape[2])
        k_pcd, v_pcd = _gather(cache, self.block_rows, len(q_pmd))
        scores = torch.add(self.bias_p1c, torch.bmm(q_pmd, k_pcd.transpose(1, 2)), alpha=q_pmd.shape[2] ** -0.5)
        weights = scores.softmax(-1)
        results = [torch.bmm(weights.to(v_pcd.dtype), v_pcd)]
        if merged:
            results.append(scores.amax(-1) - weights.amax(-1).log())  # the highest weight is exp(score - lse)
        split = (len(self.runs), self.kv_heads, self.readers, -1)
        return tuple(x.view(*split, *x.shape[2:]).transpose(1, 2).flatten(2, 3).flatten(0, 1) for x in results)


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: unwritten slots are masked, but must be finite. On a CPU numpy's take memory only when written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)


def _padded(lists: list[list[int]]) -> Tensor:
    """The lists as rows, int64, each filled up with its first number."""
    most = max(map(len, lists))
    return torch.tensor([numbers + numbers[:1] * (most - len(numbers)) for numbers in lists])


def _block_rows(tables: Tensor, cache: Tensor) -> Tensor:
    """Rows of each table's blocks, for each head, in a layer's cache viewed as [2 n k, s d]; keys first."""
    blocks, kv_heads = cache.shape[2:4]
    rows = (tables[:, None] * kv_heads + torch.arange(kv_heads)[:, None]).flatten()
    return torch.cat((rows, rows + blocks * kv_heads)).to(cache.device)


def _gather(cache: Tensor, rows: Tensor, count: int) -> Tensor:
    """Keys and values [2, count, tokens, d] of the blocks in `rows` from a layer's cache [2, n, k, s, d]."""
    return cache.flatten(0, 2).flatten(1).index_select(0, rows).view(2, count, -1, cache.shape[-1])
