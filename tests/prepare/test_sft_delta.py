"""What a small file keeps of a difference, the model that it makes of the seed, and the file that is shipped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from iterate import sft_recipe
from model.config import LlamaConfig
from model.weights import load_model, save_pretrained
from prepare.seed_model import make_tiny
from prepare.sft_delta import annotate, compress, merge, packed_size, product, read_facts, rounded, write
from stages.command import UserError
from stages.settings import load_settings

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data" / "sft-delta.xz"


@pytest.fixture
def models(tmp_path):
    """A seed and a model that differs from it by a matrix of rank 2 in each weight, and in its norms."""
    make_tiny(tmp_path / "base")
    tuned = load_model(tmp_path / "base", torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        factors = [torch.randn(size, 2, generator=generator) for size in parameter.shape]
        parameter += 0.25 * factors[0] @ factors[1].T if len(factors) == 2 else 0.5
    config = LlamaConfig.load(tmp_path / "base")
    save_pretrained(tuned.named_parameters(), config, tmp_path / "base", tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def test_larger_triplets_get_more_bits():
    """The error of one matrix, whose singular values numpy knows, comes from rounding to a step and from the triplets
    that were left out, those below 0.3 steps of deviation."""
    matrix = torch.randn(400, 300, generator=torch.Generator().manual_seed(1)) @ torch.diag(0.98 ** torch.arange(300))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    for step in (0.2, 1.0):
        tensors = rounded({"w": torch.linalg.svd(matrix, full_matrices=False)}, step)
        kept = int((values / step / 20 >= 0.3).sum())
        assert tensors["w.left"].shape == (400, kept) and tensors["w.right"].shape == (kept, 300)
        error = (product(tensors, "w") - matrix).square().sum().item()
        # a rounded number is off by step^2 / 12 on average, by less where most round to 0; a triplet has 700 of them
        bound = kept * 700 * step**2 / 12 + (values[kept:] ** 2).sum()
        assert 0.7 * bound < error < bound


def test_a_file_takes_its_entropy_and_at_most_what_was_allowed():
    numbers = torch.arange(16, dtype=torch.int8).repeat(4)
    assert packed_size({"a": numbers}) == 64 * 4 / 8  # sixteen equally frequent values: four bits each
    matrix = torch.randn(200, 200, generator=torch.Generator().manual_seed(2))
    (small, some), (large, most) = (compress({"w": torch.zeros(200, 200)}, {"w": matrix}, mb) for mb in (0.01, 0.04))
    assert 9000 < len(small) <= 10_000 < 36_000 < len(large) <= 40_000 and 0.1 < some < most < 1


def test_a_difference_of_low_rank_comes_back(models, tmp_path):
    base, tuned = models
    path = tmp_path / "difference.xz"
    facts = write(base, tuned, 0.05, path, recipe="r")
    assert path.stat().st_size <= 0.05e6 and facts == read_facts(path)
    assert facts["explained"] > 0.999 and facts["recipe"] == "r"
    merge(base, path, tmp_path / "merged")
    found, wanted = (load_model(folder, torch.float32) for folder in (tmp_path / "merged", tuned))
    for (name, a), b in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert (a - b).norm() <= 0.03 * b.norm(), name
    assert annotate(path, loss=0.5) == facts | {"loss": 0.5} == read_facts(path)
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_files_that_are_refused(models, tmp_path):
    path = tmp_path / "delta.xz"

    def refused(complaint: str, base: Path = models[0]) -> None:
        with pytest.raises(UserError, match=complaint):
            merge(base, path, tmp_path / "merged")

    refused(r"delta\.xz: no such file; `make sft` writes it")
    write(*models, 0.05, path)
    refused("made for another model", models[1])
    path.write_bytes(b"12")
    refused(r"delta\.xz: damaged")


def test_the_shipped_one_is_small_and_judges_nearly_as_the_trained_model_does():
    assert SHIPPED.stat().st_size <= 12e6
    facts = read_facts(SHIPPED)
    assert {"base", "command", "explained", "recipe", "seed"} <= set(facts)
    for measure in ("pairwise", "metajudge"):
        assert facts[f"merged_{measure}"] > 0.5
        assert abs(facts[f"merged_{measure}"] - facts[f"trained_{measure}"]) < 0.05


def test_the_shipped_one_was_made_by_the_default_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load_settings("configs/smollm2-135m.toml")
    if not Path(settings.model.path).is_dir():
        pytest.skip("the default model is not prepared")
    assert read_facts(SHIPPED)["recipe"] == sft_recipe(settings, Path(settings.model.path))
