"""Mistral, Qwen2 and Qwen3 against transformers' numbers (support/make_reference.py), and what their files say."""

import json
from pathlib import Path

import pytest
import torch
from families import BASE, IDS, VARIANTS, formula, write_model
from marks import needs_int8
from safetensors.torch import load_file

from kernels.attention import VarlenAttention
from kernels.segments import Segments
from model.config import LlamaConfig
from model.layers import HeadNorm
from model.llama import Llama, logits_head
from model.weights import load_model, load_packed, random_weights, save_pretrained
from sampling.engine import Engine
from sampling.request import Request, Sampling
from stages.command import UserError

REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "families.json").read_text())


@pytest.fixture(params=VARIANTS)
def case(request, tmp_path):
    return write_model(tmp_path / "model", request.param), REFERENCE[request.param]


@torch.inference_mode()
def last_logits(model: Llama) -> torch.Tensor:
    """Of the last three tokens, every seventh, behind another sequence in the same forward."""
    ids, attend = torch.tensor(IDS[:5] + IDS), VarlenAttention(Segments.make([5, len(IDS)]))
    return model(ids, torch.tensor([*range(5), *range(len(IDS))]), attend, logits_head)[-3:, ::7]


def test_logits_and_greedy_tokens_are_those_of_transformers(case):
    """Generation through the paged cache, with prompts in chunks, two sequences at once."""
    (folder, expected), sampling = case, Sampling(0.0, 1.0, 64)
    model = load_model(folder, torch.float32)
    difference = last_logits(model) - torch.tensor(expected["logits"])
    assert difference.abs().max() <= 1e-4 * expected["deviation"]
    assert model.config.parameter_count() == sum(p.numel() for p in model.parameters()) == expected["parameters"]
    engine = Engine(model, num_kv_blocks=64, block_size=8, max_num_batched_tokens=23, max_num_seqs=4)
    requests = [Request("a", IDS, sampling, 0), Request("b", IDS[:9], sampling, 0)]
    assert {c.id: c.ids for c in engine.run(requests)}["a"] == expected["greedy"]


def test_an_export_is_the_checkpoint_that_was_loaded(case, tmp_path):
    folder, _ = case
    model = load_model(folder, torch.float32)
    save_pretrained(model.named_parameters(), model.config, folder, tmp_path / "out")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "out", folder))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert LlamaConfig.load(tmp_path / "out") == model.config


@pytest.mark.parametrize("products", [torch.bfloat16, pytest.param(torch.int8, marks=needs_int8)])
@pytest.mark.parametrize("variant", ["qwen2", "qwen2-tied", "qwen3"])
def test_a_packed_model_keeps_biases_and_norms(variant, products, tmp_path):
    folder = write_model(tmp_path, variant)
    exact, rounded = last_logits(load_model(folder, torch.float32)), last_logits(load_packed(folder, products))
    assert 0 < (rounded - exact).norm() <= 0.1 * exact.norm()


def test_random_biases_are_zeros_and_norms_ones(tmp_path):
    for variant, value in (("qwen2", 0.0), ("qwen3", 1.0)):
        model = load_model(write_model(tmp_path / variant, variant), torch.float32)
        random_weights(model, seed=0)
        vectors = [p for name, p in model.named_parameters() if "qkv_proj.bias" in name or "qk_norm" in name]
        assert len(vectors) == 3 and all(bool((vector == value).all()) for vector in vectors)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 1)])
def test_the_norm_of_heads_and_its_gradients_are_the_formulas_in_fp64(heads, kv_heads):
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(5, heads + kv_heads, 12, generator=generator) for _ in range(2))
    norm = HeadNorm(heads, kv_heads, 12, eps=0.1)
    norm.weight.data = formula("norm", (24,))
    exact_x, exact_weight = x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    own = exact_weight.view(2, 12)[[0] * heads + [1] * kv_heads]
    exact = own * exact_x / (exact_x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    ours = norm(x.requires_grad_())
    wanted = [exact.detach(), *torch.autograd.grad(exact, (exact_x, exact_weight), upstream.double())]
    for mine, true in zip([ours, *torch.autograd.grad(ours, (x, norm.weight), upstream)], wanted, strict=True):
        torch.testing.assert_close(mine.double(), true, atol=1e-5, rtol=1e-5)


QWEN = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
QWEN |= {"use_sliding_window": False, "bos_token_id": 151643, "eos_token_id": 151645, "rope_theta": 1e6}
PUBLISHED = {
    "mistralai/Mistral-7B-v0.1": (
        {"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336}
        | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
        | {"max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0, "hidden_act": "silu"},
        (7_241_732_096, 4096),
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
        | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}
        | {"max_position_embeddings": 32768, "sliding_window": 131072, "max_window_layers": 28, **QWEN},
        (7_615_616_512, 32768),
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864}
        | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}
        | {"max_position_embeddings": 32768, "sliding_window": 32768, "max_window_layers": 21, **QWEN}
        | {"tie_word_embeddings": True},
        (494_032_768, 32768),
    ),
    "Qwen/Qwen3-8B": (
        {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128}
        | {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-6}
        | {"max_position_embeddings": 40960, "sliding_window": None, "max_window_layers": 36, **QWEN}
        | {"attention_bias": False, "rope_scaling": None, "tie_word_embeddings": False},
        (8_190_735_360, 40960),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_have_as_many_parameters_as_their_cards_say(name):
    table, expected = PUBLISHED[name]
    config = LlamaConfig.from_dict(table)
    assert (config.parameter_count(), config.max_position_embeddings) == expected


@pytest.mark.parametrize(("window", "positions"), [(100, 100), (512, 512), (10_000, 512), (None, 512)])
def test_a_mistrals_window_limits_the_positions(window, positions):
    assert (
        LlamaConfig.from_dict(BASE | VARIANTS["mistral"] | {"sliding_window": window}).max_position_embeddings
        == positions
    )


def test_a_mistrals_window_is_4096_where_the_key_is_missing():
    """As transformers has it."""
    table = BASE | VARIANTS["mistral"] | {"max_position_embeddings": 32768}
    del table["sliding_window"]
    assert LlamaConfig.from_dict(table).max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("variant", "changes", "complaint"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "'sliding_attention'"),
        ("qwen2", {"layer_types": "full_attention"}, "layer_types: expected list"),
        ("qwen2", {"use_mrope": True}, "use_mrope is True"),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config: unknown"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ("qwen2", {"qkv_bias": False}, "qkv_bias: unknown"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3", {"qk_norm": False}, "qk_norm: unknown"),
        ("qwen3", {"num_experts": 8}, "num_experts: unknown"),
        (
            "qwen3",
            {"model_type": "qwen3_moe"},
            "model_type is 'qwen3_moe'; implemented are llama, mistral, qwen2, qwen3",
        ),
        ("qwen3", {"quantization_config": {"quant_method": "awq"}}, "quantization_config: unknown"),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: unknown"),
        ("mistral", {"sliding_window": "4096"}, "sliding_window: expected int"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("mistral", {"max_window_layers": 28}, "max_window_layers: unknown"),
    ],
)
def test_what_is_not_computed_is_named(variant, changes, complaint):
    with pytest.raises(UserError, match=rf"^config\.json: .*{complaint}"):
        LlamaConfig.from_dict(BASE | VARIANTS[variant] | changes)
