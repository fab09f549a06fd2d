"""Checkpoints: round trips byte for byte, and errors that name the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import model.weights
from model.weights import load_model, save_pretrained
from stages.files import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("shape", ["llama3", "llama32"])
@pytest.mark.parametrize("shard_bytes", [2**30, 20_000])
def test_export_is_the_checkpoint_that_was_loaded(shape, shard_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(model.weights, "SHARD_BYTES", shard_bytes)
    llama = load_model(FIXTURES / shape, torch.float32)
    written = save_pretrained(llama.named_parameters(), llama.config, FIXTURES / shape, tmp_path)
    original = load_file(FIXTURES / shape / "model.safetensors")
    original.pop("lm_head.weight" if llama.config.tie_word_embeddings else "", None)
    tensors = {}
    for path in written:
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
            with safe_open(path, framework="pt") as file:
                assert file.metadata()["format"] == "pt"
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], original[name]) for name in original)
    assert (shard_bytes < 2**30) == (tmp_path / "model.safetensors.index.json").is_file()
    again = load_model(tmp_path, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), llama.parameters(), strict=True))


def damaged(tmp_path: Path, **changes) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama3", folder)
    table = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(table))
    return folder


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(UserError, match=r"layers\.3\.input_layernorm\.weight is missing"):
        load_model(damaged(tmp_path, num_hidden_layers=4), torch.float32)


def test_an_unexpected_tensor_is_named(tmp_path):
    with pytest.raises(UserError, match=r"layers\.2\.\S+ is unexpected"):
        load_model(damaged(tmp_path, num_hidden_layers=2), torch.float32)


def test_another_shape_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gate_proj\.weight has shape \[80, 48\], config.json says \[81, 48\]"):
        load_model(damaged(tmp_path, intermediate_size=81), torch.float32)


def test_a_torn_file_is_named(tmp_path):
    folder = damaged(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_model(folder, torch.float32)


def test_no_weights(tmp_path):
    folder = damaged(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_model(folder, torch.float32)
