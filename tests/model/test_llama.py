"""The model against reference logits made by transformers (tests/make_reference.py)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kernels.attention import VarlenAttention
from kernels.metadata import build_metadata
from kernels.paged import PagedAttention
from kernels.segments import Segments
from model.config import LlamaConfig
from model.llama import Llama, logits_head
from model.weights import load_model
from stages.command import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"


def forward(model: Llama, *sequences: torch.Tensor) -> torch.Tensor:
    """Logits of sequences packed into one forward."""
    positions = torch.cat([torch.arange(len(s)) for s in sequences])
    attend = VarlenAttention(Segments.make(list(map(len, sequences))))
    return model(torch.cat(sequences), positions, attend, logits_head)


@pytest.fixture(params=["llama2", "llama3", "llama32", "head_dim"])
def case(request):
    folder = FIXTURES / request.param
    return load_model(folder, torch.float32), load_file(folder / "reference.safetensors")


def close(ours: torch.Tensor, reference: torch.Tensor) -> bool:
    return bool((ours - reference).abs().max() <= 1e-4 * reference.std())


def test_reference_logits(case):
    model, reference = case
    for ids, logits in zip(reference["ids"], reference["logits"], strict=True):
        assert close(forward(model, ids), logits)
    assert model.config.parameter_count() == sum(p.numel() for p in model.parameters())


def test_packed_sequences_equal_separate_ones(case):
    model, reference = case
    (a, b), (first, second) = reference["ids"], reference["logits"]
    assert close(forward(model, a[:37], b, a[:1]), torch.cat([first[:37], second, first[:1]]))


def test_prefill_and_decode_equal_one_forward(case):
    """Prefill in two chunks, then token by token, over blocks that lie scattered, two sequences at once."""
    model, reference = case
    config, size = model.config, 8
    cache = torch.zeros(config.num_hidden_layers, 2, 64, config.num_key_value_heads, size, config.head_dim)
    blocks = [list(range(0, 40, 2)), list(range(41, 1, -2))]
    ids, expected = reference["ids"], reference["logits"]
    for start, end in [(0, 21), (21, 50), *((i, i + 1) for i in range(50, 70))]:
        both = [(start, end, table) for table in blocks]
        metadata = build_metadata(both, [], size) if end - start == 1 else build_metadata([], both, size)
        tokens = torch.cat([ids[0, start:end], ids[1, start:end]])
        positions = torch.arange(start, end).repeat(2)
        logits = model(tokens, positions, PagedAttention(cache, metadata, config.num_attention_heads), logits_head)
        assert close(logits, torch.cat([expected[0, start:end], expected[1, start:end]]))


def test_what_cannot_be_honoured_is_an_error():
    table = json.loads((FIXTURES / "llama3" / "config.json").read_text())
    for change, complaint in (
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn' is unknown"),
    ):
        with pytest.raises(UserError, match=complaint):
            LlamaConfig.from_dict(table | change, "config.json")


def test_both_spellings_of_rope_agree():
    new = json.loads((FIXTURES / "llama32" / "config.json").read_text())
    scaling = dict(new["rope_parameters"])
    old = new | {"rope_parameters": None, "rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    assert LlamaConfig.from_dict(old) == LlamaConfig.from_dict(new)
