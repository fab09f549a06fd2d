"""Meta's checkpoint layout to a Hugging Face directory: `python -m prepare.meta SOURCE FOLDER`.

SOURCE holds params.json, consolidated.00.pth and so on, and tokenizer.model: a download of Llama 1 to 3.3 from Meta, or
the folder `original` of a Hugging Face repository. Each .pth file is one rank's part under Meta's model parallelism;
tensors are joined one by one. RoPE rotates neighbouring dimensions of q and k in Meta's code, and dimensions half a
head apart in Hugging Face's, so the rows of q and k are reordered.
"""

import argparse
import json
import pickle
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer
from model.weights import write_tensors
from prepare.gguf import META, half_split, tensor_names, whole_folder
from stages.files import UserError, command, write_json

NEEDED = {"dim", "n_layers", "n_heads", "norm_eps"}
KNOWN = NEEDED | {"n_kv_heads", "vocab_size", "rope_theta", "use_scaled_rope"}
# Some keys of params.json follow from the weights' shapes, or only limit Meta's own cache.
KNOWN |= {"multiple_of", "ffn_dim_multiplier", "max_batch_size", "max_seq_len"}

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% set system = '' %}{% set turns = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}"
    "{% endif %}{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def _load(source: Path, names: Collection[str]) -> dict[str, list[Tensor]]:
    """Each tensor's parts in consolidated.*.pth, mapped into memory.

    Raises `UserError` where a file or a tensor is missing, and for a file that is damaged or holds anything else.
    """
    paths = sorted(source.glob("consolidated.*.pth"))
    if not paths:
        raise UserError(f"{source}: no consolidated.00.pth beside params.json; fetch the weights")
    ranks: list[dict[str, Tensor]] = []
    for i, path in enumerate(paths):
        if path.name != f"consolidated.{i:02}.pth":
            raise UserError(f"{source}: consolidated.{i:02}.pth is missing, but {path.name} is there; fetch it")
        try:
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: not a file of tensors ({reason}); fetch the file again") from None
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise UserError(f"{path}: not a table of tensors; fetch the file again")
        tensors.pop("rope.freqs", None)  # the frequencies follow from params.json
        for name in sorted(tensors.keys() ^ names):
            problem = "missing" if name in names else "unexpected"
            raise UserError(f"{path}: tensor {name} is {problem}; params.json and weights do not match")
        ranks.append(tensors)
    return {name: [tensors[name] for tensors in ranks] for name in names}


def _join(where: str, parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The whole tensor, of which each rank has some of the rows, some of the columns, or the whole.

    Raises `UserError` where the parts do not fit each other, or the shape is not `shape`.
    """
    first, size = parts[0], torch.Size(shape)
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        raise UserError(f"{where} differs in shape or dtype between shards; fetch the files again")
    if not first.is_floating_point():
        raise UserError(f"{where} is {first.dtype}; quantized weights are not implemented")
    split = next((dim for dim, n in enumerate(first.shape[: len(size)]) if n != size[dim]), None)
    whole = first if split is None else torch.cat([*parts], dim=split)
    if whole.shape != size:
        wrong = f"has shape {list(whole.shape)} in {len(parts)} shards together, params.json says {list(size)}"
        raise UserError(f"{where} {wrong}; is a consolidated file missing?")
    if split is None and not all(torch.equal(part, first) for part in parts):
        raise UserError(f"{where} must be equal in every shard, but is not; fetch the files again")
    return whole


@torch.no_grad()
def convert(source: Path | str, folder: Path | str, rope_factor: float = 8.0, context: int | None = None) -> Path:
    """Write Meta's checkpoint at `source` as a Hugging Face directory in the same dtype at the new `folder`.

    `rope_factor` is by how much Llama 3.1 and later slow low frequencies: 8 in Meta's own code, 32 in Hugging Face's
    configs of Llama 3.2. `context` becomes max_position_embeddings; by default 131072 for Llama 3.1 and later, 8192 for
    Llama 3, else 4096. A chat template is always written, as Meta's files do not say whether a model is a chat model.

    Raises `UserError` for files that are missing or damaged, keys of params.json that are not implemented, and tensors
    that are missing, unknown, or do not fit each other or params.json.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it or name another folder")
    if not (source / "params.json").is_file() and (source / "original" / "params.json").is_file():
        source = source / "original"
    params = _read_params(source / "params.json")
    if not (source / "tokenizer.model").is_file():
        raise UserError(f"{source}: no tokenizer.model beside params.json; copy it there")
    tokenizer, names = load_tokenizer(source), tensor_names(META, params["n_layers"])
    parts = _load(source, names)
    table = _config(source, params, parts, tokenizer, rope_factor, context)
    config = LlamaConfig.from_dict(table, str(source / "params.json"))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for theirs, (name, shape) in names.items():
            tensor = _join(f"{source}: {theirs}", parts[theirs], [getattr(config, field) for field in shape])
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                yield name, half_split(name, tensor, table)

    with whole_folder(folder) as temporary:
        write_tensors(tensors(), temporary)
        write_json(temporary / "config.json", table)
        _write_tokenizer(source, tokenizer, table, temporary)
    return folder


def _read_params(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; point SOURCE at a checkpoint in Meta's layout")
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from None
    for key in sorted(NEEDED - params.keys()):
        raise UserError(f"{path}: key {key!r} is missing; fetch the file again")
    for key in sorted(params.keys() - KNOWN):
        raise UserError(f"{path}: key {key!r} is not implemented; only dense Llama models of text are")
    return params


def _config(
    source: Path,
    params: dict[str, Any],
    parts: dict[str, list[Tensor]],
    tokenizer: Tokenizer,
    rope_factor: float,
    context: int | None,
) -> dict[str, Any]:
    """Hugging Face's config.json, from params.json and the weights' shapes."""
    where, scaled, llama3 = (
        source / "params.json",
        bool(params.get("use_scaled_rope")),
        isinstance(tokenizer, JsonTokenizer),
    )
    if llama3 and "rope_theta" not in params:
        raise UserError(f"{where}: key 'rope_theta' is missing, which Llama 3 needs; fetch the file again")
    if rope_factor != 8.0 and not scaled:
        raise UserError(f"{where}: a RoPE factor is given, but use_scaled_rope is not set; leave it out")
    vocab_size, hidden = (sum(map(len, parts[name])) for name in ("output.weight", "layers.0.feed_forward.w1.weight"))
    if params.get("vocab_size", -1) not in (-1, vocab_size):
        rows = f"vocab_size is {params['vocab_size']}, output.weight has {vocab_size} rows"
        raise UserError(f"{where}: {rows}; is a consolidated file missing?")
    if tokenizer.vocab_size > vocab_size:
        tokens = tokenizer.vocab_size
        raise UserError(f"{source}: tokenizer.model has {tokens} tokens, output.weight {vocab_size} rows")
    embedding, head = (
        _join(f"{source}: {name}", parts[name], (vocab_size, params["dim"]))
        for name in ("tok_embeddings.weight", "output.weight")
    )
    # Since Llama 3.1 <|eom_id|> ends a message that calls a tool. Meta stores embedding and head even where tied.
    ends = ["</s>", "<|end_of_text|>", *(["<|eom_id|>"] if scaled else []), "<|eot_id|>"]
    stop_ids = [token for name in ends if (token := tokenizer.control(name)) is not None]
    table = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": params["dim"],
        "intermediate_size": hidden,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": params.get("rope_theta", 10_000.0),
        "max_position_embeddings": context or (131_072 if scaled else 8_192 if llama3 else 4_096),
        "tie_word_embeddings": torch.equal(embedding, head),
        "hidden_act": "silu",
        "bos_token_id": tokenizer.control("<|begin_of_text|>" if llama3 else "<s>"),
        "eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0],
        "torch_dtype": str(embedding.dtype).removeprefix("torch."),
    }
    if scaled:
        factors = {"factor": rope_factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        table["rope_scaling"] = {"rope_type": "llama3", **factors, "original_max_position_embeddings": 8192}
    return table


def _write_tokenizer(source: Path, tokenizer: Tokenizer, table: dict[str, Any], folder: Path) -> None:
    """Write tokenizer, chat template and stop ids in the form that transformers and vLLM read."""
    configuration = {"model_max_length": table["max_position_embeddings"], "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, JsonTokenizer):
        tokenizer.backend.save(str(folder / "tokenizer.json"))
        configuration |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA3_TEMPLATE}
        configuration |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    else:
        shutil.copy(source / "tokenizer.model", folder)
        # Meta's code encodes each piece of a dialog with a space before it, which transformers calls "legacy".
        configuration |= {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}
        configuration |= {
            "chat_template": LLAMA2_TEMPLATE,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
    write_json(folder / "tokenizer_config.json", configuration)
    write_json(folder / "generation_config.json", {name: table[name] for name in ("bos_token_id", "eos_token_id")})


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a checkpoint in Meta's layout to a Hugging Face directory.")
    parser.add_argument("source", type=Path, help="folder with params.json, consolidated.*.pth and tokenizer.model")
    parser.add_argument("folder", type=Path, help="the Hugging Face directory to write")
    parser.add_argument("--rope-factor", type=float, default=8.0, help="of scaled RoPE; Llama 3.2: 32")
    parser.add_argument("--context", type=int, help="max_position_embeddings; default by the model's family")
    arguments = parser.parse_args()
    print(convert(arguments.source, arguments.folder, arguments.rope_factor, arguments.context))


if __name__ == "__main__":
    command(main)
