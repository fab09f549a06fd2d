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

from model.weights import write_tensors
from stages.files import UserError, write_json

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's and Hugging Face's names of tensors."""
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
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file; check the path")
    reader = gguf.GGUFReader(str(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama" or fields["tokenizer.ggml.model"] != "gpt2":
        raise UserError(f"{path}: only Llama models with a GPT-2 style tokenizer are converted")
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for tensor in reader.tensors:
            weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
            *block, part = tensor.name.removesuffix(".weight").split(".")
            if part not in (BLOCK if block else OUTER):
                raise UserError(f"{path}: tensor {tensor.name} is not implemented")
            weight = half_split(weight, heads[part]) if part in heads else weight
            name = f"model.layers.{block[1]}.{BLOCK[part]}" if block else OUTER[part]
            yield f"{name}.weight", weight

    table = _config(fields, tied="output.weight" not in {tensor.name for tensor in reader.tensors})
    with whole_folder(folder) as temporary:
        write_json(temporary / "config.json", table)
        write_json(temporary / "generation_config.json", {"eos_token_id": [fields["tokenizer.ggml.eos_token_id"]]})
        _tokenizer(fields, temporary)
        write_tensors(tensors(), temporary)


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
