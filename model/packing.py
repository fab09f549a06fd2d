"""A model made ready for inference: its weights laid out for the products that shall run, in int8 after a rotation.

Shapes: t tokens, d hidden_size, i and o sizes of a product's input and output.
"""

from math import gcd
from typing import cast

import torch
from torch import Tensor, nn

from model.layers import Linear, RMSNorm, packable, packed
from model.llama import Block, Llama

ROTATED = 64
"""Channels that are rotated together, at most."""

PARTS = {"down_proj": 2}
"""How many int8 parts a module's input has, by the module's name; 1 elsewhere. No rotation of the weights reaches
SwiGLU's output."""


def pack(model: Llama, products: torch.dtype) -> Llama:
    """Pack the weights of all products, which shall run in this dtype, where that pays; for inference alone, and once.

    Changes the model, and returns it.
    """
    if products == torch.int8:
        rotate(model)
    elif packable(model.embed_tokens.weight):
        model.lm_head = model.lm_head or _head(model.embed_tokens.weight)
    else:
        return model
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.take(packed(module.weight, products, PARTS.get(name.rpartition(".")[2], 1)))
    return model


@torch.no_grad()
def rotate(model: Llama) -> None:
    """Turn the residual stream, which leaves the logits as they are (QuaRot, arXiv 2404.00456).

    A few of a Llama's channels are far larger than the others, and would set the scale by which int8 rounds all of
    them. So the norms' weights w go into the products that follow, and a Hadamard matrix mixes each block of `ROTATED`
    neighbouring channels. With Q of all these blocks, orthogonal and symmetric:

        E -> E Q    W_in -> W_in diag(w) Q    W_out -> Q W_out    since  norm(x Q) = norm(x) Q
    """
    mix = hadamard(gcd(model.config.hidden_size, ROTATED))

    def enter(norm: RMSNorm, product: Linear) -> None:
        product.weight = _frozen(_mixed(product.weight * norm.weight, mix))
        norm.weight = _frozen(torch.ones_like(norm.weight))

    def leave(product: Linear) -> None:
        product.weight = _frozen((mix @ product.weight.unflatten(0, (-1, len(mix)))).flatten(0, 1))

    model.lm_head = model.lm_head or _head(model.embed_tokens.weight)
    enter(model.norm, model.lm_head)
    model.embed_tokens.weight = _frozen(_mixed(model.embed_tokens.weight, mix))
    for layer in model.layers:
        block = cast(Block, layer)
        enter(block.input_layernorm, block.self_attn.qkv_proj)
        leave(block.self_attn.o_proj)
        enter(block.post_attention_layernorm, block.mlp.gate_up_proj)
        leave(block.mlp.down_proj)


def _mixed(weight_od: Tensor, mix: Tensor) -> Tensor:
    return (weight_od.unflatten(-1, (-1, len(mix))) @ mix).flatten(-2)


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def hadamard(size: int) -> Tensor:
    """The orthogonal Hadamard matrix of Sylvester's construction, fp32 [size, size]; `size` is a power of 2."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def _head(weight_vd: Tensor) -> Linear:
    """A head with this weight."""
    with torch.device("meta"):
        head = Linear(weight_vd.shape[1], weight_vd.shape[0])
    head.weight = _frozen(weight_vd)
    return head
