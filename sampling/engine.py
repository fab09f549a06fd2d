"""The engine: requests in, completions out."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from kernels import launch
from kernels.launch import Attention, to_device, to_host
from kernels.metadata import AttentionMetadata
from kernels.paged import PagedAttention, empty_cache
from model.layers import linear
from model.llama import Attend, Llama
from sampling.blocks import BlockPool
from sampling.request import Completion, Request
from sampling.sampler import sample
from sampling.scheduler import PASSES, Scheduler, Sequence, Step
from stages.command import UserError


class Engine:
    """Continuous batching of one model over a paged KV cache."""

    def __init__(
        self,
        model: Llama,
        *,
        num_kv_blocks: int,
        block_size: int,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        share_prefixes: bool = True,
        attention: Attention = "triton",
        cuda_graphs: bool = True,
    ):
        config, weight = model.config, model.embed_tokens.weight
        self.model, self.num_kv_blocks, self.block_size = model, num_kv_blocks, block_size
        self.max_num_batched_tokens, self.max_num_seqs = max_num_batched_tokens, max_num_seqs
        self.share_prefixes = share_prefixes
        # One block more than the pool has: the graphs' padding writes there.
        slots = (config.num_key_value_heads, block_size, config.head_dim)
        self.cache = empty_cache((config.num_hidden_layers, 2, num_kv_blocks + 1, *slots), weight.dtype, weight.device)
        self.paged_attention: Callable[[Tensor, AttentionMetadata, int], Attend] = PagedAttention
        self.sample = sample
        self.graphs: Callable[[AttentionMetadata, list[Sequence], int], tuple[Tensor, Tensor]] | None = None
        if launch.use_triton(attention, self.cache):
            from kernels import paged_triton, topp
            from sampling.graphs import DecodeGraphs

            self.paged_attention, self.sample = paged_triton.TritonPagedAttention.build, topp.sample
            self.graphs = DecodeGraphs(model, self.cache) if cuda_graphs and self.cache.is_cuda else None
        self.max_passes = PASSES if self.graphs else 1
        self.computed_tokens = self.preemptions = 0

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield each request's completion when it ends, a prompt without room as `too_long`. The cache starts empty."""
        pool = BlockPool(self.num_kv_blocks, self.block_size, self.share_prefixes)
        limit = self.model.config.max_position_embeddings
        scheduler = Scheduler(pool, self.max_num_batched_tokens, self.max_num_seqs, limit, self.max_passes)
        for request in requests:
            if max((*request.ids, *request.named), default=0) >= self.model.config.vocab_size:
                raise UserError(f"{request.id}: tokens beyond the model's vocab_size; the tokenizer is another model's")
            if not scheduler.add(request):
                yield Completion(request.id, [], "too_long", 0.0)
        while scheduler.busy:
            step = scheduler.schedule()
            for done in scheduler.complete(step, *self._forward(step)):
                reason = done.finish_reason
                assert reason is not None
                if not math.isfinite(done.logprob):  # as nan makes it in each of the samplers
                    raise UserError(f"{done.request.id}: logits that are not finite; try [model] dtype = float32")
                yield Completion(done.request.id, done.completion, reason, done.logprob, done.probabilities)
        self.preemptions += scheduler.preemptions

    def _forward(self, step: Step) -> list[list]:
        """Compute a step; returns each pass's drawn tokens and their log-probabilities, in order of the items that
        sample."""
        device = self.cache.device
        if step.copies:
            sources, destinations = (to_device(side, torch.int64, device) for side in zip(*step.copies, strict=True))
            self.cache.index_copy_(2, destinations, self.cache.index_select(2, sources))
        self.computed_tokens += step.passes * sum(item.end - item.start for item in step.scheduled)
        sampling = [item.sequence for item in step.scheduled if item.samples]
        named = [i for i, sequence in enumerate(sampling) if sequence.request.named and not sequence.completion]
        early = any(sequence.missing > 0 for sequence in sampling)
        if self.graphs and not step.prefill and len(sampling) == len(step.decode) and not (named or early):
            return to_host(*self.graphs(step.metadata(self.block_size), sampling, step.passes))
        ids = [token for item in step.scheduled for token in item.sequence.tokens[item.start : item.end]]
        ids_t, passes = to_device(ids, torch.int64, device), list[tuple[Tensor, Tensor]]()
        for passed in range(step.passes):
            logits = self._logits(step, step.metadata(self.block_size, passed), ids_t)
            if not sampling:
                return [[], []]
            for i in named if not passed else ():
                named_v = logits[i, list(sampling[i].request.named)].float()
                sampling[i].probabilities = tuple((named_v - logits[i].float().logsumexp(0)).exp().tolist())
            if early:
                self._forbid_stops(sampling, logits, passed)
            passes.append(self._draw(sampling, logits, passed))
            ids_t = passes[-1][0]
        return to_host(*map(torch.stack, zip(*passes, strict=True)))

    def _logits(self, step: Step, metadata: AttentionMetadata, ids_t: Tensor) -> Tensor:
        """Logits [b, v] of the items that sample, in order."""
        spans = zip(metadata.spans, step.scheduled, strict=True)
        last = [span.row + span.end - span.start - 1 for span, item in spans if item.samples]
        positions_t, rows = (to_device(x, torch.int64, self.cache.device) for x in (metadata.positions, last))
        attend = self.paged_attention(self.cache, metadata, self.model.config.num_attention_heads)
        return self.model(ids_t, positions_t, attend, lambda x_td, w_vd: linear(x_td.index_select(0, rows), w_vd))

    def _forbid_stops(self, sequences: list[Sequence], logits_bv: Tensor, passed: int) -> None:
        """Leave no probability to the stop tokens of sequences without their `min_new_tokens`."""
        early = ((i, s.request.sampling.stop_ids) for i, s in enumerate(sequences) if s.missing > passed)
        if stops := [(i, stop) for i, own in early for stop in own]:
            logits_bv[tuple(to_device(x, torch.int64, logits_bv.device) for x in zip(*stops, strict=True))] = -math.inf

    def _draw(self, sequences: list[Sequence], logits_bv: Tensor, passed: int) -> tuple[Tensor, Tensor]:
        """The sequences' next tokens and their log-probabilities, after `passed` passes."""
        settings = [s.request.sampling for s in sequences]
        real = ([s.temperature for s in settings], [s.top_p for s in settings])
        whole = ([s.request.seed for s in sequences], [len(s.tokens) + passed for s in sequences])
        columns = [to_device(column, torch.float32, logits_bv.device) for column in real]
        columns += [to_device(column, torch.int64, logits_bv.device) for column in whole]
        return self.sample(logits_bv, *columns)
