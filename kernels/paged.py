"""Attention over a paged KV cache: keys and values live in blocks that a table names.

Prefill spans (prompts, or parts of them) attend one by one. Decode tokens attend all together, and a run of blocks that
several of them share is read once for all (`kernels.metadata`). Every run is attended by all its readers, and a
reader's partial results o_j are merged by their log-sum-exps l_j: o = sum_j exp(l_j - l) o_j, l = log sum_j exp(l_j).

Shapes: t tokens of this step, h query heads, k key-value heads, g query heads a key-value head, d head_dim, n blocks of
s tokens in the cache, b decode tokens, p runs of c tokens in one product, r readers of a run, j runs of a token.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.metadata import AttentionMetadata, QuerySpan, SharedRun, batches
from kernels.rope import Rope, rotate_and_store

ALIGNED = 64
"""Alignment of a tensor's memory, in bytes."""


class PagedAttention:
    """One step's attention, callable as `attend` of `model.llama.Llama.forward`.

    First the step's keys (rotated) and values are stored, then every token attends to its sequence up to itself.
    """

    def __init__(self, cache: Tensor, metadata: AttentionMetadata, heads: int):
        """`cache`: [layers, 2, n, k, s, d]; `heads`: h."""
        self.cache = cache
        self.kv_heads, size = cache.shape[3:5]
        slots = [
            span.blocks[i // size] * self.kv_heads * size + i % size for span in metadata.spans for i in span.positions
        ]
        head_k = torch.arange(self.kv_heads, device=cache.device) * size
        self.slots_tk = torch.tensor(slots, device=cache.device)[:, None] + head_k
        self.decode = DecodeAttention(cache, metadata, heads) if metadata.decode else None
        self.prefill = [PrefillAttention(cache, span) for span in metadata.prefill]

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope) -> Tensor:
        cache = self.cache[layer]
        qk_thd = rotate_and_store(qk_thd, v_tkd, rope, cache, self.slots_tk)
        q_thd, k_tkd = qk_thd.split((qk_thd.shape[1] - self.kv_heads, self.kv_heads), dim=1)
        outputs = [self.decode(qk_thd, cache)] if self.decode else []
        outputs += [attend(q_thd, k_tkd, v_tkd, cache) for attend in self.prefill]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class PrefillAttention:
    """Several tokens of one sequence attend to what the cache holds before them and, causally, to themselves."""

    def __init__(self, cache: Tensor, span: QuerySpan):
        self.kv_heads, size = cache.shape[3:5]
        self.span, self.bias_ts = span, None
        if span.start:  # else the step's own keys and values are all there is
            self.rows = _block_rows([span.blocks[: -(-span.end // size)]], cache)
            unseen = torch.ones(len(span.positions), span.end, dtype=torch.bool, device=cache.device)
            self.bias_ts = _bias(unseen.triu_(span.start + 1), cache.dtype)

    def __call__(self, q_thd: Tensor, k_tkd: Tensor, v_tkd: Tensor, cache: Tensor) -> Tensor:
        """[t of the span, h, d]; `q_thd`, `k_tkd`, `v_tkd` of all the step's tokens."""
        rows = slice(self.span.row, self.span.row + len(self.span.positions))
        q_kgtd = q_thd[rows].transpose(0, 1).unflatten(0, (self.kv_heads, -1))
        if self.bias_ts is None:
            k_ksd, v_ksd = k_tkd[rows].transpose(0, 1), v_tkd[rows].transpose(0, 1)
        else:
            k_ksd, v_ksd = _gather(cache, self.rows, self.kv_heads)[:, :, : self.span.end]
        k_kgsd, v_kgsd = (x[:, None].expand(-1, q_kgtd.shape[1], -1, -1) for x in (k_ksd, v_ksd))
        out_kgtd = F.scaled_dot_product_attention(
            q_kgtd, k_kgsd, v_kgsd, attn_mask=self.bias_ts, is_causal=self.bias_ts is None
        )
        return out_kgtd.flatten(0, 1).transpose(0, 1)


class DecodeAttention:
    """Single tokens of many sequences attend; each run of blocks that several of them share is read once.

    Queries, blocks and partial results are rows of matrices, so that one `index_select` gathers those of all runs.
    """

    def __init__(self, cache: Tensor, metadata: AttentionMetadata, heads: int):
        self.batches = [RunBatch(cache, runs, heads) for runs in batches(metadata.shared_runs())]
        self.query_rows = torch.cat([batch.query_rows for batch in self.batches])
        self.block_rows = torch.cat([batch.block_rows for batch in self.batches])
        self.parts_bjh, self.none_bj1 = self._parts(len(metadata.decode), heads, cache)

    def _parts(self, count: int, heads: int, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of each token's partial results, and minus infinity for padding, whose rows are arbitrary."""
        kv_heads, device = cache.shape[3], cache.device
        origins: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        row, group = 0, heads // kv_heads
        for batch in self.batches:
            for run in batch.runs:
                for i, reader in enumerate(run.readers):
                    origins[reader].append((row + i * group, batch.readers * group))
                row += kv_heads * batch.readers * group
        most = max(map(len, origins))
        padded = [parts + parts[:1] * (most - len(parts)) for parts in origins]
        origin_bj11, stride_bj11 = torch.tensor(padded, device=device)[..., None, None].unbind(2)
        head_k1, member_g = torch.arange(kv_heads, device=device)[:, None], torch.arange(group, device=device)
        counts_b1 = torch.tensor([[len(parts)] for parts in origins], device=device)
        none_bj = torch.arange(most, device=device) >= counts_b1
        return (origin_bj11 + stride_bj11 * head_k1 + member_g).flatten(2), _bias(none_bj, torch.float32)[..., None]

    def __call__(self, qk_thd: Tensor, cache: Tensor) -> Tensor:
        """[b, h, d]; the decode tokens are the first b of `qk_thd` [t, h + k, d]."""
        queries = qk_thd.flatten(0, 1).index_select(0, self.query_rows)
        blocks = cache.flatten(0, 2).flatten(1).index_select(0, self.block_rows)
        parts = zip(
            self.batches,
            queries.split([len(batch.query_rows) for batch in self.batches]),
            blocks.split([len(batch.block_rows) for batch in self.batches]),
            strict=True,
        )
        merged = self.parts_bjh.shape[1] > 1
        results = [batch(q, kv, merged) for batch, q, kv in parts]
        output, *statistics = (torch.cat(side) for side in zip(*results, strict=True))
        if not merged:
            return output[self.parts_bjh[:, 0]]
        peak, highest = statistics
        lse = peak - highest.log()
        return merge(output[self.parts_bjh], lse[self.parts_bjh] + self.none_bj1)


class RunBatch:
    """Runs of similar length with a similar number of readers: their attention is one batched product."""

    def __init__(self, cache: Tensor, runs: list[SharedRun], heads: int):
        kv_heads, size = cache.shape[3:5]
        device = cache.device
        self.runs = runs
        self.readers = max(len(run.readers) for run in runs)
        blocks = max(len(run.blocks) for run in runs)
        # Padding may be any block and any reader: it is masked, or its result is never used.
        tables = [run.blocks + run.blocks[:1] * (blocks - len(run.blocks)) for run in runs]
        readers = [run.readers + run.readers[:1] * (self.readers - len(run.readers)) for run in runs]
        readers_p1r1 = torch.tensor(readers, device=device)[:, None, :, None] * (heads + kv_heads)
        heads_k1g = torch.arange(heads, device=device).view(kv_heads, 1, -1)
        self.query_rows = (readers_p1r1 + heads_k1g).flatten()
        self.block_rows = _block_rows(tables, cache)
        tokens_p = torch.tensor([run.tokens for run in runs], device=device).repeat_interleave(kv_heads)
        self.bias_p1c = _bias(torch.arange(blocks * size, device=device) >= tokens_p[:, None, None], torch.float32)

    def __call__(self, queries: Tensor, blocks: Tensor, merged: bool) -> tuple[Tensor, ...]:
        """Outputs, a row for each run, key-value head, reader and query head, in this order. For merging also each
        row's highest score and weight, fp32: log-sum-exp = score - log weight."""
        d = queries.shape[-1]
        q = queries.view(len(self.bias_p1c), -1, d)
        k, v = blocks.view(2, len(q), -1, d)
        scores = torch.add(self.bias_p1c, torch.bmm(q, k.transpose(1, 2)), alpha=d**-0.5)
        weights = scores.softmax(-1)
        out = torch.bmm(weights.to(v.dtype), v).view(-1, d)
        return (out, scores.amax(-1).view(-1), weights.amax(-1).view(-1)) if merged else (out,)


def empty_cache(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: unwritten slots are masked, but must be finite. On a CPU they take memory only when they are written:
    numpy gets zero pages from the system, while `torch.zeros` would write all of them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)


def merge(outputs_bjhd: Tensor, lses_bjh: Tensor) -> Tensor:
    """Each token's result [b, h, d] from its partial results and their log-sum-exps, fp32 (minus infinity: no part)."""
    return (outputs_bjhd * lses_bjh.softmax(1)[..., None]).sum(1).to(outputs_bjhd.dtype)


def _block_rows(tables: list[list[int]], cache: Tensor) -> Tensor:
    """Rows of each table's blocks, for each head, in a layer's cache viewed as [2 n k, s d]; keys first."""
    _, _, blocks, kv_heads, _, _ = cache.shape
    heads = torch.arange(kv_heads, device=cache.device)[:, None]
    rows = (torch.tensor(tables, device=cache.device)[:, None] * kv_heads + heads).flatten()
    return torch.cat((rows, rows + blocks * kv_heads))


def _gather(cache: Tensor, rows: Tensor, count: int) -> Tensor:
    """Keys and values [2, count, tokens, d] of the blocks in `rows` from a layer's cache [2, n, k, s, d]."""
    return cache.flatten(0, 2).flatten(1).index_select(0, rows).view(2, count, -1, cache.shape[-1])


def _bias(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero, and minus infinity where `unseen`."""
    return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, float("-inf"))
