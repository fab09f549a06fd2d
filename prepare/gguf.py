"""GGUF to a Hugging Face directory: a converter for Llama models with a GPT-2 style tokenizer.

The package `gguf` reads and dequantises. GGUF stores the rows of q and k for interleaved RoPE; the converter reorders
them for Hugging Face's half-split RoPE.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import LlamaConfig
from stages.files import UserError, write_json

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_down": "mlp.down_proj",
}
STACKED = {
    "self_attn.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
}
CONTROL, USER_DEFINED = 3, 4  # GGUF's types of special tokens


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, so that `folder` is whole or not there."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    temporary.rename(folder)


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from interleaved (x0, y0, x1, y1, ...) to half-split (x0, x1, ..., y0, y1, ...) order."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def convert(path: Path, folder: Path) -> None:
    """Write the GGUF file `path` as a Hugging Face directory in bfloat16 at `folder`, which must not exist.

    Raises `UserError` for a missing file or package, another architecture or another tokenizer.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed; pip install -e '.[demo]'") from None
    from model.weights import save_pretrained

    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file; check the path")
    reader = gguf.GGUFReader(str(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama" or fields["tokenizer.ggml.model"] != "gpt2":
        raise UserError(f"{path}: only Llama models with a GPT-2 style tokenizer are converted")
    tensors = {
        tensor.name.removesuffix(".weight"): torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
    table = _config(fields, tied="output" not in tensors)
    config = LlamaConfig.from_dict(table, str(path))
    parameters = ((name, tensor.to(torch.bfloat16)) for name, tensor in _parameters(tensors, config))
    with whole_folder(folder) as temporary:
        write_json(temporary / "config.json", table)
        write_json(temporary / "generation_config.json", {"eos_token_id": [fields["tokenizer.ggml.eos_token_id"]]})
        _tokenizer(fields, temporary)
        save_pretrained(parameters, config, temporary, temporary)


def _config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "max_position_embeddings": fields["llama.context_length"],
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def _parameters(tensors: dict[str, Tensor], config: LlamaConfig):
    """(name, tensor) of the model's own parameters, from GGUF's."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    yield "embed_tokens.weight", tensors["token_embd"]
    for i in range(config.num_hidden_layers):
        for ours, theirs in STACKED.items():
            parts = [tensors[f"blk.{i}.{name}"] for name in theirs]
            rows = [half_split(p, heads[n]) if n in heads else p for n, p in zip(theirs, parts, strict=True)]
            yield f"layers.{i}.{ours}.weight", torch.cat(rows)
        for name, ours in NAMES.items():
            yield f"layers.{i}.{ours}.weight", tensors[f"blk.{i}.{name}"]
    yield "norm.weight", tensors["output_norm"]
    if "output" in tensors:
        yield "lm_head.weight", tensors["output"]


def _tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json: byte-level BPE, digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if fields["tokenizer.ggml.pre"] != "smollm":
        raise UserError(f"pre-tokenizer {fields['tokenizer.ggml.pre']!r} is not implemented; only 'smollm' is")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields.get("tokenizer.ggml.padding_token_id", fields["tokenizer.ggml.eos_token_id"])],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }
    write_json(folder / "tokenizer_config.json", configuration)
