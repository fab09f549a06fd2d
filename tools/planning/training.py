"""What a training stage computes: a few of its global batches are packed as the trainer does, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpo.data import Example
from dpo.flops import forward_flops
from dpo.packing import keep_usable, micro_batches
from model.config import LlamaConfig
from stages.settings import Dpo, Settings, Sft

SAMPLED_BATCHES = 4
"""Global batches of a stage that are packed."""


@dataclass(frozen=True)
class TrainingWork:
    """The expected work of a training stage."""

    epochs: int
    """Epochs that run: training ends with the epoch that is set to be exported."""
    exports: int
    """One where that epoch is set or nothing is held out, else one an epoch at most."""
    batches: float
    """Full global batches of an epoch; the last one may be short."""
    prompt_tokens: float
    """Tokens of all examples' prompts in one epoch; a pair's prompt counts once."""
    new_tokens: float
    """Tokens of all examples' completions in one epoch."""
    computed_tokens: float
    """Tokens computed in all epochs and, for DPO, in the reference's pass; shared prefixes count once."""
    updates: list[list[float]]
    """Forward operations of each micro-batch of a few global batches, on the rank that has the most."""
    reference: list[float]
    """Forward operations of each micro-batch of the reference's pass; empty for SFT."""
    held_out: list[float]
    """Forward operations of each micro-batch of one evaluation on the held-out examples."""
    dropped: float
    """Share of the examples that are over `trainer.tokens_per_microbatch` or the context."""


def training_work(
    config: LlamaConfig,
    settings: Settings,
    section: Sft | Dpo,
    drawn: Sequence[Example],
    examples: int,
    ranks: int,
    export_epoch: int | None = None,
) -> TrainingWork:
    """The work of training on `examples` examples like those `drawn`; without `export_epoch` the best is exported."""
    options, epochs = settings.trainer, export_epoch or section.epochs
    usable, _ = keep_usable(drawn, options, config.max_position_embeddings)
    kept = round(examples * len(usable) / len(drawn))
    held_out = round(section.held_out * kept)
    updates: list[list[float]] = []
    tokens, flops, seen = 0, 0.0, 0
    for start in range(0, len(usable), section.batch_size):
        indices = range(start, min(start + section.batch_size, len(usable)))
        by_rank = [micro_batches(usable, indices, options, rank, ranks) for rank in range(ranks)]
        updates.append([max(forward_flops(config, b) for b in batches) for batches in zip(*by_rank, strict=True)])
        real = [batch for batches in by_rank for batch in batches if batch.real]
        tokens += sum(batch.tokens for batch in real)
        flops += sum(forward_flops(config, batch) for batch in real)
        seen += len(indices)
    each = tokens / max(seen, 1)

    def in_one_pass(count: int) -> list[float]:
        bins = -(-int(count * each) // (options.tokens_per_microbatch * ranks))
        return [count * flops / max(seen, 1) / (bins * ranks)] * bins if bins else []

    reference = in_one_pass(kept) if isinstance(section, Dpo) else []
    return TrainingWork(
        epochs=epochs,
        exports=1 if export_epoch or not held_out else epochs,
        batches=(kept - held_out) / section.batch_size,
        prompt_tokens=examples * sum(len(example.prompt) for example in drawn) / len(drawn),
        new_tokens=examples * sum(len(ids) for example in drawn for ids in example.completions) / len(drawn),
        computed_tokens=each * (epochs * kept + (kept if reference else 0)),
        updates=updates,
        reference=reference,
        held_out=in_one_pass(held_out),
        dropped=1 - len(usable) / len(drawn),
    )
