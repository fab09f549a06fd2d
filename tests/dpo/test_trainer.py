"""The training loop, end to end on a two-layer model."""

import math
from dataclasses import replace

import pytest
import torch
from training import SETTINGS, arguments, changed, losses, make_job, parameters, run

from dpo.reference import reference_logprob
from dpo.sft import SFT
from dpo.trainer import Trainer, learning_rate
from stages.command import UserError
from stages.files import digest, read_manifest, write_jsonl
from stages.settings import Iteration


def test_first_loss_is_ln_2_and_moves(folder):
    metrics = run(SETTINGS, arguments(folder))
    assert [row["step"] for row in metrics] == list(range(6))
    first, second = losses(metrics)[:2]
    assert abs(first - math.log(2)) < 1e-5 and abs(second - math.log(2)) > 1e-4
    assert metrics[-1]["margin"] > 0.01
    manifest = read_manifest(folder / "run" / "out")
    assert manifest is not None and manifest["first_loss"] == metrics[0]["loss"]
    assert manifest["counts"] == {"examples": 12, "train": 12, "held_out": 0}
    figures = ("loss", "accuracy", "margin")  # of the last step, where no pairs are held out
    assert [manifest[key] for key in figures] == [metrics[-1][key] for key in figures]
    assert manifest["metrics"] == digest(folder / "run" / "train" / "metrics.jsonl")
    assert manifest["key"] == make_job(SETTINGS, arguments(folder)).key
    assert not [*(folder / "run" / "train").glob("state-*"), *(folder / "run" / "train").glob("epoch-*")]
    run(SETTINGS, arguments(folder))
    assert read_manifest(folder / "run" / "out") == manifest, "a complete output is left alone"
    run(changed(dpo={"epochs": 1}), arguments(folder))
    assert (read_manifest(folder / "run" / "out") or {})["steps"] == 3


def test_weights_move_at_the_shipped_learning_rate(folder):
    """Updates of 5e-6 would be lost in bf16, whose steps near 0.2 are 1e-3 wide."""
    metrics = run(changed(model={"dtype": "bfloat16"}, dpo={"learning_rate": 5e-6, "epochs": 10}), arguments(folder))
    assert abs(losses(metrics)[0] - math.log(2)) < 1e-3
    assert losses(metrics)[-3:].mean() < losses(metrics)[:3].mean()
    before, after = parameters(folder / "model"), parameters(folder / "run" / "out")
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.dim() > 1)


def test_sft_learns(folder):
    rows = ({"id": f"s{i}", "prompt_ids": [1, i], "completion_ids": [5, 6, 7]} for i in range(8))
    write_jsonl(folder / "sft.jsonl", rows)
    settings = changed(sft={"epochs": 8, "learning_rate": 1e-2, "held_out": 0.25})
    metrics = run(settings, arguments(folder, SFT, data=[folder / "sft.jsonl"]))
    assert losses(metrics)[-1] < 0.2 * losses(metrics)[0] and len(losses(metrics, "held_out")) == 8


def test_the_epoch_with_the_best_held_out_accuracy_is_exported(folder, monkeypatch):
    accuracies = iter([0.5, 0.75, 0.75, 0.25])
    settings = changed(dpo={"epochs": 4, "held_out": 0.25})
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"loss": 1.0, "accuracy": next(accuracies), "margin": 0.0})
    run(settings, arguments(folder))
    manifest = read_manifest(folder / "run" / "out") or {}
    assert (manifest["epoch"], manifest["accuracy"]) == (2, 0.75)
    fixed = replace(settings, iteration=[Iteration(epoch=2)])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"loss": 1.0, "accuracy": 0.0, "margin": 0.0})
    metrics = run(fixed, arguments(folder, place="second"))
    assert max(row["epoch"] for row in metrics) == 2
    assert all(map(torch.equal, parameters(folder / "run" / "out"), parameters(folder / "second" / "out")))


def test_a_loss_that_is_not_finite_names_its_pairs(folder, monkeypatch):
    def poisoned(*given):
        logprob_e2 = reference_logprob(*given)
        logprob_e2[[3, 7]] = torch.nan
        return logprob_e2

    monkeypatch.setattr("dpo.train.reference_logprob", poisoned)
    with pytest.raises(UserError, match=r"step \d: the loss is not finite in p[37](, p[37])?; .* dpo.learning_rate"):
        run(SETTINGS, arguments(folder))
    assert not (folder / "run" / "out").exists()


def test_errors_of_the_user(folder):
    with pytest.raises(UserError, match=r"no example is left to train on"):
        run(changed(dpo={"held_out": 1.0}), arguments(folder))
    (folder / "pairs.jsonl").write_text("")
    with pytest.raises(UserError, match=r"pairs\.jsonl: no rows"):
        run(SETTINGS, arguments(folder))


def test_schedule():
    rates = [learning_rate(step, 20, 1.0, 0.2) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0 < rates[-1] < 0.02
    assert learning_rate(0, 1, 1.0, 0.0) == 1.0
