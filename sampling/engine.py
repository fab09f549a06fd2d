"""The engine: requests in, completions out."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kernels.linear import linear
from kernels.paged import PagedAttention, Span
from model.llama import Llama
from sampling.blocks import BlockPool
from sampling.request import Completion, FinishReason, Request
from sampling.sampler import sample
from sampling.scheduler import Scheduled, Scheduler, Sequence, Step


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
    ):
        config, weight = model.config, model.embed_tokens.weight
        self.model = model
        self.blocks, self.block_size = blocks, block_size
        self.token_budget, self.max_sequences = token_budget, max_sequences
        self.share_prefixes = share_prefixes
        shape = (config.num_hidden_layers, 2, blocks, config.num_key_value_heads, block_size, config.head_dim)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.computed_tokens = 0
        self.preemptions = 0
        self.first_token_seconds: list[float] = []
        """Of each request, from the start of its run to its first token."""

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Complete the requests, each as it ends; starts with an empty cache.

        A prompt that does not fit the context or the cache comes back at once as `too_long`.
        """
        started = time.monotonic()
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
            sources, destinations = (torch.tensor(side, device=device) for side in zip(*step.copies, strict=True))
            self.cache[:, :, destinations] = self.cache[:, :, sources]
        spans: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        row = 0
        for item in step.scheduled:
            spans.append(Span(row, item.start, item.end, item.sequence.blocks))
            ids += item.sequence.tokens[item.start : item.end]
            positions += range(item.start, item.end)
            row += item.end - item.start
            if item.samples:
                last.append(row - 1)
        self.computed_tokens += row
        rows = torch.tensor(last, dtype=torch.int64, device=device)
        logits = self.model(
            torch.tensor(ids, device=device),
            torch.tensor(positions, device=device),
            PagedAttention(self.cache, spans),
            lambda hidden_td, weight_vd: linear(hidden_td[rows], weight_vd),
        )
        return self._draw([item for item in step.scheduled if item.samples], logits)

    def _draw(self, items: list[Scheduled], logits_bv: Tensor) -> list[int]:
        if not items:
            return []
        sequences = [item.sequence for item in items]
        settings = [s.request.sampling for s in sequences]

        def column(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=logits_bv.device)

        ids, logprobs = sample(
            logits_bv,
            column([s.temperature for s in settings], torch.float32),
            column([s.top_p for s in settings], torch.float32),
            column([s.request.seed for s in sequences], torch.int64),
            column([len(s.tokens) for s in sequences], torch.int64),
        )
        for sequence, logprob in zip(sequences, logprobs.tolist(), strict=True):
            sequence.logprob += logprob
        return ids.tolist()


def _finish_reason(sequence: Sequence) -> FinishReason | None:
    if sequence.tokens[-1] in sequence.request.sampling.stop_ids:
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.max_tokens else None
