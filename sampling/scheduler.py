"""Which tokens are computed in the next step: continuous batching over a pool of KV-cache blocks. No tensors here.

Running sequences are scheduled first, in order of arrival, then waiting ones as far as blocks, the token budget and the
number of sequences allow. If no block is left, the youngest running sequence gives up its blocks and waits again; it
keeps its tokens, which are recomputed.
"""

from bisect import insort
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
    def finish_reason(self) -> FinishReason | None:
        if self.tokens[-1] in self.request.sampling.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.max_tokens else None


class Scheduled(NamedTuple):  # tokens [start, end) of a sequence, to be computed in one step
    sequence: Sequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Whether the item ends with the sequence's last token, so that the next token is drawn."""
        return self.end == len(self.sequence.tokens)


@dataclass
class Step:  # one forward pass: first the block copies (source, destination), then the tokens
    decode: list[Scheduled] = field(default_factory=list)  # single tokens; their rows come first
    prefill: list[Scheduled] = field(default_factory=list)  # several tokens of a sequence
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def scheduled(self) -> list[Scheduled]:
        """All items, in the order of their rows."""
        return self.decode + self.prefill

    def metadata(self, block_size: int) -> AttentionMetadata:
        kinds = (self.decode, self.prefill)
        decode, prefill = ([(item.start, item.end, item.sequence.blocks) for item in items] for items in kinds)
        return build_metadata(decode, prefill, block_size)


_by_arrival = attrgetter("arrival")


class Scheduler:
    """Admits, orders and preempts sequences."""

    def __init__(self, pool: BlockPool, max_num_batched_tokens: int, max_num_seqs: int, max_length: int):
        self.pool, self.max_num_batched_tokens, self.max_num_seqs = pool, max_num_batched_tokens, max_num_seqs
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
            # An older sequence may have just preempted this one.
            if end > sequence.computed and sequence in self.running and self._reserve(sequence, end):
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
        return step

    def complete(self, step: Step, tokens: list[int]) -> list[Sequence]:
        """Record the drawn `tokens`, in order of the items that sample; release and return the finished sequences."""
        size, drawn, done = self.pool.block_size, iter(tokens), []
        for item in step.scheduled:
            sequence = item.sequence
            for i in range(item.start // size, -(-item.end // size)):
                self.pool.fill(sequence.blocks[i], min(item.end - i * size, size))
            sequence.computed = item.end
            if item.samples:
                sequence.tokens.append(next(drawn))
                if sequence.finish_reason:
                    self._release(sequence)
                    self.running.remove(sequence)
                    done.append(sequence)
        return done

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
        """Add tokens up to `end` to the step and register the blocks that they fill; returns the number of tokens. The
        prompt's last block is registered when only begun, too."""
        size, begun = self.pool.block_size, sequence.computed < sequence.prompt_length <= end
        for start in range(len(sequence.entries) * size, end if begun else end - size + 1, size):
            parent = sequence.entries[-1] if sequence.entries else ROOT
            tokens = sequence.tokens[start : min(start + size, end)]
            number = self.pool.register(sequence.blocks[start // size], parent, tokens)
            if len(tokens) == size:
                sequence.entries.append(number)
        kind = step.decode if end - sequence.computed == 1 else step.prefill
        kind.append(Scheduled(sequence, sequence.computed, end))
        return end - sequence.computed
