"""Log-probabilities of the reference model, computed once."""

from pathlib import Path

import pytest
import torch
from plain_llama import PlainLlama
from training import SETTINGS, make_model, make_pairs

import dpo.reference
from dpo.data import read_examples
from dpo.parallel import distributed, sharded_model
from dpo.reference import reference_logprob
from model.config import LlamaConfig
from stages.files import read_jsonl


@pytest.fixture
def folder(folder: Path) -> Path:
    make_model(folder / "other", seed=1)
    return folder


def compute(folder: Path, weights: Path, weights_digest: str) -> torch.Tensor:
    with distributed(1) as world:
        config = LlamaConfig.load(weights)
        model = sharded_model(config, world, torch.float32, SETTINGS.trainer)
        pairs = read_examples([folder / "pairs.jsonl"], "dpo", config.vocab_size)
        return reference_logprob(world, model, pairs, weights, weights_digest, folder / "cache", SETTINGS)


def test_agrees_with_whole_logits_and_is_read_again_for_the_same_pairs_and_weights_only(folder, monkeypatch):
    first = compute(folder, folder / "model", "w")
    model = PlainLlama(folder / "model")  # fp64, one sequence at a time
    for row, pair in zip(first, read_jsonl(folder / "pairs.jsonl"), strict=True):
        sums = [model.logprobs(pair["prompt_ids"], pair[key]).sum().item() for key in ("chosen_ids", "rejected_ids")]
        assert row.tolist() == pytest.approx(sums, abs=1e-4, rel=1e-6)
    monkeypatch.setattr(dpo.reference, "completion_logprob", None)  # computing again would fail
    assert torch.equal(compute(folder, folder / "model", "w"), first)
    monkeypatch.undo()
    assert not torch.equal(compute(folder, folder / "other", "v"), first)
    make_pairs(folder / "pairs.jsonl", seed=1)
    assert not torch.equal(compute(folder, folder / "model", "w"), first)
    assert len(list((folder / "cache").iterdir())) == 3
