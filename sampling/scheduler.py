"""Which tokens are computed in the next step: continuous batching over a pool of KV-cache blocks. No tensors here.

Where all sequences draw, a step may be several passes: each computes the tokens that the one before has drawn.

Running sequences are scheduled first, in order of arrival, then waiting ones as far as blocks, the token budget and the
number of sequences allow. If no block is left, the youngest running sequence gives up its blocks and waits again; it
keeps its tokens, which are recomputed.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from kernels.metadata import AttentionMetadata, build_metadata
from sampling.blocks import ROOT, BlockPool
from sampling.request import FinishReason, Request


@dataclass(eq=False)
class Sequence:  # a request that waits or runs
    request: Request
    arrival: int
    max_tokens: int  # maximum length of prompt and completion together
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)  # numbers of its blocks' entries in the pool's index
    logprob: float = 0.0
    probabilities: tuple[float, ...] = ()  # of the request's named tokens, once its first new token is drawn

    @property
    def prompt_length(self) -> int:
        return len(self.request.ids)

    @property
    def completion(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def missing(self) -> int:
        """How many more tokens are to be drawn before a stop token may be; below 1 none."""
        return self.prompt_length + self.request.sampling.min_new_tokens - len(self.tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        if self.tokens[-1] in self.request.sampling.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.max_tokens else None

    def extend(self, tokens: Iterable[int], logprobs: Iterable[float]) -> None:
        """Add drawn tokens, up to the completion's end; all but the last are computed."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            self.tokens.append(token)
            self.logprob += logprob
            if self.finish_reason:
                break
        self.computed = len(self.tokens) - 1


class Scheduled(NamedTuple):  # tokens [start, end) of a sequence, to be computed in one step
    sequence: Sequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Whether the item ends with the sequence's last token, so that the next token is drawn."""
        return self.end == len(self.sequence.tokens)


@dataclass
class Step:  # first the block copies (source, destination), then a forward pass of the tokens
    decode: list[Scheduled] = field(default_factory=list)  # single tokens; their rows come first
    prefill: list[Scheduled] = field(default_factory=list)  # several tokens of a sequence
    copies: list[tuple[int, int]] = field(default_factory=list)
    passes: int = 1  # each further pass is one of the tokens drawn just before

    @property
    def scheduled(self) -> list[Scheduled]:
        """All items, in the order of their rows."""
        return self.decode + self.prefill

    def metadata(self, block_size: int, passed: int = 0) -> AttentionMetadata:
        """Of the pass after `passed` others."""
        kinds = (self.decode, self.prefill)
        decode, prefill = ([(i + passed, j + passed, sequence.blocks) for sequence, i, j in items] for items in kinds)
        return build_metadata(decode, prefill, block_size)


_by_arrival = attrgetter("arrival")
PASSES = 8  # of a step at most, with CUDA graphs: the host plans once for all; ended sequences compute the rest in vain


class Scheduler:
    """Admits, orders and preempts sequences."""

    def __init__(
        self, pool: BlockPool, max_num_batched_tokens: int, max_num_seqs: int, max_length: int, max_passes: int = 1
    ):
        self.pool, self.max_num_batched_tokens, self.max_num_seqs = pool, max_num_batched_tokens, max_num_seqs
        self.max_passes = max_passes
        self.max_length = min(max_length, len(pool.references) * pool.block_size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.arrivals = self.preemptions = 0

    def add(self, request: Request) -> bool:
        """Queue a request; False if its prompt leaves no room for a new token."""
        if not request.ids or len(request.ids) >= self.max_length:
            return False
        longest = min(len(request.ids) + request.sampling.max_new_tokens, self.max_length)
        self.waiting.append(Sequence(request, self.arrivals, longest, list(request.ids)))
        self.arrivals += 1
        return True

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> Step:
        """The next step; never empty while the scheduler is busy."""
        step, budget = Step(), self.max_num_batched_tokens
        for sequence in list(self.running):
            end = min(len(sequence.tokens), sequence.computed + budget)
            # An older sequence may have just preempted this one, which has no blocks then.
            if end > sequence.computed and sequence.blocks and self._reserve(sequence, end):
                budget -= self._schedule(step, sequence, end)
        for sequence in list(self.waiting):
            if not budget or len(self.running) == self.max_num_seqs:
                break
            match = self.pool.match(sequence.tokens[:-1])
            if match.pending:
                continue  # a running step computes more of this prefix: share it in the next
            if not self._admit(step, sequence, match, budget):
                break
            budget -= self._schedule(step, sequence, min(len(sequence.tokens), sequence.computed + budget))
        if not step.prefill and all(item.samples for item in step.decode):
            step.passes = self._passes(step.decode)
        return step

    def complete(
        self, step: Step, tokens: Iterable[Iterable[int]], logprobs: Iterable[Iterable[float]]
    ) -> list[Sequence]:
        """Record what each pass has drawn, in order of the items that sample, up to the completions' ends; release and
        return the finished sequences."""
        size, done = self.pool.block_size, []
        drawn = zip(zip(*tokens, strict=True), zip(*logprobs, strict=True), strict=True)
        for item in step.scheduled:
            sequence, samples = item.sequence, item.samples
            sequence.computed = item.end
            if samples:
                sequence.extend(*next(drawn))
                self._register(sequence, sequence.computed)
            for i in range(item.start // size, -(-sequence.computed // size)):
                self.pool.fill(sequence.blocks[i], min(sequence.computed - i * size, size))
            if samples and sequence.finish_reason:
                self._release(sequence)
                self.running.remove(sequence)
                done.append(sequence)
        return done

    def _passes(self, items: list[Scheduled]) -> int:
        """The passes of a step in which all sequences draw: no more than any of them may need, nor than there are free
        blocks for, which are reserved; no sequence gives way to another's further passes."""
        size, longest = self.pool.block_size, max(item.sequence.max_tokens - item.end for item in items)
        passes = min(self.max_passes, longest)
        while passes > 1:
            wanted = (-(-(item.end + passes - 1) // size) - len(item.sequence.blocks) for item in items)
            if sum(max(blocks, 0) for blocks in wanted) <= len(self.pool.free):
                break
            passes //= 2
        for item in items:
            self._reserve(item.sequence, item.end + passes - 1)
        return passes

    def _admit(self, step: Step, sequence: Sequence, match, budget: int) -> bool:
        """Let a waiting sequence run, with the prefix that the cache holds; False without room."""
        size = self.pool.block_size
        computed = len(match.blocks) * size + match.tail_tokens
        end = min(len(sequence.tokens), computed + budget)
        wanted = -(-end // size) - len(match.blocks)
        free = len(self.pool.free) - sum(block in self.pool.free for block in match.blocks)
        # Keep a block for each running sequence to grow, or else the newcomer is soon preempted.
        if wanted > free or (self.running and wanted + len(self.running) > free):
            return False
        for block in match.blocks:
            self.pool.retain(block)
        sequence.blocks, sequence.computed = list(match.blocks), computed
        sequence.entries = [self.pool.entries[block].number for block in match.blocks]
        if match.tail is not None:
            sequence.blocks.append(self.pool.allocate())
            step.copies.append((match.tail, sequence.blocks[-1]))
        self._reserve(sequence, end)
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_by_arrival)
        return True

    def _reserve(self, sequence: Sequence, end: int) -> bool:
        """Allocate blocks for a sequence's first `end` tokens; False if the sequence itself was preempted."""
        while len(sequence.blocks) * self.pool.block_size < end:
            if self.pool.free:
                sequence.blocks.append(self.pool.allocate())
                continue
            youngest = self.running.pop()
            self.preemptions += 1
            self._release(youngest)
            insort(self.waiting, youngest, key=_by_arrival)
            if youngest is sequence:
                return False
        return True

    def _release(self, sequence: Sequence) -> None:
        for block in reversed(sequence.blocks):  # so that the ends of prefixes are evicted before their beginnings
            self.pool.release(block)
        sequence.blocks, sequence.entries, sequence.computed = [], [], 0

    def _schedule(self, step: Step, sequence: Sequence, end: int) -> int:
        """Add tokens up to `end` to the step and register the blocks that they fill; returns the number of tokens."""
        self._register(sequence, end)
        kind = step.decode if end - sequence.computed == 1 else step.prefill
        kind.append(Scheduled(sequence, sequence.computed, end))
        return end - sequence.computed

    def _register(self, sequence: Sequence, end: int) -> None:
        """Register the blocks that tokens up to `end` fill; the prompt's last block when only begun, too."""
        size, begun = self.pool.block_size, sequence.computed < sequence.prompt_length <= end
        for start in range(len(sequence.entries) * size, end if begun else end - size + 1, size):
            parent = sequence.entries[-1] if sequence.entries else ROOT
            tokens = sequence.tokens[start : min(start + size, end)]
            number = self.pool.register(sequence.blocks[start // size], parent, tokens)
            if len(tokens) == size:
                sequence.entries.append(number)
