"""The scheduler without a model: the work of an engine's steps for given requests and completion lengths.

The engine's own scheduler and block pool decide which prefixes are shared, which sequences run together and which are
preempted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sampling.blocks import BlockPool
from sampling.request import Request
from sampling.scheduler import Scheduler, Step
from stages.settings import EngineOptions


@dataclass(frozen=True)
class StepWork:
    """The work of a forward pass."""

    tokens: int
    """Tokens computed; prefixes that the cache holds are not among them."""
    drawn: int
    """Sequences whose next token is drawn: rows of the head."""
    keys_read: int
    """Keys read from the cache; a key that several decoding sequences share counts once."""
    keys_seen: int
    """Keys that the queries attend to, summed over queries."""

    @classmethod
    def of(cls, step: Step, block_size: int) -> "StepWork":
        metadata = step.metadata(block_size)
        return cls(
            tokens=sum(len(span.positions) for span in metadata.spans),
            drawn=sum(item.samples for item in step.scheduled),
            keys_read=sum(run.tokens for run in metadata.shared_runs()) + sum(span.end for span in metadata.prefill),
            keys_seen=sum(len(span.positions) * (span.start + span.end + 1) // 2 for span in metadata.spans),
        )


@dataclass
class Simulation:
    """The steps of a shard."""

    steps: list[StepWork] = field(default_factory=list)
    preemptions: int = 0


def simulate(
    requests: Sequence[Request], lengths: Mapping[str, int], engine: EngineOptions, context: int
) -> Simulation:
    """A shard whose requests are completed with `lengths[id]` tokens, or as many as there is room for."""
    pool = BlockPool(engine.num_kv_blocks, engine.block_size)
    scheduler = Scheduler(pool, engine.max_num_batched_tokens, engine.max_num_seqs, context)
    simulation = Simulation()
    for request in requests:
        scheduler.add(request)
    next_id = -1  # sampled ids are negative and unique, so that completions share no prefix
    while scheduler.busy:
        step = scheduler.schedule()
        work = StepWork.of(step, engine.block_size)
        simulation.steps.append(work)
        drawn = list(range(next_id, next_id - work.drawn, -1))
        next_id -= work.drawn
        scheduler.complete(
            step, drawn, lambda s: len(s.completion) >= lengths[s.request.id] or len(s.tokens) >= s.max_tokens
        )
    simulation.preemptions = scheduler.preemptions
    return simulation
