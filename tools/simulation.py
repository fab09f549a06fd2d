"""The engine's own scheduler and block pool without a model: the work of each step, for given requests and lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
            tokens=len(metadata.positions),
            drawn=sum(item.samples for item in step.scheduled),
            keys_read=sum(run.tokens for run in metadata.shared_runs()) + sum(span.end for span in metadata.prefill),
            keys_seen=sum(position + 1 for position in metadata.positions),
        )


def simulate(
    requests: Sequence[Request], lengths: Mapping[str, int], engine: EngineOptions, context: int
) -> list[StepWork]:
    """The steps of a shard whose completions have `lengths[id]` tokens, or as many as there is room for."""
    pool = BlockPool(engine.num_kv_blocks, engine.block_size)
    scheduler = Scheduler(pool, engine.max_num_batched_tokens, engine.max_num_seqs, context)
    for request in requests:
        scheduler.add(request)
    steps, token = list[StepWork](), 0
    while scheduler.busy:
        step = scheduler.schedule()
        steps.append(StepWork.of(step, engine.block_size))
        drawn = list(range(token - steps[-1].drawn, token))  # negative and unique: completions share no prefix
        token -= len(drawn)
        scheduler.complete(
            step, drawn, lambda s: len(s.completion) >= lengths[s.request.id] or len(s.tokens) >= s.max_tokens
        )
    return steps
