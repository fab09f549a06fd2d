"""Meta's and GGUF's layouts of a Llama's weights, and what writing a Hugging Face directory from them takes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from model.config import LlamaConfig
from stages.lock import run_lock
from stages.records import Record

D, VOCABULARY, HIDDEN = "hidden_size", "vocab_size", "intermediate_size"
OUTER: dict[str, tuple[str, ...]] = {
    "model.embed_tokens": ("tok_embeddings", "token_embd", VOCABULARY, D),
    "model.norm": ("norm", "output_norm", D),
    "lm_head": ("output", "output", VOCABULARY, D),
}
BLOCK: dict[str, tuple[str, ...]] = {
    "input_layernorm": ("attention_norm", "attn_norm", D),
    "self_attn.q_proj": ("attention.wq", "attn_q", "q_size", D),
    "self_attn.k_proj": ("attention.wk", "attn_k", "kv_size", D),
    "self_attn.v_proj": ("attention.wv", "attn_v", "kv_size", D),
    "self_attn.o_proj": ("attention.wo", "attn_output", D, "q_size"),
    "post_attention_layernorm": ("ffn_norm", "ffn_norm", D),
    "mlp.gate_proj": ("feed_forward.w1", "ffn_gate", HIDDEN, D),
    "mlp.up_proj": ("feed_forward.w3", "ffn_up", HIDDEN, D),
    "mlp.down_proj": ("feed_forward.w2", "ffn_down", D, HIDDEN),
}
"""Tensors: Hugging Face's name, Meta's and GGUF's, and the fields of `LlamaConfig` that are the tensor's shape."""
META, GGUF = 0, 1


def tensor_names(layout: int, layers: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each tensor's name in META's or GGUF's layout: Hugging Face's name, and the fields of its shape."""
    table = {row[layout]: (name, row[2:]) for name, row in OUTER.items()}
    for i in range(layers):
        block = f"{('layers', 'blk')[layout]}.{i}"
        table |= {f"{block}.{row[layout]}": (f"model.layers.{i}.{name}", row[2:]) for name, row in BLOCK.items()}
    return {f"{theirs}.weight": (f"{name}.weight", shape) for theirs, (name, shape) in table.items()}


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, so that `folder` is whole or not there. Of several processes
    at once the first makes it."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with run_lock(folder.parent, wait=True, sweep=False):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        shutil.rmtree(temporary) if (folder / "config.json").is_file() else temporary.rename(folder)


def half_split(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """The tensor of Hugging Face's `name`; q's and k's rows, interleaved (x0, y0, ...), as (x0, x1, ..., y0, ...)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape) if heads else weight


def config_document(config: LlamaConfig, ids: Record, dtype: torch.dtype) -> Record:
    """Hugging Face's config.json; `ids` are {bos_token_id, eos_token_id}."""
    sizes = {name: value for name, value in asdict(config).items() if name not in ("head_dim", "rope_scaling")}
    document = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, "hidden_act": "silu", **ids}
    document["torch_dtype"] = str(dtype).removeprefix("torch.")
    if config.rope_scaling:
        document["rope_scaling"] = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    return document
