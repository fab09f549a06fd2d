"""stages/forecast.py: the work of tiny.toml's stages, and the time left at the speed so far."""

from pathlib import Path

import pytest

from stages import forecast
from stages.settings import load_settings

TINY = load_settings(Path(__file__).parents[2] / "configs" / "tiny.toml")


def test_the_work_of_each_stage():
    """8 prompts, K = 3, N = 4, half of the judgments distinct; 21, 37 and 23 tokens; one epoch of DPO."""
    work = {name: tokens for name, tokens in forecast.works(TINY).items() if tokens}
    assert work == pytest.approx(
        {
            "iter1/responses": 24 * 21,
            "iter1/judgments": 96 * (0.3 * 21 + 37),
            "iter1/comparisons": 8 * 2 * 1 * (23 + 2 * 0.3 * 37),
            "iter1/checkpoint": 1.5 * 8 * (0.55 * 2 * 21 + 0.75 * (21 + 2 * 37)) * 4 / 3,
            "iter2/responses": 24 * 21,
            "iter2/judgments": 96 * (0.3 * 21 + 37),
            "iter2/checkpoint": 1.5 * 8 * 0.55 * 2 * 21 * 4 / 3,
        }
    )


def test_shares_and_the_time_left(monkeypatch):
    clock = iter([0.0, 60.0, 60.0])
    monkeypatch.setattr(forecast.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(forecast, "works", lambda settings: {"a": 10.0, "b": 30.0, "c": 60.0})
    run = forecast.Forecast(TINY)
    with run.stage("a") as note:
        assert note == "10% of the run"
    run.done("b")
    with run.stage("c") as note:
        assert note == "60% of the run, about 6 min left"
        monkeypatch.undo()
    assert run.left == {}
