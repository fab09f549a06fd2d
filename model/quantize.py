"""A model for inference: its weights packed, since oneDNN would lay a plain one out anew in every product."""

from functools import reduce
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn

from kernels.int8 import Int8Weight
from model.layers import Linear, RMSNorm
from model.llama import Block, Llama

ROTATED = 64  # most channels that are rotated together


def pack(model: Llama, products: torch.dtype) -> Llama:
    """Pack the weights of all products for this dtype, if that pays; changes the model, once, and returns it."""
    embedding = model.embed_tokens.weight
    if products == torch.int8:
        rotate(model)
    elif embedding.device.type == "cpu" and embedding.dtype == torch.bfloat16 and packs_bfloat16():
        model.lm_head = model.lm_head or _head(embedding)
    else:
        return model
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weight = module.weight
            del module.weight  # a packed weight is no parameter
            if products == torch.int8:
                # No rotation of the weights reaches SwiGLU's output, which therefore needs two int8 parts.
                module.weight = Int8Weight.of(weight, 2 if name.endswith("down_proj") else 1)  # type: ignore[assignment]
            else:
                module.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
    return model


def packs_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 on this processor: with AVX2 alone it does not, and plain products are used."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def rotate(model: Llama) -> None:
    """Rotate the residual stream without changing the logits (QuaRot, arXiv 2404.00456).

    A few of a Llama's channels are far larger than the others, and would set the scale by which int8 rounds them all.
    With w a norm's weights, and Q orthogonal and symmetric, of a Hadamard matrix for each `ROTATED` channels:

        E -> E Q    W_in -> W_in diag(w) Q    W_out -> Q W_out    since  norm(x Q) = norm(x) Q
    """
    mix = hadamard(gcd(model.config.hidden_size, ROTATED))

    def mixed(weight_od: Tensor) -> nn.Parameter:
        return _frozen((weight_od.unflatten(-1, (-1, len(mix))) @ mix).flatten(-2))

    def enter(norm: RMSNorm, product: Linear) -> None:
        product.weight = mixed(product.weight * norm.weight)
        norm.weight = _frozen(torch.ones_like(norm.weight))

    def leave(product: Linear) -> None:
        product.weight = _frozen((mix @ product.weight.unflatten(0, (-1, len(mix)))).flatten(0, 1))

    model.lm_head = model.lm_head or _head(model.embed_tokens.weight)
    enter(model.norm, model.lm_head)
    model.embed_tokens.weight = mixed(model.embed_tokens.weight)
    for layer in model.layers:
        block = cast(Block, layer)
        enter(block.input_layernorm, block.self_attn.qkv_proj)
        leave(block.self_attn.o_proj)
        enter(block.post_attention_layernorm, block.mlp.gate_up_proj)
        leave(block.mlp.down_proj)


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix, orthogonal, fp32 [size, size]; `size` is a power of 2."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    return reduce(torch.kron, [two] * (size.bit_length() - 1), torch.ones(1, 1)) / size**0.5


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _head(weight_vd: Tensor) -> Linear:
    with torch.device("meta"):
        head = Linear(weight_vd.shape[1], weight_vd.shape[0])
    head.weight = _frozen(weight_vd)
    return head
