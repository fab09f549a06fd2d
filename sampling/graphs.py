"""Decoding as CUDA graphs: a step of single tokens, padded to a bucket, is replayed rather than launched op by op.

A step is its plan (`kernels.plan`), the sequences' last tokens, and what the sampler needs. All of it is copied to
fixed addresses, and forward pass and sampler are one graph. A bucket is the room for each part of a step, in powers of
two. Padding rows hold token 0 at position 0 in a spare block, the cache's last, which no sequence has.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.linear import linear
from kernels.paged_triton import Reads, TritonPagedAttention
from kernels.pieces import Span
from kernels.plan import Sizes, plan_reads
from kernels.topp import sample
from model.llama import Llama
from sampling import scheduler

LEAST_TILES = 16
"""Room for tiles at least: they exit at once, and fewer sizes are fewer graphs."""


Drawn = tuple[Tensor, Tensor]
"""Tokens, int64, and their log-probabilities, fp32, as `sample` gives them."""


@dataclass
class Inputs:
    """A step's inputs in three tensors: the plan int32; token, seed and position int64 [3, b]; temperature and top-p
    fp32 [2, b]."""

    plan: Tensor
    tokens: Tensor
    sampling: Tensor

    @classmethod
    def zeros(cls, sizes: Sizes, device: torch.device, pinned: bool = False) -> "Inputs":
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)

        return cls(
            zeros(torch.int32, sum(sizes.parts)),
            zeros(torch.int64, 3, sizes.tokens),
            zeros(torch.float32, 2, sizes.tokens),
        )

    def copy_(self, other: "Inputs") -> None:
        self.plan.copy_(other.plan, non_blocking=True)
        self.tokens.copy_(other.tokens, non_blocking=True)
        self.sampling.copy_(other.sampling, non_blocking=True)


def decode(model: Llama, cache: Tensor, inputs: Inputs, sizes: Sizes) -> Drawn:
    """The next token of each sequence. This is what is captured: no host sync, no shape from data."""
    reads = Reads.view(inputs.plan, sizes, merges=True)
    ids_b, seed_b, position_b = inputs.tokens.unbind()
    logits_bv = model(ids_b, reads.positions_t.long(), TritonPagedAttention(cache, reads), linear)
    temperature_b, top_p_b = inputs.sampling.unbind()
    return sample(logits_bv, temperature_b, top_p_b, seed_b, position_b)


@dataclass
class Bucket:
    """Inputs at fixed addresses, and what computes the next tokens of whatever they hold."""

    host: Inputs
    """Pinned on CUDA."""
    device: Inputs
    run: Callable[[], Drawn]


class DecodeGraphs:
    """A graph for each bucket, captured when first used; off CUDA the same steps without a graph."""

    def __init__(self, model: Llama, cache: Tensor):
        """`cache`: [layers, 2, blocks, k, s, d], its last block spare."""
        self.model, self.cache = model, cache
        self.buckets: dict[Sizes, Bucket] = {}
        self.pool: Any = None
        """The graphs' memory, which they share: one runs at a time."""
        self.stream = torch.cuda.Stream() if cache.is_cuda else None
        """Of all the trial runs: libraries keep memory for every stream that they have seen."""

    def __call__(self, spans: Sequence[Span], sequences: Sequence[scheduler.Sequence]) -> Drawn:
        """The next token of each sequence, of which `spans` holds the last one."""
        config = self.model.config
        spare, size = self.cache.shape[2] - 1, self.cache.shape[4]
        plan = plan_reads(spans, size, config.num_attention_heads, config.num_key_value_heads)
        sizes = bucket(plan.sizes)
        if sizes not in self.buckets:
            self.buckets[sizes] = self._bucket(sizes)
        found, count = self.buckets[sizes], len(sequences)
        found.host.plan.copy_(torch.tensor(plan.integers(sizes, spare), dtype=torch.int32))
        tokens = [(s.tokens[-1], s.request.seed, len(s.tokens)) for s in sequences]
        sampling = [(s.request.sampling.temperature, s.request.sampling.top_p) for s in sequences]
        for host, values in ((found.host.tokens, tokens), (found.host.sampling, sampling)):
            host.zero_()[:, :count] = torch.tensor(values, dtype=host.dtype).t()
        found.device.copy_(found.host)
        ids, logprobs = found.run()
        return ids[:count], logprobs[:count]

    def _bucket(self, sizes: Sizes) -> Bucket:
        on_cuda = self.cache.is_cuda
        host = Inputs.zeros(sizes, torch.device("cpu"), pinned=on_cuda)
        device = Inputs.zeros(sizes, self.cache.device)
        # Zeros are a plan too: no work, and keys that go to block 0. The first, trial run must not write there.
        Reads.view(device.plan, sizes, merges=True).table_bm.fill_(self.cache.shape[2] - 1)

        def run() -> Drawn:
            return decode(self.model, self.cache, device, sizes)

        return Bucket(host, device, self._capture(run) if on_cuda else run)

    def _capture(self, run: Callable[[], Drawn]) -> Callable[[], Drawn]:
        stream = self.stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up, and kernels compile, in a first, ordinary run
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            drawn = run()
        self.pool = self.pool or graph.pool()

        def replay() -> Drawn:
            graph.replay()
            return drawn

        return replay


def bucket(sizes: Sizes) -> Sizes:
    """The room for a step of these sizes."""
    tokens, tables, blocks, narrow, wide, entries = map(power_of_two, astuple(sizes))
    return Sizes(tokens, tables, blocks, max(narrow, LEAST_TILES), max(wide, LEAST_TILES), entries)


def power_of_two(number: int) -> int:
    """The smallest one that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
