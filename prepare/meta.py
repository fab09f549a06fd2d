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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer
from model.weights import write_tensors
from prepare.gguf import half_split, whole_folder
from stages.files import UserError, command, write_json

EMBEDDING = "tok_embeddings.weight"
ROWS, COLUMNS, WHOLE = 0, 1, None
"""How ranks share a tensor: each has some of the rows, some of the columns, or the whole."""

BLOCK = {
    "attention_norm": ("input_layernorm", WHOLE),
    "attention.wq": ("self_attn.q_proj", ROWS),
    "attention.wk": ("self_attn.k_proj", ROWS),
    "attention.wv": ("self_attn.v_proj", ROWS),
    "attention.wo": ("self_attn.o_proj", COLUMNS),
    "ffn_norm": ("post_attention_layernorm", WHOLE),
    "feed_forward.w1": ("mlp.gate_proj", ROWS),
    "feed_forward.w2": ("mlp.down_proj", COLUMNS),
    "feed_forward.w3": ("mlp.up_proj", ROWS),
}
"""A block's tensors: Meta's name, Hugging Face's name, and how ranks share the tensor."""

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


class MetaCheckpoint:
    """The tensors of consolidated.*.pth, mapped into memory; each is joined on request."""

    def __init__(self, source: Path):
        """Raises `UserError` where a file is missing, damaged, or holds anything but tensors."""
        self.source = source
        paths = sorted(source.glob("consolidated.*.pth"))
        if not paths:
            raise UserError(f"{source}: no consolidated.00.pth beside params.json; fetch the weights")
        for i, path in enumerate(paths):
            if path.name != f"consolidated.{i:02}.pth":
                raise UserError(f"{source}: consolidated.{i:02}.pth is missing, but {path.name} is there; fetch it")
        self.ranks = [_load(path) for path in paths]
        for path, rank in zip(paths[1:], self.ranks[1:], strict=True):
            for name in sorted(rank.keys() ^ self.ranks[0].keys()):
                absent = path if name in self.ranks[0] else paths[0]
                raise UserError(f"{absent}: tensor {name} is missing, another shard has it; fetch the files again")

    def parts(self, name: str) -> list[Tensor]:
        """Each rank's part of a tensor."""
        if name not in self.ranks[0]:
            raise UserError(f"{self.source}: tensor {name} is missing; params.json and weights do not match")
        return [rank[name] for rank in self.ranks]

    def tensor(self, name: str, split: int | None, *shape: int) -> Tensor:
        """The whole tensor, which ranks share along dimension `split`.

        Raises `UserError` where it is missing, the ranks' parts do not fit each other, or its shape is not `shape`.
        """
        first, *others = parts = self.parts(name)
        if any(part.shape != first.shape or part.dtype != first.dtype for part in others):
            raise UserError(f"{self.source}: {name} differs in shape or dtype between shards; fetch the files again")
        if not first.is_floating_point():
            raise UserError(f"{self.source}: {name} is {first.dtype}; quantized weights are not implemented")
        if split is WHOLE and any(not torch.equal(part, first) for part in others):
            raise UserError(f"{self.source}: {name} must be equal in every shard, but is not; fetch the files again")
        whole = first if split is WHOLE or not others else torch.cat(parts, dim=split)
        if whole.shape != shape:
            raise UserError(
                f"{self.source}: {name} has shape {list(whole.shape)} in {len(parts)} shards together, "
                f"params.json says {list(shape)}; is a consolidated file missing?"
            )
        return whole

    def rows(self, name: str) -> int:
        """The number of rows of a tensor that ranks share by rows."""
        return sum(part.shape[0] for part in self.parts(name))

    def embedding(self, dim: int) -> Tensor:
        """The whole embedding, which ranks share by columns up to Llama 2, by rows since."""
        part = self.parts(EMBEDDING)[0]
        if part.shape[-1] == dim:
            return self.tensor(EMBEDDING, ROWS, self.rows(EMBEDDING), dim)
        return self.tensor(EMBEDDING, COLUMNS, part.shape[0], dim)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a file of tensors ({reason}); fetch the file again") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: not a table of tensors; fetch the file again")
    tensors.pop("rope.freqs", None)  # the frequencies follow from params.json
    return tensors


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
    tokenizer, checkpoint = load_tokenizer(source), MetaCheckpoint(source)
    table = _config(params, checkpoint, tokenizer, rope_factor, context)
    config = LlamaConfig.from_dict(table, str(source / "params.json"))
    blocks = {f"layers.{i}.{name}.weight" for i in range(config.num_hidden_layers) for name in BLOCK}
    expected = blocks | {EMBEDDING, "norm.weight", "output.weight"}
    for name in sorted(expected ^ checkpoint.ranks[0].keys()):
        problem = "missing" if name in expected else "unexpected"
        raise UserError(f"{source}: tensor {name} is {problem}; params.json and weights do not match")
    with whole_folder(folder) as temporary:
        write_tensors(_tensors(checkpoint, config), temporary)
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
    params: dict[str, Any], checkpoint: MetaCheckpoint, tokenizer: Tokenizer, rope_factor: float, context: int | None
) -> dict[str, Any]:
    """Hugging Face's config.json, from params.json and the weights' shapes."""
    where, dim = checkpoint.source / "params.json", params["dim"]
    scaled, llama3 = bool(params.get("use_scaled_rope")), isinstance(tokenizer, JsonTokenizer)
    if llama3 and "rope_theta" not in params:
        raise UserError(f"{where}: key 'rope_theta' is missing, which Llama 3 needs; fetch the file again")
    if rope_factor != 8.0 and not scaled:
        raise UserError(f"{where}: a RoPE factor is given, but use_scaled_rope is not set; leave it out")
    embedding = checkpoint.embedding(dim)
    vocab_size = len(embedding)
    if params.get("vocab_size", -1) not in (-1, vocab_size):
        rows = f"vocab_size is {params['vocab_size']}, the embedding has {vocab_size} rows"
        raise UserError(f"{where}: {rows}; is a consolidated file missing?")
    if tokenizer.vocab_size > vocab_size:
        tokens = tokenizer.vocab_size
        raise UserError(f"{checkpoint.source}: tokenizer.model has {tokens} tokens, the embedding {vocab_size} rows")
    # Since Llama 3.1 <|eom_id|> ends a message that calls a tool. Meta stores embedding and head even where tied.
    ends = ["</s>", "<|end_of_text|>", *(["<|eom_id|>"] if scaled else []), "<|eot_id|>"]
    stop_ids = [token for name in ends if (token := tokenizer.control(name)) is not None]
    table = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "intermediate_size": checkpoint.rows("layers.0.feed_forward.w1.weight"),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": params.get("rope_theta", 10_000.0),
        "max_position_embeddings": context or (131_072 if scaled else 8_192 if llama3 else 4_096),
        "tie_word_embeddings": torch.equal(embedding, checkpoint.tensor("output.weight", ROWS, vocab_size, dim)),
        "hidden_act": "silu",
        "bos_token_id": tokenizer.control("<|begin_of_text|>" if llama3 else "<s>"),
        "eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0],
        "torch_dtype": str(embedding.dtype).removeprefix("torch."),
    }
    if scaled:
        factors = {"factor": rope_factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        table["rope_scaling"] = {"rope_type": "llama3", **factors, "original_max_position_embeddings": 8192}
    return table


def _tensors(checkpoint: MetaCheckpoint, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's name and tensor of each parameter."""
    d, q, kv, hidden = config.hidden_size, config.q_size, config.kv_size, config.intermediate_size
    shapes = {"wq": (q, d), "wk": (kv, d), "wv": (kv, d), "wo": (d, q), "w1": (hidden, d), "w2": (d, hidden)}
    shapes["w3"] = shapes["w1"]
    rotated = {"wq": config.num_attention_heads, "wk": config.num_key_value_heads}
    yield "model.embed_tokens.weight", checkpoint.embedding(d)
    for i in range(config.num_hidden_layers):
        for name, (theirs, split) in BLOCK.items():
            kind = name.rpartition(".")[2]
            tensor = checkpoint.tensor(f"layers.{i}.{name}.weight", split, *shapes.get(kind, (d,)))
            tensor = half_split(tensor, rotated[kind]) if kind in rotated else tensor
            yield f"model.layers.{i}.{theirs}.weight", tensor
    yield "model.norm.weight", checkpoint.tensor("norm.weight", WHOLE, d)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", checkpoint.tensor("output.weight", ROWS, config.vocab_size, d)


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
        configuration["chat_template"] = LLAMA2_TEMPLATE
        configuration |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
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
