"""Counted memory: the shipped recipe for Llama-3-8B fits 8 GPUs of 80 GB."""

from pathlib import Path

import pytest
import torch
from training import changed

from dpo.memory import LiveBytes, count
from model.config import LlamaConfig
from model.llama import _frequencies
from stages.settings import load_settings

ROOT = Path(__file__).parents[2]
PARAMETERS = 8_030_261_248
"""Parameters of Llama-3-8B, as Meta counts them."""


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return LlamaConfig.load(ROOT / "tests" / "fixtures" / "llama3-8b")


@pytest.fixture(scope="module")
def recipe():
    return load_settings(ROOT / "configs" / "llama3-8b-instruct.toml")


@pytest.fixture(scope="module")
def memory(config, recipe) -> dict[str, int]:
    return count(config, recipe, 8)


def state(memory: dict[str, int]) -> int:
    return memory["parameters, fp32"] + memory["gradients, fp32"] + memory["Adam's moments, fp32"]


def test_the_recipe_fits_eight_gpus_of_80_gb(config, recipe, memory):
    assert memory["parameters, fp32"] == memory["gradients, fp32"] == PARAMETERS * 4 // 8
    assert memory["Adam's moments, fp32"] == 2 * memory["parameters, fp32"]
    # The input of each block in bf16, and embedding and head, which stay gathered.
    inputs = config.num_hidden_layers * recipe.trainer.tokens_per_microbatch * config.hidden_size * 2
    gathered = 2 * config.vocab_size * config.hidden_size * 2
    activations, peak = memory["activations kept for backward"], memory["all tensors at the peak"]
    assert inputs + gathered < activations < 1.1 * (inputs + gathered)
    # The rest: gradients of embedding, head and one block in bf16, and in fp32 for the sum over ranks.
    assert state(memory) + activations < peak < state(memory) + activations + 4 * gathered
    assert peak < memory["needed"] < 80e9
    assert type(_frequencies(config, torch.device("cpu"))) is torch.Tensor, "a real model can be used after a count"


def test_other_settings(config, recipe, memory):
    """Without activation checkpointing more; on 16 GPUs less each; a prompt that is not shared fills the batch, too."""
    kept = count(config, changed(recipe, trainer={"activation_checkpointing": False}), 8)
    assert memory["needed"] < kept["needed"] < 80e9
    twice = count(config, changed(recipe, trainer={"share_prefixes": False}), 16)
    assert memory["parameters, fp32"] == 2 * twice["parameters, fp32"]
    assert memory["all tensors at the peak"] - twice["all tensors at the peak"] > state(memory) / 2 - 1e9
    name = "activations kept for backward"
    assert twice[name] == pytest.approx(memory[name], rel=0.02)


def test_live_bytes_are_counted():
    with LiveBytes() as tracker:
        a = torch.zeros(1000)
        b = a + 1
        c = b.view(10, 100)
        assert tracker.live == 8000
        del b
        assert tracker.live == 8000, "a view keeps its storage"
        del c
        assert tracker.live == 4000
        with tracker.resizing():
            a.untyped_storage().resize_(0)
            assert tracker.live == 0
            a.untyped_storage().resize_(4000)
    assert (tracker.live, tracker.peak) == (4000, 8000)
