"""Log-probabilities of the reference model, computed once."""

from pathlib import Path

import pytest
import torch
from plain_llama import PlainLlama
from training import SETTINGS, arguments, changed, make_inputs, make_model, make_pairs, run

import dpo.reference
from dpo.data import read_examples
from dpo.parallel import distributed, sharded_model
from dpo.reference import reference_logprob
from model.config import LlamaConfig
from stages.files import read_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path / "other", seed=1)
    return make_inputs(tmp_path)


@torch.no_grad()
def plain(model_dir: Path, pairs: Path) -> torch.Tensor:
    """The log-probabilities by the plain fp64 model, one sequence at a time."""
    model = PlainLlama(model_dir)
    rows = [
        [model.logprobs(pair["prompt_ids"], pair[key]).sum() for key in ("chosen_ids", "rejected_ids")]
        for pair in read_jsonl(pairs)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def compute(folder: Path, weights: Path, weights_digest: str) -> torch.Tensor:
    with distributed(1) as world:
        config = LlamaConfig.load(weights)
        model = sharded_model(config, world, torch.float32, SETTINGS.trainer)
        pairs = read_examples([folder / "pairs.jsonl"], "dpo", config.vocab_size)
        return reference_logprob(
            world, model, pairs, weights, weights_digest, folder / "cache", SETTINGS.trainer, torch.float32
        )


def test_agrees_with_whole_logits_one_sequence_at_a_time(folder):
    logprob_e2 = compute(folder, folder / "model", "w")
    expected = plain(folder / "model", folder / "pairs.jsonl")
    torch.testing.assert_close(logprob_e2.double(), expected, atol=1e-4, rtol=1e-6)


def test_is_read_again_for_the_same_pairs_and_weights_only(folder, monkeypatch):
    first = compute(folder, folder / "model", "w")
    monkeypatch.setattr(dpo.reference, "completion_logprob", None)  # computing again would fail
    assert torch.equal(compute(folder, folder / "model", "w"), first)
    monkeypatch.undo()
    assert not torch.equal(compute(folder, folder / "other", "v"), first)
    make_pairs(folder / "pairs.jsonl", seed=1)
    assert not torch.equal(compute(folder, folder / "model", "w"), first)
    assert len(list((folder / "cache").iterdir())) == 3


def test_policy_is_not_the_reference_that_was_computed_before_it(folder):
    """Parameters gathered for the reference must be freed before the policy's parameters are loaded."""
    metrics = run(changed(dpo={"batch_size": 12}), arguments(folder, reference=folder / "other"))
    policy, reference = (plain(folder / name, folder / "pairs.jsonl") for name in ("model", "other"))
    margin = 0.1 * ((policy - reference)[:, 0] - (policy - reference)[:, 1])
    assert metrics[0]["loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margin).mean().item(), abs=1e-4)
    assert metrics[0]["margin"] == pytest.approx(margin.mean().item(), abs=1e-4)
    assert metrics[0]["logp_chosen"] == pytest.approx(policy[:, 0].mean().item(), abs=1e-3)
    assert SETTINGS.dpo.reference == "previous"
