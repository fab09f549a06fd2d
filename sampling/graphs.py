"""Decoding as CUDA graphs: a pass of single tokens, padded to a bucket, is replayed rather than launched op by op.

A step's inputs are copied to fixed addresses; forward pass, sampler and the inputs of the next pass are one graph,
which is replayed for each pass of the step. A bucket is the room for each part of a step. Padding rows hold token 0 in
a spare block, the cache's last.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.metadata import AttentionMetadata, TileSizes, build_tiles
from kernels.paged_triton import DeviceTiles, TritonPagedAttention
from kernels.topp import sample
from model.layers import linear
from model.llama import Llama
from sampling import scheduler

ROWS = 32  # buckets of more than twice as many rows are multiples of it; all other room is in powers of two
LEAST_TILES = 16  # smallest room for tiles: programs of padding exit at once, and fewer sizes are fewer graphs
Drawn = tuple[Tensor, Tensor]  # tokens, int64, and their log-probabilities, fp32, as `sample` returns them


class Inputs(NamedTuple):  # of a pass, in three tensors
    tiles: Tensor  # int32: `kernels.metadata.Tiles`
    tokens: Tensor  # int64 [2, b]: each sequence's last token and seed
    sampling: Tensor  # fp32 [2, b]: temperature and top-p

    @classmethod
    def zeros(cls, sizes: TileSizes, device: torch.device, pinned: bool = False) -> "Inputs":
        shapes = ((sum(sizes.parts),), (2, sizes.tokens), (2, sizes.tokens))
        dtypes = (torch.int32, torch.int64, torch.float32)
        parts = zip(shapes, dtypes, strict=True)
        return cls(*(torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned) for shape, dtype in parts))


def decode(model: Llama, cache: Tensor, inputs: Inputs, sizes: TileSizes) -> Drawn:
    """The next token of each sequence; `inputs` become those of the next pass. A graph captures this: no host sync, no
    shape from data."""
    tiles = DeviceTiles(inputs.tiles, sizes, merges=True)
    (ids_b, seed_b), position_b = inputs.tokens, tiles.positions_t.long()
    logits_bv = model(ids_b, position_b, TritonPagedAttention(cache, tiles), linear)
    temperature_b, top_p_b = inputs.sampling
    drawn = sample(logits_bv, temperature_b, top_p_b, seed_b, position_b + 1)
    ids_b.copy_(drawn[0])
    tiles.positions_t += 1
    return drawn


class Bucket(NamedTuple):  # inputs at fixed addresses, and the function that draws the next tokens and advances them
    host: Inputs  # pinned on CUDA
    device: Inputs
    run: Callable[[], Drawn]


class DecodeGraphs:
    """A graph for each bucket, captured at its first use; without CUDA the same steps run without a graph."""

    def __init__(self, model: Llama, cache: Tensor):
        """`cache`: [layers, 2, blocks, k, s, d], its last block spare."""
        self.model, self.cache = model, cache
        self.buckets: dict[TileSizes, Bucket] = {}
        self.pool: Any = None  # memory that all graphs share, since one runs at a time
        # One stream for all trial runs: libraries keep memory for every stream that they have seen.
        self.stream = torch.cuda.Stream() if cache.is_cuda else None

    def __call__(self, metadata: AttentionMetadata, sequences: Sequence[scheduler.Sequence], passes: int) -> Drawn:
        """The tokens of each pass, [passes, b]; `metadata` of a step that decodes each sequence's last token."""
        config = self.model.config
        tiles = build_tiles(metadata, config.num_attention_heads, config.num_key_value_heads, ahead=passes - 1)
        sizes = bucket(tiles.sizes)
        if sizes not in self.buckets:
            self.buckets[sizes] = self._bucket(sizes)
        fixed, count = self.buckets[sizes], len(sequences)
        integers = tiles.integers(sizes, spare_block=self.cache.shape[2] - 1)
        fixed.host.tiles.copy_(torch.from_numpy(integers))
        tokens = [(s.tokens[-1], s.request.seed) for s in sequences]
        sampling = [(s.request.sampling.temperature, s.request.sampling.top_p) for s in sequences]
        for host, values in ((fixed.host.tokens, tokens), (fixed.host.sampling, sampling)):
            host.zero_()[:, :count] = torch.from_numpy(np.array(values).T)
        for device, host in zip(fixed.device, fixed.host, strict=True):
            device.copy_(host, non_blocking=True)
        drawn = [tuple(x[:count].clone() for x in fixed.run()) for _ in range(passes)]  # the next replay overwrites x
        ids, logprobs = map(torch.stack, zip(*drawn, strict=True))
        return ids, logprobs

    def _bucket(self, sizes: TileSizes) -> Bucket:
        host = Inputs.zeros(sizes, torch.device("cpu"), pinned=self.cache.is_cuda)
        device = Inputs.zeros(sizes, self.cache.device)
        # Tiles of zeros are no work, but their keys go to block 0, where the trial run must not write.
        DeviceTiles(device.tiles, sizes, merges=True).blocks_m.fill_(self.cache.shape[2] - 1)
        run = partial(decode, self.model, self.cache, device, sizes)
        return Bucket(host, device, self._capture(run) if self.cache.is_cuda else run)

    def _capture(self, run: Callable[[], Drawn]) -> Callable[[], Drawn]:
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # an ordinary first run, in which libraries start and kernels compile
            run()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            drawn = run()
        self.pool = self.pool or graph.pool()

        def replay() -> Drawn:
            graph.replay()
            return drawn

        return replay


def bucket(sizes: TileSizes) -> TileSizes:
    """The room for a step of these sizes."""
    tokens, blocks, narrow, wide, entries = map(power_of_two, astuple(sizes))
    if tokens > 2 * ROWS:
        tokens = -(-sizes.tokens // ROWS) * ROWS
    return TileSizes(tokens, blocks, max(narrow, LEAST_TILES), max(wide, LEAST_TILES), entries)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
