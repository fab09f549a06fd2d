"""Llama and its kin (Mistral, Qwen2, Qwen3) by hand: one forward for training, prefill and decode.

Tokens are flat: no batch dimension and no padding. `attend` knows which tokens see which; `head` makes logits or
log-probabilities inside the forward, since under FSDP the weight is whole only there.

Shapes: t tokens, d hidden_size, h query heads, k key-value heads, v vocabulary.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.rope import Rope, rope_tables
from model.config import LlamaConfig
from model.layers import HeadNorm, Linear, RMSNorm, SwiGLU, Weight, linear

# (layer, q and k [t, h + k, head_dim], v [t, k, head_dim], rope, norm or None) -> [t, h, head_dim]; q and k are neither
# normalised nor rotated yet.
Attend = Callable[[int, Tensor, Tensor, Rope, HeadNorm | None], Tensor]
Head = Callable[[Tensor, Weight], Tensor]  # (hidden [t, d], weight [v, d]) -> what the caller needs, such as logits


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
        x_td = self.embed_tokens(ids_t)
        rope = rope_tables(positions_t, _frequencies(self.config, ids_t.device))
        for i, layer in enumerate(self.layers):
            x_td = layer(x_td, i, attend, rope)
        return head(self.norm(x_td), self.head_weight)

    @property
    def head_weight(self) -> Weight:
        """[v, d]: the head's weight, or the embedding's if they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.recompute = False  # activation checkpointing: keep only the block's input for backward

    def forward(self, x_td: Tensor, layer: int, attend: Attend, rope: Rope) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x_td, layer, attend, rope, use_reentrant=False)
        return self._forward(x_td, layer, attend, rope)

    def _forward(self, x_td: Tensor, layer: int, attend: Attend, rope: Rope) -> Tensor:
        return self._behind(x_td, attend(layer, *self._before(x_td), rope, self.self_attn.qk_norm))

    def _before(self, x_td: Tensor) -> tuple[Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x_td))

    def _behind(self, x_td: Tensor, attended_thd: Tensor) -> Tensor:
        x_td = x_td + self.self_attn.o_proj(attended_thd.flatten(1))
        return x_td + self.mlp(self.post_attention_layernorm(x_td))

    def fuse(self) -> None:
        """Compile the parts before and behind the attention, and its norm; token counts may vary."""
        self._before = torch.compile(self._before, dynamic=True)  # type: ignore[method-assign]
        self._behind = torch.compile(self._behind, dynamic=True)  # type: ignore[method-assign]
        if self.self_attn.qk_norm is not None:
            self.self_attn.qk_norm.compile(dynamic=True)


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
