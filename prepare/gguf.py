"""GGUF to a Hugging Face directory: a converter for Llama models with a GPT-2 style tokenizer.

The package `gguf` reads and dequantises. GGUF, like Meta's layout (`prepare.meta`), stores the rows of q and k for
interleaved RoPE; the converters reorder them for Hugging Face's half-split RoPE.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.weights import write_tensors
from stages.files import UserError, write_json
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
SPECIAL = (3, 4)  # GGUF's types of control and user-defined tokens


def tensor_names(layout: int, layers: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each tensor's name in META's or GGUF's layout: Hugging Face's name, and the fields of its shape."""
    table = {row[layout]: (name, row[2:]) for name, row in OUTER.items()}
    for i in range(layers):
        block = f"{('layers', 'blk')[layout]}.{i}"
        table |= {f"{block}.{row[layout]}": (f"model.layers.{i}.{name}", row[2:]) for name, row in BLOCK.items()}
    return {f"{theirs}.weight": (f"{name}.weight", shape) for theirs, (name, shape) in table.items()}


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, so that `folder` is whole or not there."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    temporary.rename(folder)


def half_split(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """The tensor of Hugging Face's `name`, with q's and k's rows of each head in half-split order.

    Interleaved (x0, y0, x1, y1, ...) becomes half-split (x0, x1, ..., y0, y1, ...).
    """
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


def convert(path: Path, folder: Path) -> None:
    """Write the GGUF file `path` as a Hugging Face directory in bfloat16 at `folder`, which must not exist.

    Raises `UserError` for a missing file or package, another architecture, tokenizer or tensor.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed; pip install -e '.[demo]'") from None
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file; check the path")
    reader = gguf.GGUFReader(str(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kinds = [fields.get(name) for name in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")]
    if kinds != ["llama", "gpt2", "smollm"]:
        raise UserError(f"{path}: only Llama models with SmolLM's tokenizer are converted")
    config = LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.embedding_length"] // fields["llama.attention.head_count"],
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_theta=float(fields["llama.rope.freq_base"]),
        max_position_embeddings=fields["llama.context_length"],
        tie_word_embeddings="output.weight" not in {tensor.name for tensor in reader.tensors},
    )
    names = tensor_names(GGUF, config.num_hidden_layers)
    if unknown := {tensor.name for tensor in reader.tensors} - names.keys():
        raise UserError(f"{path}: the tensor {min(unknown)} is not one of a Llama's; only plain Llamas are converted")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for tensor in reader.tensors:
            weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
            name = names[tensor.name][0]
            yield name, half_split(name, weight, config)

    ids = {f"{name}_token_id": fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    with whole_folder(folder) as temporary:
        write_json(temporary / "config.json", config_document(config, ids, torch.bfloat16))
        write_json(temporary / "generation_config.json", {"eos_token_id": [ids["eos_token_id"]]})
        _tokenizer(fields, temporary)
        write_tensors(tensors(), temporary)


def _tokenizer(fields: Record, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json: byte-level BPE, digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, end = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.eos_token_id"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    special = [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind in SPECIAL]
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[end],
        "pad_token": tokens[fields.get("tokenizer.ggml.padding_token_id", end)],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }
    write_json(folder / "tokenizer_config.json", configuration)
