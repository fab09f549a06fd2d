"""Meta's checkpoint layout to a Hugging Face directory: `python -m prepare.meta SOURCE FOLDER`.

SOURCE holds params.json, consolidated.00.pth and so on, and tokenizer.model: a download of Llama 1 to 3.3 from Meta, or
the folder `original` of a Hugging Face repository. Each .pth file is one rank's part under Meta's model parallelism.
"""

import argparse
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.config import Layers, LlamaConfig, RopeScaling, reading
from model.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer
from model.weights import write_tensors
from prepare.layouts import META, config_document, half_split, tensor_names, whole_folder
from stages.command import UserError, command
from stages.config import convert as checked
from stages.files import read_json, write_json
from stages.records import Record

Parts = dict[str, list[Tensor]]  # the ranks' parts of each tensor
NEEDED = {"dim", "n_layers", "n_heads", "norm_eps"}
KNOWN = NEEDED | {"n_kv_heads", "vocab_size", "rope_theta", "use_scaled_rope"}
KNOWN |= {"multiple_of", "ffn_dim_multiplier", "max_batch_size", "max_seq_len"}  # not needed

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% set system = '' %}{% set turns = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}"
    "{% endif %}{% for message in turns %}{% if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('roles must be user and assistant in turn') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def _load(source: Path, names: Collection[str]) -> Parts:
    """Each tensor's parts in consolidated.*.pth, mapped into memory."""
    paths = sorted(source.glob("consolidated.*.pth"))
    if not paths:
        raise UserError(f"{source}: no consolidated.00.pth beside params.json; fetch the weights")
    ranks: list[dict[str, Tensor]] = []
    for i, path in enumerate(paths):
        if path.name != f"consolidated.{i:02}.pth":
            raise UserError(f"{source}: consolidated.{i:02}.pth is missing, but {path.name} is there; fetch it")
        with reading(path, "not a file of tensors"):
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise UserError(f"{path}: not a table of tensors; fetch the file again")
        tensors.pop("rope.freqs", None)  # the frequencies follow from params.json
        for name in sorted(tensors.keys() ^ names):
            problem = "missing" if name in names else "unexpected"
            raise UserError(f"{path}: tensor {name} is {problem}; params.json and weights do not match")
        ranks.append(tensors)
    return {name: [tensors[name] for tensors in ranks] for name in names}


def _join(where: str, parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The tensor of this shape; each rank has some of its rows, some of its columns, or the whole."""
    first, size = parts[0], torch.Size(shape)
    split = next((dim for dim, (n, whole) in enumerate(zip(first.shape, size, strict=False)) if n != whole), None)
    fits = first.is_floating_point() and all((p.shape, p.dtype) == (first.shape, first.dtype) for p in parts)
    if fits and split is None:
        fits = all(torch.equal(part, first) for part in parts)
    whole = torch.cat([*parts], split) if fits and split is not None else first
    if not fits or whole.shape != size:
        found = ", ".join(f"{list(part.shape)} {part.dtype}".replace("torch.", "") for part in parts)
        wrong = f"its shards {found} do not make {list(size)}, as params.json says"
        raise UserError(f"{where}: {wrong}; is a consolidated file missing or damaged?")
    return whole


@torch.no_grad()
def convert(source: Path, folder: Path, rope_factor: float = 8.0, context: int | None = None) -> Path:
    """Write Meta's checkpoint at `source` as a Hugging Face directory in the same dtype at the new `folder`.

    `rope_factor` is by how much Llama 3.1 and later slow low frequencies: 8 in Meta's own code, 32 in Hugging Face's
    configs of Llama 3.2. `context` becomes max_position_embeddings. A chat template is always written, as Meta's files
    do not say whether a model is a chat model. Raises `UserError` for files that are missing, damaged or do not fit.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it or name another folder")
    if not (source / "params.json").is_file() and (source / "original" / "params.json").is_file():
        source = source / "original"
    params = read_json(path := source / "params.json", "point SOURCE at a checkpoint in Meta's layout")
    for key in sorted(NEEDED - params.keys()) + sorted(params.keys() - KNOWN):
        wrong = "missing; fetch the file again" if key in NEEDED else "not implemented; only dense Llamas of text are"
        raise UserError(f"{path}: key {key!r} is {wrong}")
    checked(bool, params.get("use_scaled_rope", False), f"{path}: use_scaled_rope")
    if not (source / "tokenizer.model").is_file():
        raise UserError(f"{source}: no tokenizer.model beside params.json; copy it there")
    layers = checked(Layers, params["n_layers"], f"{path}: n_layers")
    tokenizer, names = load_tokenizer(source), tensor_names(META, layers)
    parts = _load(source, names)
    config = _config(source, params, parts, tokenizer, rope_factor, context)
    outer, shape = ("tok_embeddings.weight", "output.weight"), (config.vocab_size, config.hidden_size)
    embedding, head = (_join(f"{source}: {name}", parts[name], shape) for name in outer)
    # Meta stores embedding and head even where they are tied.
    config = replace(config, tie_word_embeddings=torch.equal(embedding, head))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for theirs, (name, shape) in names.items():
            tensor = _join(f"{source}: {theirs}", parts[theirs], [getattr(config, field) for field in shape])
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                yield name, half_split(name, tensor, config)

    with whole_folder(folder) as temporary:
        write_tensors(tensors(), temporary)
        _write_tokenizer(source, tokenizer, config, embedding.dtype, temporary)
    return folder


def _config(
    source: Path, params: Record, parts: Parts, tokenizer: Tokenizer, rope_factor: float, context: int | None
) -> LlamaConfig:
    """The model's shape, from params.json and the weights' shapes."""
    where, llama3, scaled = source / "params.json", isinstance(tokenizer, JsonTokenizer), params.get("use_scaled_rope")
    if llama3 and "rope_theta" not in params:
        raise UserError(f"{where}: key 'rope_theta' is missing, which Llama 3 needs; fetch the file again")
    if rope_factor != 8.0 and not scaled:
        raise UserError(f"{where}: a RoPE factor is given, but use_scaled_rope is not set; leave it out")
    vocabulary, hidden = (sum(map(len, parts[name])) for name in ("output.weight", "layers.0.feed_forward.w1.weight"))
    if params.get("vocab_size", -1) not in (-1, vocabulary) or tokenizer.vocab_size > vocabulary:
        said = f"vocab_size is {params.get('vocab_size')}, tokenizer.model has {tokenizer.vocab_size} tokens"
        raise UserError(f"{where}: {said}, output.weight {vocabulary} rows; is a consolidated file missing?")
    table: Record = {"model_type": "llama", "vocab_size": vocabulary, "hidden_size": params["dim"]}
    table |= {"intermediate_size": hidden, "num_hidden_layers": params["n_layers"]}
    table |= {"num_attention_heads": params["n_heads"], "num_key_value_heads": params.get("n_kv_heads")}
    positions = context or (131_072 if scaled else 8_192 if llama3 else 4_096)
    table |= {"rms_norm_eps": params["norm_eps"], "max_position_embeddings": positions}
    table["rope_theta"] = params.get("rope_theta", 10_000.0)
    scaling = RopeScaling(rope_factor, 1.0, 4.0, 8192) if scaled else None
    return replace(LlamaConfig.from_dict(table), rope_scaling=scaling)


def _write_tokenizer(source: Path, tokenizer: Tokenizer, config: LlamaConfig, dtype: torch.dtype, folder: Path) -> None:
    """Write config, tokenizer, chat template and stop ids in the form that transformers and vLLM read."""
    start, ends, template = "<s>", ["</s>"], LLAMA2_TEMPLATE
    if isinstance(tokenizer, JsonTokenizer):
        # Since Llama 3.1 <|eom_id|> ends a message that calls a tool.
        calls = ["<|eom_id|>"] if config.rope_scaling else []
        start, ends, template = "<|begin_of_text|>", ["<|end_of_text|>", *calls, "<|eot_id|>"], LLAMA3_TEMPLATE
        tokenizer.backend.save(str(folder / "tokenizer.json"))
        own: Record = {"tokenizer_class": "PreTrainedTokenizerFast"}
    else:
        shutil.copy(source / "tokenizer.model", folder)
        # Meta's code encodes each piece of a dialog with a space before it, which transformers calls "legacy".
        own = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "unk_token": "<unk>"}
    stop_ids = [tokenizer.control(name) for name in ends]
    ids = {"bos_token_id": tokenizer.control(start), "eos_token_id": stop_ids if len(ends) > 1 else stop_ids[0]}
    texts = {"chat_template": template, "bos_token": start, "eos_token": ends[-1]}
    common = {"model_max_length": config.max_position_embeddings, "clean_up_tokenization_spaces": False}
    write_json(folder / "config.json", config_document(config, ids, dtype))
    write_json(folder / "tokenizer_config.json", common | own | texts)
    write_json(folder / "generation_config.json", ids)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a checkpoint in Meta's layout to a Hugging Face directory.")
    parser.add_argument("source", type=Path, help="folder with params.json, consolidated.*.pth and tokenizer.model")
    parser.add_argument("folder", type=Path, help="the Hugging Face directory to write")
    parser.add_argument("--rope-factor", type=float, default=8.0, help="of scaled RoPE; Llama 3.2: 32")
    parser.add_argument("--context", type=int, help="max_position_embeddings; default by the model's family")
    print(convert(**vars(parser.parse_args())))


if __name__ == "__main__":
    command(main)
