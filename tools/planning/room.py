"""What a run takes of a GPU's memory and of the disk, in bytes."""

from collections.abc import Iterator

import dpo.memory
from dpo.memory import CONTEXT_BYTES
from model.config import LlamaConfig
from stages.settings import Settings
from tools.planning.roofline import key_bytes
from tools.planning.stages import Run

FIELDS = 300
"""Bytes of a record besides its tokens: ids, seed, log-probability."""


def generation_memory(config: LlamaConfig, settings: Settings) -> dict[str, float]:
    """A rank's, in bf16."""
    engine, tokens = settings.engine, settings.engine.max_num_batched_tokens
    inner = 2 * tokens * (3 * config.hidden_size + config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    logits = 4 * engine.max_num_seqs * config.vocab_size * 3  # bf16, fp32, and what top-p keeps of them
    return {
        "weights": 2 * config.parameter_count(),
        "KV cache": key_bytes(config) * engine.block_size * (engine.num_kv_blocks + 1),
        "a step's activations": inner + logits,
        "CUDA (allowance)": CONTEXT_BYTES,
    }


def training_memory(config: LlamaConfig, settings: Settings, ranks: int) -> dict[str, float]:
    """A rank's, counted by the trainer's own step (`dpo.memory`)."""
    found = dpo.memory.count(config, settings, ranks)
    state = found.parameters + found.gradients + found.optimizer
    return {
        "parameters, gradients and moments": state,
        "activations": found.activations,
        "other tensors at the peak": found.peak - state - found.activations,
        "a block gathered ahead": found.block,
        "CUDA and NCCL (allowance)": CONTEXT_BYTES,
    }


def needs(run: Run) -> Iterator[tuple[str, dict[str, float], str]]:
    """What uses memory, how much, and which settings to change where that is too much."""
    change = "lower engine.num_kv_blocks or engine.max_num_batched_tokens"
    yield "generation", generation_memory(run.config, run.settings), change
    for kind, (key, _) in run.others.items():
        yield f"generation by {key}", generation_memory(run.model(kind)[0], run.settings), change
    if run.trainings:
        change = "lower trainer.tokens_per_microbatch, turn on trainer.activation_checkpointing, or take more GPUs"
        yield "training", training_memory(run.config, run.settings, run.ranks), change


def record_bytes(config: LlamaConfig, characters: float) -> float:
    """A token's bytes in a record: its id as a number with a comma, and its text."""
    return len(str(config.vocab_size - 1)) + 1 + characters


def disk(run: Run) -> dict[str, float]:
    """What a finished run keeps, and the most that training needs besides."""
    characters, size = run.requests.texts.characters, run.config.parameter_count()
    token = record_bytes(run.config, characters)
    kept = {"records": 0.0, "pairs": 0.0, "checkpoints": 0.0}
    peak = 0.0
    for stage in run.stages:
        if stage.kind in ("sft", "dpo"):
            kept["pairs"] += stage.requests * FIELDS + token * (stage.prompt_tokens + stage.new_tokens)
            kept["checkpoints"] += 2 * size
            # A new state is written before the old one goes, and the exports go with it.
            training, every = run.trainings[stage.name], run.settings.trainer.save_every
            exports = min(training.exports, 2 + int(every / max(training.batches, 1)))
            peak = max(peak, 2 * 12 * size + exports * 2 * size)
        else:
            kept["records"] += stage.requests * FIELDS + token * stage.new_tokens
            if stage.kind == "respond":  # a response's record holds its prompt's text
                kept["records"] += characters * stage.prompt_tokens
    return kept | {"while training, besides": peak}
