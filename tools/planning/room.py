"""What a run takes of memory and of the disk, and what memory the machine has, in bytes.

Torch is imported only by the functions that need it: `tools.doctor` uses the others.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import LlamaConfig

if TYPE_CHECKING:
    from stages.settings import Settings
    from tools.planning.stages import PlannedRun

RECORD_BYTES = 300
"""A record without its tokens: ids, seed, log-probability."""


def machine_bytes() -> int:
    """Memory of the machine, or a container's share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def key_bytes(config: LlamaConfig, size: int = 2) -> int:
    """A token's keys and values in all layers, of `size` bytes each: 2 in bf16."""
    return 2 * config.num_hidden_layers * config.kv_size * size


def states_and_exports(parameters: int, exports: int) -> int:
    """The most that training needs on the disk: the old state and the new one, of 12 bytes a parameter each, and the
    exports, of 2, that wait for the new state."""
    return parameters * (2 * 12 + 2 * exports)


def generation_memory(config: LlamaConfig, settings: "Settings") -> dict[str, float]:
    """Memory of a rank that generates in bf16, by part."""
    from dpo.memory import CONTEXT_BYTES

    engine, tokens = settings.engine, settings.engine.max_num_batched_tokens
    inner = 2 * tokens * (3 * config.hidden_size + config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    logits = 4 * engine.max_num_seqs * config.vocab_size * 3  # bf16, fp32, and top-p's copies
    return {
        "weights": 2 * config.parameter_count(),
        "KV cache": key_bytes(config) * engine.block_size * (engine.num_kv_blocks + 1),
        "a step's activations": inner + logits,
        "CUDA (allowance)": CONTEXT_BYTES,
    }


def training_memory(config: LlamaConfig, settings: "Settings", ranks: int) -> dict[str, float]:
    """Memory of a rank that trains, by part, counted by the trainer's own step (`dpo.memory`)."""
    from dpo.memory import CONTEXT_BYTES, count

    memory = count(config, settings, ranks)
    state = memory.parameters + memory.gradients + memory.optimizer
    return {
        "parameters, gradients and moments": state,
        "activations": memory.activations,
        "other tensors at the peak": memory.peak - state - memory.activations,
        "a block gathered ahead": memory.block,
        "CUDA and NCCL (allowance)": CONTEXT_BYTES,
    }


def memory_uses(run: "PlannedRun") -> Iterator[tuple[str, dict[str, float], str]]:
    """Each use of memory: its name, its parts, and the settings to change where it is too much."""
    change = "lower engine.num_kv_blocks or engine.max_num_batched_tokens"
    yield "generation", generation_memory(run.config, run.settings), change
    for kind, (key, _) in run.other_models.items():
        yield f"generation by {key}", generation_memory(run.model(kind)[0], run.settings), change
    if run.trainings:
        change = "lower trainer.tokens_per_microbatch, turn on trainer.activation_checkpointing, or take more GPUs"
        yield "training", training_memory(run.config, run.settings, run.ranks), change


def record_bytes(config: LlamaConfig, characters: float) -> float:
    """Bytes of a token in a record: the id's digits, a comma, and the text."""
    return len(str(config.vocab_size - 1)) + 1 + characters


def disk(run: "PlannedRun") -> dict[str, float]:
    """What a finished run keeps, and the most that training needs beside that."""
    characters, size = run.requests.texts.characters, run.config.parameter_count()
    token = record_bytes(run.config, characters)
    kept = {"records": 0.0, "pairs": 0.0, "checkpoints": 0.0}
    peak = 0.0
    for stage in run.stages:
        if stage.kind in ("sft", "dpo"):
            kept["pairs"] += stage.requests * RECORD_BYTES + token * (stage.prompt_tokens + stage.new_tokens)
            kept["checkpoints"] += 2 * size
            training, every = run.trainings[stage.name], run.settings.trainer.save_every
            exports = min(training.exports, 2 + int(every / max(training.batches, 1)))
            peak = max(peak, states_and_exports(size, exports))
        else:
            kept["records"] += stage.requests * RECORD_BYTES + token * stage.new_tokens
            if stage.kind == "respond":  # a response's record holds the prompt's text
                kept["records"] += characters * stage.prompt_tokens
    return kept | {"while training, besides": peak}
