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
from stages.command import UserError

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
    ("config", "complaint"),
    [
        ({"num_hidden_layers": 4}, r"layers\.3\.input_layernorm\.weight is missing"),
        ({"num_hidden_layers": 2}, r"layers\.2\.\S+ is unexpected"),
        ({"intermediate_size": 81}, r"gate_proj\.weight has shape \[80, 48\], config.json says \[81, 48\]"),
    ],
)
def test_errors_name_the_tensor(tmp_path, config, complaint):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "llama3", folder)
    table = folder / "config.json"
    table.write_text(json.dumps(json.loads(table.read_text()) | config))
    with pytest.raises(UserError, match=complaint):
        load_model(folder, torch.float32)


def test_errors_of_an_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "b"}}')
    with pytest.raises(UserError, match=r"b: no such file, but \S+\.index"):
        Checkpoint(tmp_path)
