"""Decoding as CUDA graphs: a step of single tokens, padded to a bucket, is replayed rather than launched op by op.

A bucket is a number of sequences and a number of blocks in the longest table, both powers of two. Padding rows hold
token 0 at position 0 in a spare block, the cache's last, which no sequence has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.linear import linear
from kernels.table import TableAttention
from model.llama import Llama


def decode_logits(model: Llama, cache: Tensor, ids_b: Tensor, positions_b: Tensor, table_bn: Tensor) -> Tensor:
    """Logits [b, v] of one token for each sequence. This is what is captured: no host sync, no shape from data."""
    return model(ids_b, positions_b, TableAttention(cache, positions_b, table_bn), linear)


@dataclass
class Bucket:
    """Inputs at fixed addresses, int64, and what computes the logits of whatever they hold."""

    host: Tensor
    """[b, 2 + n]: token, position and table of each sequence; pinned on CUDA."""
    device: Tensor
    run: Callable[[], Tensor]


class DecodeGraphs:
    """A graph for each bucket, captured when first used; off CUDA the same steps without a graph."""

    def __init__(self, model: Llama, cache: Tensor):
        """`cache`: [layers, 2, blocks, k, s, d], its last block spare."""
        self.model, self.cache = model, cache
        self.buckets: dict[tuple[int, int], Bucket] = {}
        self.pool: Any = None
        """The graphs' memory, which they share: one runs at a time."""

    def __call__(self, ids: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]) -> Tensor:
        """Logits [b, v] of token `ids[i]` at `positions[i]` of the sequence with the blocks `tables[i]`."""
        size, spare = self.cache.shape[4], self.cache.shape[2] - 1
        used = [position // size + 1 for position in positions]
        key = (power_of_two(len(ids)), power_of_two(max(used)))
        bucket = self.buckets.get(key) or self.buckets.setdefault(key, self._bucket(*key))
        rows = [
            [token, position, *table[:count], *[spare] * (key[1] - count)]
            for token, position, table, count in zip(ids, positions, tables, used, strict=True)
        ]
        rows += [[0, 0, *[spare] * key[1]]] * (key[0] - len(ids))
        bucket.host.copy_(torch.tensor(rows))
        bucket.device.copy_(bucket.host, non_blocking=True)
        return bucket.run().narrow(0, 0, len(ids))

    def _bucket(self, sequences: int, blocks: int) -> Bucket:
        on_cuda = self.cache.is_cuda
        host = torch.zeros(sequences, 2 + blocks, dtype=torch.int64, pin_memory=on_cuda)
        host[:, 2:] = self.cache.shape[2] - 1
        device = host.to(self.cache.device, copy=True)

        def forward() -> Tensor:
            ids_b, positions_b, table_bn = device.split((1, 1, blocks), dim=1)
            return decode_logits(
                self.model, self.cache, ids_b.squeeze(1), positions_b.squeeze(1), table_bn.contiguous()
            )

        return Bucket(host, device, self._capture(forward) if on_cuda else forward)

    def _capture(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in a first, ordinary run
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = forward()
        self.pool = self.pool or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def power_of_two(number: int) -> int:
    """The smallest one that is not below `number`, which is positive."""
    return 1 << (number - 1).bit_length()
