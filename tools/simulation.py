"""The scheduler without a model: what an engine would compute for some requests, step by step.

Every completion's length is given, so nothing has to be drawn. Which prefixes are shared, how many sequences run
together and who has to give way are not modelled: the engine's own scheduler and pool of blocks decide it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kernels.pieces import cut_pieces
from sampling.blocks import BlockPool
from sampling.request import Request
from sampling.scheduler import Scheduler, Step
from stages.settings import Engine


@dataclass(frozen=True)
class StepWork:
    """What a forward pass takes."""

    tokens: int
    """Computed; prefixes that the cache holds are not among them."""
    drawn: int
    """Sequences whose next token is drawn: rows of the head."""
    keys_read: int
    """Keys taken from the cache, those that several decoding sequences share once."""
    keys_seen: int
    """Keys that all queries see together."""

    @classmethod
    def of(cls, step: Step, block_size: int) -> "StepWork":
        single = [item for item in step.scheduled if item.end - item.start == 1]
        several = [item for item in step.scheduled if item.end - item.start > 1]
        pieces = cut_pieces([item.sequence.blocks for item in single], [item.end for item in single], block_size)
        return cls(
            tokens=sum(item.end - item.start for item in step.scheduled),
            drawn=sum(item.samples for item in step.scheduled),
            keys_read=sum(piece.tokens for piece in pieces) + sum(item.end for item in several),
            keys_seen=sum(item.end for item in single)
            + sum((item.end - item.start) * (item.end + item.start + 1) // 2 for item in several),
        )


@dataclass
class Simulation:
    """Units of work, gone through."""

    steps: list[StepWork] = field(default_factory=list)
    requests: int = 0
    prompt_tokens: int = 0
    """Of all requests, those that share a prefix each with all of it."""
    new_tokens: int = 0
    too_long: int = 0
    """Requests whose prompt leaves no room in the context or the cache."""
    preemptions: int = 0
    longest_prompt: int = 0
    most_blocks: int = 0
    """Blocks of the cache in use at once."""

    @property
    def computed_tokens(self) -> int:
        return sum(step.tokens for step in self.steps)

    def run(self, requests: Sequence[Request], lengths: Mapping[str, int], engine: Engine, context: int) -> None:
        """Add a unit: complete each request with `lengths[id]` tokens, or as many as there is room for."""
        pool = BlockPool(engine.num_kv_blocks, engine.block_size)
        scheduler = Scheduler(pool, engine.max_num_batched_tokens, engine.max_num_seqs, context)
        self.requests += len(requests)
        for request in requests:
            self.prompt_tokens += len(request.ids)
            self.longest_prompt = max(self.longest_prompt, len(request.ids))
            self.too_long += not scheduler.add(request)
        fresh = -1  # below all ids of prompts, and never twice: what is sampled is shared with nobody
        while scheduler.busy:
            step = scheduler.schedule()
            work = StepWork.of(step, engine.block_size)
            self.steps.append(work)
            self.new_tokens += work.drawn
            self.most_blocks = max(self.most_blocks, engine.num_kv_blocks - len(pool.free))
            drawn = list(range(fresh, fresh - work.drawn, -1))
            fresh -= work.drawn
            scheduler.complete(
                step, drawn, lambda s: len(s.completion) >= lengths[s.request.id] or len(s.tokens) >= s.max_tokens
            )
        self.preemptions += scheduler.preemptions
