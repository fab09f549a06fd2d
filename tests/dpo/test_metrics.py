"""The metrics of a run, and the count of operations."""

import sys

import pytest
import torch
from training import arguments, changed, losses, run, run_killed

from dpo.data import Example
from dpo.metrics import MetricsLog, forward_flops, peak_memory_mib, product_flops
from dpo.packing import lay_out
from model.config import LlamaConfig
from stages.command import UserError


def test_flops_by_hand(folder):
    """A pair: prompt of 3 tokens, completions of 2 and 3, so segments of 3, 1 and 2 tokens, and 5 targets.

    Weights of a block: qkv 32 x (32 + 16 + 16), output 32 x 32, gate, up and down 3 x 32 x 48: 7680. Visible keys:
    prompt 1 + 2 + 3, chosen 3 + 1, rejected (3 + 1) + (3 + 2): 19, at 4 x 32 operations each.
    """
    config = LlamaConfig.load(folder / "model")
    batch = lay_out([Example("p", [1, 2, 3], ([4, 5], [6, 7, 8]))], [0], {0: 3})
    assert forward_flops(config, batch) == 2 * (2 * 7680 * 6 + 4 * 32 * 19) + 2 * 97 * 32 * 5
    assert product_flops(torch.device("cpu"), torch.float32, 256, 2) > 1e8


def test_held_out_examples_are_looked_at_at_intervals_and_steps_say_how_well_the_machine_is_used(folder):
    settings = changed(dpo={"held_out": 0.25, "batch_size": 2}, trainer={"evaluate_every": 2})
    metrics = run(settings, arguments(folder))
    looked = [(row["step"], row["epoch"]) for row in metrics if row["split"] == "held_out"]
    assert looked == [(1, 1), (3, 1), (4, 1), (5, 2), (7, 2), (9, 2)]
    plain = run(changed(settings, trainer={"evaluate_every": 0}), arguments(folder, place="second"))
    assert torch.equal(losses(metrics), losses(plain)), "looking changes nothing"
    row = metrics[0]
    assert 0 < row["mfu"] < 1 and row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert 0 < row["memory_mib"] <= peak_memory_mib(torch.device("cpu")) + 1


def test_the_nll_term_reaches_the_loss(folder):
    settings = changed(dpo={"nll_weight": 0.5, "epochs": 1})
    metrics = run(settings, arguments(folder))
    assert all(row["nll"] > 0 for row in metrics)
    assert metrics[0]["loss"] == pytest.approx(0.693147 + 0.5 * metrics[0]["nll"], abs=1e-5)


def test_tensorboard_after_a_stop_has_each_step_once(folder, monkeypatch):
    from tensorboard.backend.event_processing import event_accumulator

    options = {"tensorboard": True, "evaluate_every": 2, "save_every": 3}
    settings = changed(dpo={"held_out": 0.25, "batch_size": 2}, trainer=options)
    run_killed(monkeypatch, 8, settings, arguments(folder))
    continued = run(settings, arguments(folder))
    board = event_accumulator.EventAccumulator(str(folder / "run" / "train" / "tensorboard"))
    board.Reload()
    rows = [(row["step"], pytest.approx(row["loss"])) for row in continued if row["split"] == "train"]
    assert [(point.step, point.value) for point in board.Scalars("train/loss")] == rows and len(rows) == 10
    assert "held_out/accuracy" in board.Tags()["scalars"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        MetricsLog(folder, board=True)
