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


def test_the_recipe_fits_eight_gpus_of_80_gb(config, recipe):
    memory = count(config, recipe, ranks=8)
    print(memory.table())
    assert memory.parameters == memory.gradients == PARAMETERS * 4 // 8
    assert memory.optimizer == 2 * memory.parameters
    # The input of each block in bf16, and embedding and head, which stay gathered.
    inputs = config.num_hidden_layers * recipe.trainer.tokens_per_microbatch * config.hidden_size * 2
    gathered = 2 * config.vocab_size * config.hidden_size * 2
    assert inputs + gathered < memory.activations < 1.1 * (inputs + gathered)
    state = memory.parameters + memory.gradients + memory.optimizer
    # The rest: gradients of embedding, head and one block in bf16, and in fp32 for the sum over ranks.
    assert state + memory.activations < memory.peak < state + memory.activations + 4 * gathered
    assert memory.needed < 80e9


def test_without_activation_checkpointing_it_needs_more_and_fits_too(config, recipe):
    settings = changed(recipe, trainer={"activation_checkpointing": False})
    assert count(config, recipe, 8).needed < count(config, settings, 8).needed < 80e9


def test_more_gpus_hold_less_each(config, recipe):
    one, two = (count(config, recipe, ranks) for ranks in (8, 16))
    assert one.parameters == 2 * two.parameters
    assert one.peak - two.peak > one.parameters + one.optimizer - two.parameters - two.optimizer


def test_prompts_that_are_not_shared_fill_the_budget_too(config, recipe):
    settings = changed(recipe, trainer={"share_prefixes": False})
    shared, twice = count(config, recipe, 8), count(config, settings, 8)
    assert twice.activations == pytest.approx(shared.activations, rel=0.02)


def test_a_real_model_can_be_used_after_a_count(config, recipe):
    count(config, recipe, 8)
    assert type(_frequencies(config, torch.device("cpu"))) is torch.Tensor


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
