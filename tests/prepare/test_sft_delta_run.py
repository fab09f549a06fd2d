"""The shipped seed judge: small, made by the default config's recipe, and next to no worse than the trained model."""

from pathlib import Path

import pytest

from iterate import Run
from prepare.sft_delta import read_facts
from stages.launch import Launcher
from stages.settings import load_settings

ROOT = Path(__file__).parents[2]
PATH = ROOT / "data" / "sft-delta.safetensors"


def test_it_is_small_and_says_what_it_lost():
    assert PATH.stat().st_size <= 12e6
    facts = read_facts(PATH)
    assert {"base", "command", "examples", "explained", "recipe", "seconds", "seed"} <= set(facts)
    for measure in ("pairwise", "metajudge"):
        assert facts[f"merged_{measure}"] > 0.5
        assert abs(facts[f"merged_{measure}"] - facts[f"trained_{measure}"]) < 0.05


def test_it_was_made_by_the_default_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = Path("configs/smollm2-135m.toml")
    settings = load_settings(config)
    if not Path(settings.model.path).is_dir():
        pytest.skip("the default model is not prepared")
    run = Run(config, settings, tmp_path, Launcher(1, tmp_path / "logs"))
    assert read_facts(PATH)["recipe"] == run.sft_recipe(Path(settings.model.path))
