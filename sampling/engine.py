"""The engine: requests in, completions out."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kernels.linear import linear
from kernels.paged import PagedAttention, Span
from model.llama import Llama
from sampling.blocks import BlockPool
from sampling.graphs import DecodeGraphs
from sampling.request import Completion, FinishReason, Request
from sampling.sampler import sample
from sampling.scheduler import Scheduler, Sequence, Step
from sampling.transfer import to_device, to_host


class Engine:
    """Continuous batching of one model over a paged KV cache. The cache serves one set of weights."""

    def __init__(
        self,
        model: Llama,
        *,
        blocks: int,
        block_size: int,
        token_budget: int,
        max_sequences: int,
        share_prefixes: bool = True,
        cuda_graphs: bool = True,
    ):
        config, weight = model.config, model.embed_tokens.weight
        self.model = model
        self.blocks, self.block_size = blocks, block_size
        self.token_budget, self.max_sequences = token_budget, max_sequences
        self.share_prefixes = share_prefixes
        # A block more than the pool knows: there the graphs' padding writes.
        shape = (config.num_hidden_layers, 2, blocks + 1, config.num_key_value_heads, block_size, config.head_dim)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.graphs = DecodeGraphs(model, self.cache) if self.cache.is_cuda and cuda_graphs else None
        self.computed_tokens = 0
        self.preemptions = 0
        self.first_token_seconds: list[float] = []
        """Of each request of the last run, from its start to the request's first token."""

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Complete the requests, each as it ends; starts with an empty cache.

        A prompt that does not fit the context or the cache comes back at once as `too_long`.
        """
        started, self.first_token_seconds = time.monotonic(), []
        pool = BlockPool(self.blocks, self.block_size, self.share_prefixes)
        limit = self.model.config.max_position_embeddings
        scheduler = Scheduler(pool, self.token_budget, self.max_sequences, limit)
        for request in requests:
            if not scheduler.add(request):
                yield Completion(request.id, [], "too_long", 0.0)
        while scheduler.busy:
            step = scheduler.schedule()
            step.scheduled.sort(key=lambda item: item.end - item.start > 1)  # single tokens first
            first = sum(item.samples and item.end == item.sequence.prompt_length for item in step.scheduled)
            drawn = self._forward(step)
            self.first_token_seconds += [time.monotonic() - started] * first
            for sequence in scheduler.complete(step, drawn, lambda s: _finish_reason(s) is not None):
                reason = _finish_reason(sequence)
                assert reason is not None
                yield Completion(sequence.request.id, sequence.completion, reason, sequence.logprob)
        self.preemptions += scheduler.preemptions

    def _forward(self, step: Step) -> list[int]:
        """Compute a step's tokens; returns those drawn, in order of the items that sample."""
        device = self.cache.device
        if step.copies:
            sources, destinations = (to_device(side, torch.int64, device) for side in zip(*step.copies, strict=True))
            self.cache.index_copy_(2, destinations, self.cache.index_select(2, sources))
        self.computed_tokens += sum(item.end - item.start for item in step.scheduled)
        logits = self._logits(step)
        sampling = [item.sequence for item in step.scheduled if item.samples]
        return self._draw(sampling, logits) if sampling else []

    def _logits(self, step: Step) -> Tensor:
        """Logits [b, v] of the items that sample, in order."""
        device = self.cache.device
        sequences = [item.sequence for item in step.scheduled]
        ids = [token for item in step.scheduled for token in item.sequence.tokens[item.start : item.end]]
        if self.graphs and len(ids) == len(sequences) and all(item.samples for item in step.scheduled):
            return self.graphs(ids, [item.start for item in step.scheduled], [s.blocks for s in sequences])
        spans: list[Span] = []
        last: list[int] = []
        row = 0
        for item in step.scheduled:
            spans.append(Span(row, item.start, item.end, item.sequence.blocks))
            row += item.end - item.start
            if item.samples:
                last.append(row - 1)
        positions = [position for span in spans for position in span.positions]
        rows = to_device(last, torch.int64, device)
        return self.model(
            to_device(ids, torch.int64, device),
            to_device(positions, torch.int64, device),
            PagedAttention(self.cache, spans, self.model.config.num_attention_heads),
            lambda hidden_td, weight_vd: linear(hidden_td.index_select(0, rows), weight_vd),
        )

    def _draw(self, sequences: list[Sequence], logits_bv: Tensor) -> list[int]:
        """The sequences' next tokens."""
        settings, device = [s.request.sampling for s in sequences], logits_bv.device
        drawn = sample(
            logits_bv,
            to_device([s.temperature for s in settings], torch.float32, device),
            to_device([s.top_p for s in settings], torch.float32, device),
            to_device([s.request.seed for s in sequences], torch.int64, device),
            to_device([len(s.tokens) for s in sequences], torch.int64, device),
        )
        ids, logprobs = to_host(*drawn)
        for sequence, logprob in zip(sequences, logprobs, strict=True):
            sequence.logprob += logprob
        return ids


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    if sequence.tokens[-1] in sequence.request.sampling.stop_ids:
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.max_tokens else None
