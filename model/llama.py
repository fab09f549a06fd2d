"""Llama and its kin (Mistral, Qwen2, Qwen3) by hand: one forward for training, prefill and decode.

Tokens are flat: no batch dimension and no padding. `attend` knows which tokens see which; `head` makes logits or
log-probabilities inside the forward, since under FSDP the weight is whole only there.

Shapes: t tokens, d hidden_size, h query heads, k key-value heads, v vocabulary.
"""

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import launch
from kernels.rope import Rope, rope_tables
from model.config import LlamaConfig
from model.layers import Head, HeadNorm, Linear, RMSNorm, SwiGLU, Weight, linear

Stream = tuple[Tensor, Tensor]  # the residual stream, and what the next norm is to add to it, both [t, d]


class Attend(Protocol):
    attention: launch.Attention  # whether the whole model runs in Triton's kernels

    def __call__(self, layer: int, qk_thd: Tensor, v_tkd: Tensor, rope: Rope, norm: HeadNorm | None) -> Tensor:
        """[t, h, head_dim], given q and k [t, h + k, head_dim], neither normalised nor rotated yet, and v."""


class Llama(nn.Module):
    """The whole model. Parameters have Hugging Face's names, except the two fused projections."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        # An empty weight: nn.Embedding would fill its own, for which torch imports its compiler, for two seconds.
        empty_vd = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=empty_vd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)

    def forward(self, ids_t: Tensor, positions_t: Tensor, attend: Attend, head: Head) -> Tensor:
        """`ids_t`, `positions_t`: int64 [t]. Returns `head(hidden [t, d], weight [v, d])`."""
        x_td, update_td = self.embed_tokens(ids_t), None
        rope = rope_tables(positions_t, _frequencies(self.config, ids_t.device))
        for i, layer in enumerate(self.layers):
            x_td, update_td = layer(x_td, update_td, i, attend, rope)
        hidden_td = self.norm(x_td, update_td, launch.use_triton(attend.attention, x_td))[1]
        return self.lm_head(hidden_td, head) if self.lm_head else head(hidden_td, self.embed_tokens.weight)


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.recompute = False  # activation checkpointing: keep only the block's input for backward
        self.compiled = False  # by `fuse`, from the eager kernels

    def forward(self, x_td: Tensor, update_td: Tensor | None, layer: int, attend: Attend, rope: Rope) -> Stream:
        """Given x and what the block before adds to it: the residual stream, and what this block adds."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self._forward(x_td, update_td, layer, attend, rope)
        x_td = x_td if update_td is None else x_td + update_td  # keeps one tensor rather than two
        return checkpoint(self._forward, x_td, None, layer, attend, rope, use_reentrant=False)

    def _forward(self, x_td: Tensor, update_td: Tensor | None, layer: int, attend: Attend, rope: Rope) -> Stream:
        triton = launch.use_triton(attend.attention, x_td) and not self.compiled
        x_td, qk_thd, v_tkd = self._before(x_td, update_td, triton)
        return self._behind(x_td, attend(layer, qk_thd, v_tkd, rope, self.self_attn.qk_norm), triton)

    def _before(self, x_td: Tensor, update_td: Tensor | None, triton: bool) -> tuple[Tensor, Tensor, Tensor]:
        x_td, normal_td = self.input_layernorm(x_td, update_td, triton)
        return x_td, *self.self_attn.project(normal_td)

    def _behind(self, x_td: Tensor, attended_thd: Tensor, triton: bool) -> Stream:
        update_td = self.self_attn.o_proj(attended_thd.flatten(1))
        x_td, normal_td = self.post_attention_layernorm(x_td, update_td, triton)
        return x_td, self.mlp(normal_td, triton)

    def fuse(self) -> None:
        """Compile the parts before and behind the attention; token counts may vary."""
        self.compiled = True
        self._before = torch.compile(self._before, dynamic=True)  # type: ignore[method-assign]
        self._behind = torch.compile(self._behind, dynamic=True)  # type: ignore[method-assign]


class Attention(nn.Module):
    """Grouped-query attention; the projections of queries, keys and values are one matrix, rows in that order."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.sizes = [config.q_size + config.kv_size, config.kv_size]
        self.head_dim = config.head_dim
        self.qkv_proj = Linear(config.hidden_size, sum(self.sizes), config.qkv_bias)
        heads = (config.num_attention_heads, config.num_key_value_heads)
        self.qk_norm = HeadNorm(*heads, config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.o_proj = Linear(config.q_size, config.hidden_size)

    def project(self, x_td: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [t, h + k, head_dim], and values [t, k, head_dim]."""
        qk, v = self.qkv_proj(x_td).split(self.sizes, dim=-1)
        return qk.unflatten(-1, (-1, self.head_dim)), v.unflatten(-1, (-1, self.head_dim))


@lru_cache
def _frequencies(config: LlamaConfig, device: torch.device) -> Tensor:
    return torch.tensor(config.inverse_frequencies(), dtype=torch.float32, device=device)


def logits_head(hidden_td: Tensor, weight_vd: Weight) -> Tensor:
    """Logits of every token, fp32 [t, v]."""
    return linear(hidden_td, weight_vd).float()
