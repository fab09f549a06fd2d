"""What a small file keeps of a difference, the model that it makes of the seed, and the file that is shipped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from iterate import Run
from model.config import LlamaConfig
from model.weights import load_model, save_pretrained
from prepare.seed_model import make_tiny
from prepare.sft_delta import annotate, choose_ranks, compress, merge, read_facts, write
from stages.files import UserError
from stages.launch import Launcher
from stages.settings import load_settings

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data" / "sft-delta.safetensors"


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


def test_the_best_triplets_are_numpys():
    """One matrix alone: what is explained is what the truncated SVD of numpy explains."""
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    megabytes = (4096 + 512 + 7.5 * 74) / 1e6  # room for seven triplets of 70 bytes and a scale
    tensors, explained = compress({"w": torch.zeros(40, 30)}, {"w": matrix}, megabytes)
    assert tensors["w.left"].shape == (40, 7) and tensors["w.right"].shape == (7, 30)
    assert explained == pytest.approx((values[:7] ** 2).sum() / (values**2).sum(), rel=1e-4)
    product = tensors["w.left"].float() * tensors["w.scale"] @ tensors["w.right"].float()
    assert (product - matrix).square().sum().item() == pytest.approx((values[7:] ** 2).sum(), rel=1e-2)


def test_ranks_go_where_a_number_explains_most():
    values = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0, 2.0])}
    # gains a byte: a 9/10, 1/10; b 16/40, 4/40
    for room, ranks in ((9, {}), (50, {"a": 1, "b": 1}), (1000, {"a": 2, "b": 2})):
        assert choose_ranks(values, {"a": 10, "b": 40}, room) == ranks


def test_a_difference_of_low_rank_comes_back(models, tmp_path):
    base, tuned = models
    path = tmp_path / "difference.safetensors"
    facts = write(base, tuned, 0.05, path, recipe="r")
    assert path.stat().st_size <= 0.05e6 and facts == read_facts(path)
    assert facts["explained"] > 0.999 and facts["recipe"] == "r"
    merge(base, path, tmp_path / "merged")
    found, wanted = (load_model(folder, torch.float32) for folder in (tmp_path / "merged", tuned))
    for (name, a), b in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert (a - b).norm() <= 0.02 * b.norm(), name
    assert annotate(path, loss=0.5) == facts | {"loss": 0.5} == read_facts(path)
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_files_that_are_refused(models, tmp_path):
    path = tmp_path / "delta.safetensors"

    def refused(complaint: str, base: Path = models[0]) -> None:
        with pytest.raises(UserError, match=complaint):
            merge(base, path, tmp_path / "merged")

    refused(r"delta\.safetensors: no such file; `make sft` writes it")
    write(*models, 0.05, path)
    refused("made for another model", models[1])
    path.write_bytes(b"12")
    refused(r"delta\.safetensors: damaged")


def test_the_shipped_one_is_small_and_judges_nearly_as_the_trained_model_does():
    assert SHIPPED.stat().st_size <= 12e6
    facts = read_facts(SHIPPED)
    assert {"base", "command", "examples", "explained", "recipe", "seconds", "seed"} <= set(facts)
    for measure in ("pairwise", "metajudge"):
        assert facts[f"merged_{measure}"] > 0.5
        assert abs(facts[f"merged_{measure}"] - facts[f"trained_{measure}"]) < 0.05


def test_the_shipped_one_was_made_by_the_default_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = Path("configs/smollm2-135m.toml")
    settings = load_settings(config)
    if not Path(settings.model.path).is_dir():
        pytest.skip("the default model is not prepared")
    run = Run(config, settings, tmp_path, Launcher(1, tmp_path / "logs"))
    assert read_facts(SHIPPED)["recipe"] == run.sft_recipe(Path(settings.model.path))
