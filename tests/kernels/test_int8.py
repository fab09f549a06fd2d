"""Products in int8 against numpy's integers, and the choice of the dtype."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from marks import needs_int8

from kernels.attention import VarlenAttention
from kernels.int8 import Int8Weight, int8_linear
from kernels.segments import Segments
from model.config import LlamaConfig
from model.dtype import generation_dtype, training_dtype
from model.llama import Llama, logits_head
from model.quantize import hadamard, pack, rotate
from model.weights import random_weights
from stages.command import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request) -> Llama:
    """With random weights."""
    model = Llama(replace(LlamaConfig.load(FIXTURES / "llama2"), tie_word_embeddings=request.param))
    random_weights(model, seed=0)
    return model.requires_grad_(False)


@torch.inference_mode()
def logits(model: Llama) -> torch.Tensor:
    """Of 40 tokens."""
    return model(torch.arange(40), torch.arange(40), VarlenAttention(Segments.make([40])), logits_head)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(matrix: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's integers, in steps of its scale; of two parts they are one number, 254 steps of the second a step."""
    peak = np.abs(matrix).max(1, keepdims=True)
    scaled = matrix * (1 / peak * np.float32(127))  # as torch divides a number by a tensor
    first = np.rint(scaled)
    if parts == 1:
        return first.astype(np.int64), peak / 127.0
    second = np.rint((scaled - first) * np.float32(254))
    return first.astype(np.int64) * 254 + second.astype(np.int64), peak / 127.0 / 254


@needs_int8
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 1, 1), (1, 576, 960), (3, 33, 50), (130, 31, 127)])
def test_a_product_is_the_integers_product_times_the_scales(tokens, inputs, outputs, parts):
    """Of numpy's integers, in fp64; roundings as fp32 decides them."""
    x, weight = normal(0, tokens, inputs), normal(1, outputs, inputs)
    product = int8_linear(x, Int8Weight.of(weight, parts))
    (a, s), (b, r) = integers(x.numpy(), parts), integers(weight.numpy(), 1)
    assert product.dtype == torch.float32
    assert (np.abs(product.numpy() - (a @ b.T) * s * r.T) <= 1e-6 * (np.abs(a) @ np.abs(b.T)) * s * r.T).all()


@needs_int8
def test_a_row_does_not_depend_on_the_others_and_zeros_give_zeros():
    weight, x = normal(3, 300, 96), normal(4, 200, 96) * torch.logspace(-4, 4, 200)[:, None]
    x[2], weight[3] = 0, 0
    weight = Int8Weight.of(weight)
    whole = int8_linear(x, weight)
    for start, end in ((0, 1), (3, 11), (40, 105)):
        assert torch.equal(int8_linear(x[start:end], weight), whole[start:end])
    assert not whole[2].any() and not whole[:, 3].any() and whole.isfinite().all() and whole[0, 0]


def test_a_rotation_leaves_the_logits_as_they_are(model):
    for size in (1, 8, 64):
        torch.testing.assert_close(hadamard(size), torch.from_numpy(scipy.linalg.hadamard(size)) / size**0.5)
    embedding, norms = model.embed_tokens.weight.clone(), model.layers[0].input_layernorm.weight
    norms.copy_(normal(9, *norms.shape))
    exact = logits(model)
    rotate(model)
    assert not torch.allclose(model.embed_tokens.weight, embedding, atol=0.01)
    torch.testing.assert_close(logits(model), exact, atol=2e-5, rtol=1e-4)


@needs_int8
def test_a_packed_model_has_nearly_the_same_logits(model):
    exact = logits(model)
    assert pack(model, torch.int8) is model
    assert isinstance(model.lm_head.weight, Int8Weight) and model.embed_tokens.weight.dtype == torch.float32
    assert {layer.mlp.down_proj.weight.parts for layer in model.layers} == {2}
    assert 0 < (logits(model) - exact).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize(
    ("capabilities", "generation", "training"),
    [
        ("avx512_bf16 avx512_vnni", torch.bfloat16, torch.bfloat16),
        ("amx_tile avx512_vnni", torch.bfloat16, torch.bfloat16),
        ("avx512_vnni", torch.int8, torch.float32),
        ("avx2", torch.float32, torch.float32),
    ],
)
def test_the_dtypes_of_a_processor(monkeypatch, capabilities, generation, training):
    known = {"avx512_bf16": False} | dict.fromkeys(capabilities.split(), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert (generation_dtype("auto", CPU), training_dtype("auto", CPU)) == (generation, training)
    on_cuda = {generation_dtype("auto", CUDA), training_dtype("auto", CUDA)}
    assert on_cuda | {training_dtype("int8", CPU)} == {torch.float32}
    for name in ("float32", "bfloat16"):
        assert generation_dtype(name, CPU) == training_dtype(name, CPU) == getattr(torch, name)
    vnni = "vnni" in capabilities
    assert not vnni or generation_dtype("int8", CPU) == torch.int8
    for device, where in ((CUDA, "CUDA"), (CPU, "this processor, which lacks VNNI"))[: 2 - vnni]:
        with pytest.raises(UserError, match=rf'^\[model\] dtype = "int8" is not for {where}; set it to "auto"$'):
            generation_dtype("int8", device)
