"""Checkpoints: round trips byte for byte, and errors that name the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import model.weights
from model.weights import Checkpoint, load_model, save_pretrained
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
    for path in (path for path in written if path.suffix == ".safetensors"):
        tensors |= load_file(path)
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["format"] == "pt"
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], original[name]) for name in original)
    assert (shard_bytes < 2**30) == (tmp_path / "model.safetensors.index.json").is_file()
    again = load_model(tmp_path, torch.float32)
    assert all(map(torch.equal, again.parameters(), llama.parameters()))


@pytest.mark.parametrize(
    ("config", "keep", "complaint"),
    [
        ({"num_hidden_layers": 4}, None, r"layers\.3\.input_layernorm\.weight is missing"),
        ({"num_hidden_layers": 2}, None, r"layers\.2\.\S+ is unexpected"),
        ({"intermediate_size": 81}, None, r"gate_proj\.weight has shape \[80, 48\], config.json says \[81, 48\]"),
        ({}, 100, r"model\.safetensors: damaged"),
        ({}, 0, r"no model\.safetensors"),
    ],
)
def test_errors_name_the_tensor_or_the_file(tmp_path, config, keep, complaint):
    """`keep`: bytes of the weights that are left; without any, the file is missing."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama3", folder)
    table, weights = folder / "config.json", folder / "model.safetensors"
    table.write_text(json.dumps(json.loads(table.read_text()) | config))
    if keep:
        weights.write_bytes(weights.read_bytes()[:keep])
    elif keep == 0:
        weights.unlink()
    with pytest.raises(UserError, match=complaint):
        load_model(folder, torch.float32)


def test_errors_of_an_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for text, complaint in (("{}", "not an index"), ('{"weight_map": {"a": "b"}}', r"b: no such file, but \S+\.index")):
        index.write_text(text)
        with pytest.raises(UserError, match=complaint):
            Checkpoint(tmp_path)
