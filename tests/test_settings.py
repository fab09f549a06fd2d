"""Configs: the shipped ones load, the paper's numbers are in the paper's config, mistakes are named."""

from pathlib import Path

import pytest

from files import UserError
from settings import load_settings

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    assert load_settings(path).name == path.stem


def test_the_papers_numbers():
    """METHOD, section 3: the schedule of the paper, stated there."""
    settings = load_settings(CONFIGS / "llama3-8b-instruct.toml")
    assert (settings.respond.prompts_per_iteration, settings.respond.K, settings.judge.N) == (5000, 7, 11)
    for sampling in (settings.respond, settings.judge, settings.metajudge):
        assert (sampling.temperature, sampling.top_p) == (0.8, 0.95)
    assert (settings.dpo.beta, settings.dpo.learning_rate, settings.dpo.batch_size) == (0.1, 5e-6, 32)
    assert settings.dpo.reference == "previous" and settings.dpo.epochs == 10
    assert [i.rho for i in settings.iteration] == [0, 0.32, 0.32, 0.40]
    assert [i.judge_pairs for i in settings.iteration] == [True, True, False, False]
    assert [i.max_response_characters for i in settings.iteration] == [2500, None, None, None]
    assert [i.max_judgment_characters for i in settings.iteration] == [1100, 1000, None, None]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "not TOML"),
        ("seed = 1", "name: missing"),
        ("TINY[judge]\nM = 3", r"judge: expected|Cannot declare|not TOML"),
        ("TINYseeds = 3", "seeds: unknown key"),
        ("TINY[[iteration]]\nrho = 1.5", r"iteration\[2\]\.rho is 1\.5; it must lie in"),
        ('TINY[[iteration]]\nrho = "high"', r"iteration\[2\]\.rho: expected float, got 'high'"),
        ("TINY[[iteration]]\njudge_pairs = 1", r"iteration\[2\]\.judge_pairs: expected bool, got 1"),
    ],
)
def test_mistakes_are_named(tmp_path, text, complaint):
    tiny = (CONFIGS / "tiny.toml").read_text()
    if text.startswith("TINYseeds"):
        text = text.removeprefix("TINY") + "\n" + tiny
    path = tmp_path / "config.toml"
    path.write_text(text.replace("TINY", tiny + "\n"))
    with pytest.raises(UserError, match=complaint) as error:
        load_settings(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_config(tmp_path):
    with pytest.raises(UserError, match="no such config"):
        load_settings(tmp_path / "none.toml")
