"""Counted memory: the state by hand, the activations and the peak between bounds, for two layers of Llama-3-8B."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import changed

from dpo.memory import count
from model.config import LlamaConfig
from model.llama import _frequencies
from stages.settings import load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = load_settings(CONFIGS / "llama3-8b-instruct.toml")
RECOMPUTE = changed(RECIPE, trainer={"activation_checkpointing": True})
WHOLE = LlamaConfig.load(CONFIGS / "architectures" / "llama-3-8b")


@pytest.mark.parametrize("layers", [2, pytest.param(32, marks=pytest.mark.slow)])
def test_the_recipe_fits_eight_gpus_of_80_gb(layers):
    """With activation checkpointing less; on 16 GPUs that share one copy less each; a prompt that is not shared fills
    the batch, too."""
    config = replace(WHOLE, num_hidden_layers=layers)
    memory, kept = count(config, RECOMPUTE, 8), count(config, RECIPE, 8)
    parameters = 8_030_261_248 - (32 - layers) * 218_112_000  # as Meta counts them
    assert memory["parameters, fp32"] == memory["gradients, fp32"] == parameters * 4 // 8
    assert memory["Adam's moments, fp32"] == 2 * memory["parameters, fp32"]
    # The input of each block and of the head in bf16, and the head, which stays gathered.
    inputs = layers * RECIPE.trainer.tokens_per_microbatch * config.hidden_size * 2
    gathered = config.vocab_size * config.hidden_size * 2
    activations, peak = memory["activations kept for backward"], memory["all tensors at the peak"]
    assert inputs + gathered < activations < 1.05 * (inputs + gathered) + 0.1e9
    # The rest: the head's gradient in bf16, and in fp32 for the sum over ranks; some of both of what came before.
    state = 4 * memory["parameters, fp32"]
    assert state + activations + 3 * gathered < peak < state + activations + 4 * gathered
    assert memory["needed"] == peak + 2 * 218_112_000 + 2 * 2**30 < 80e9
    needed = [round(sizes["needed"] / 1e9, 1) for sizes in (memory, kept)]
    assert layers == 2 or needed == [25.5, 51.6], "docs/performance.md"
    assert type(_frequencies(config, torch.device("cpu"))) is torch.Tensor, "a real model can be used after a count"
    assert memory["needed"] < kept["needed"] < 80e9
    twice = count(config, changed(RECOMPUTE, trainer={"share_prefixes": False}), 16)
    assert memory["parameters, fp32"] == 2 * twice["parameters, fp32"]
    assert memory["all tensors at the peak"] - twice["all tensors at the peak"] > state / 2 - 1e9
    assert twice["activations kept for backward"] == pytest.approx(activations, rel=0.02)


def test_copies_on_two_nodes_take_what_one_takes_and_kept_weights_take_more():
    """With a copy on each node a rank has as much as on one node, and the head's gradient for the sum over copies. What
    stays between micro-batches: 2 bytes a parameter, and 4 for a gradient that is not sharded meanwhile."""
    config, keep = replace(WHOLE, num_hidden_layers=2), {"reshard_after_forward": False}
    one, two = count(config, RECOMPUTE, 8), count(config, changed(RECOMPUTE, trainer={"shard_degree": 8}), 16)
    same = ("parameters, fp32", "gradients, fp32", "activations kept for backward")
    assert [two[name] for name in same] == [one[name] for name in same]
    assert one["needed"] <= two["needed"] < one["needed"] + 1.1 * 4 * 525_336_576 / 8
    parameters = 8_030_261_248 - 30 * 218_112_000
    for ranks, least, most in ((1, 0.9, 2), (8, 2, 2 + 4)):
        plain, kept = (count(config, changed(RECOMPUTE, trainer=options), ranks)["needed"] for options in ({}, keep))
        assert least * parameters < kept - plain < most * parameters


@pytest.mark.parametrize(("family", "vectors"), [("qwen2", 4096 + 2 * 1024), ("qwen3", 2 * 128)])
def test_biases_and_norms_of_heads_are_counted(family, vectors):
    """Of the shape of Llama-3-8B. The norm keeps, without activation checkpointing, its input and a number a head."""
    plain, kin = (replace(WHOLE, num_hidden_layers=2, model_type=name) for name in ("llama", family))
    without, memory = count(plain, RECIPE, 8), count(kin, RECIPE, 8)
    assert memory["parameters, fp32"] - without["parameters, fp32"] == 2 * vectors * 4 // 8
    more = memory["activations kept for backward"] - without["activations kept for backward"]
    kept = 2 * RECIPE.trainer.tokens_per_microbatch * (2 * 6144 + 4 * 40) if family == "qwen3" else 0
    assert more == pytest.approx(kept, rel=0.01, abs=1e5)
