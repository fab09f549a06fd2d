"""Weights between Hugging Face's safetensors and the model: strict, streamed, sharded or whole.

The model fuses q, k, v and gate, up and the norms of q, k: a parameter is several of a checkpoint's tensors,
stacked by rows.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import FETCH, LlamaConfig, check_links, reading
from model.llama import Llama
from model.quantize import pack
from stages.command import UserError
from stages.files import read_json, write_json

FUSED = {
    "qkv_proj": {"q_proj": "q_size", "k_proj": "kv_size", "v_proj": "kv_size"},
    "gate_up_proj": {"gate_proj": "intermediate_size", "up_proj": "intermediate_size"},
    "qk_norm": {"q_norm": "head_dim", "k_norm": "head_dim"},
}
"""The parts that a fused parameter stacks, in order of rows, and the numbers of rows by their names in the config."""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HEAD, FLOATS = "lm_head.weight", ("F64", "F32", "F16", "BF16")
COPIED = ("tokenizer", "special_tokens", "generation_config", "chat_template", "vocab", "merges", "added_tokens")
SHARD_BYTES = 4 * 2**30


def parts(name: str, rows: int, config: LlamaConfig) -> dict[str, int]:
    """The names and rows of the checkpoint's tensors that a parameter stacks, in order."""
    prefix = "" if name.startswith("lm_head.") else "model."
    for fused, stacked in FUSED.items():
        if f".{fused}." in name:
            return {prefix + name.replace(fused, part): getattr(config, size) for part, size in stacked.items()}
    return {prefix + name: rows}


class Checkpoint:
    """A Hugging Face directory's safetensors. Raises `UserError` if there are none, or one is missing or damaged."""

    def __init__(self, folder: Path | str):
        self.folder, self.slices = Path(folder), dict[str, Any]()
        if (adapter := self.folder / "adapter_config.json").is_file():
            raise UserError(f"{adapter}: adapters are not applied to a model's weights; merge them, or take them out")
        index, single = self.folder / INDEX, (self.folder / SINGLE).is_file()
        if not index.is_file() and not single:
            raise UserError(f"{self.folder}: no {SINGLE} or its index; fetch or convert the weights")
        places: Any = read_json(index, FETCH).get("weight_map") if index.is_file() else {}
        files = set(map(str, places.values())) or {SINGLE} if isinstance(places, dict) else {""}
        if not all(re.fullmatch(r"[\w-][\w.-]*", file) for file in files) or (single and SINGLE not in files):
            raise UserError(f"{index}: its weight_map is no table of all files of this folder; fetch the file again")
        for path in (self.folder / file for file in sorted(files)):
            if not path.is_file():
                raise UserError(f"{path}: no such file, but {INDEX} names it; fetch it")
            with reading(path):
                handle = safe_open(path, framework="pt")
            own = (name for name in handle.keys() if places.get(name, path.name) == path.name)  # noqa: SIM118
            for name in own:
                if name in self.slices:
                    raise UserError(f"{path}: tensor {name} stands in another file, too, and not in {INDEX}; {FETCH}")
                self.slices[name] = handle.get_slice(name)

    def rows(self, stacked: dict[str, int], start: int, end: int) -> Tensor:
        """Rows [start, end) of the tensors that `parts` gives, stacked."""
        pieces, offset = [], 0
        for name, count in stacked.items():
            low, high = max(start - offset, 0), min(end - offset, count)
            if low < high:
                pieces.append(self.slices[name][low:high])
            offset += count
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def check(self, model: Llama) -> None:
        """Raise `UserError` naming the first tensor that is missing, unexpected, of another shape or no plain float."""
        expected = {
            part: [rows, *parameter.shape[1:]]
            for name, parameter in stored_parameters(model)
            for part, rows in parts(name, parameter.shape[0], model.config).items()
        }
        tied = [HEAD] if model.config.tie_word_embeddings else []
        computed = (name for name in self.slices if name.endswith("rotary_emb.inv_freq"))
        found = {name: part for name, part in self.slices.items() if name not in (*tied, *computed)}
        for name in expected | found:
            shape = found[name].get_shape() if name in found else None
            if shape != expected.get(name):
                wrong = f"has shape {shape}, config.json says {expected[name]}" if name in expected else "is unexpected"
                wrong = wrong if shape is not None else "is missing"
                raise UserError(f"{self.folder}: tensor {name} {wrong}; config.json and weights do not match")
            if (dtype := found[name].get_dtype()) not in FLOATS:
                raise UserError(f"{self.folder}: tensor {name} is of {dtype}; quantized weights are not implemented")
        if model.config.tie_word_embeddings and HEAD in self.slices:
            head, embedding = (self.slices[name][:] for name in (HEAD, "model.embed_tokens.weight"))
            if head.dtype != embedding.dtype or not torch.equal(head, embedding):
                raise UserError(f"{self.folder}: tie_word_embeddings is true, but {HEAD} differs from the embedding")


def stored_parameters(model: Llama) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a checkpoint holds: all but those of adapters (`dpo/lora.py`)."""
    return ((name, parameter) for name, parameter in model.named_parameters() if ".lora." not in name)


def meta_model(folder: Path | str) -> Llama:
    """The model of a folder, which fits the weights there, without memory for them."""
    with torch.device("meta"):
        model = Llama(LlamaConfig.load(folder))
    Checkpoint(folder).check(model)
    return model


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise `UserError` if one of the tensor's numbers is nan or infinite."""
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise UserError(f"{name} has numbers that are not finite; make or fetch the weights again")


@torch.no_grad()
def load_weights(
    model: Llama,
    folder: Path | str,
    part: Callable[[nn.Parameter], tuple[Tensor, int]] = lambda parameter: (parameter, 0),
) -> None:
    """Fill the model's parameters, each in its dtype. `part`: what this rank holds of one, and its first row."""
    checkpoint = Checkpoint(folder)
    checkpoint.check(model)
    for name, parameter in stored_parameters(model):
        local, start = part(parameter)
        if local.numel():
            stacked = parts(name, parameter.shape[0], model.config)
            local.copy_(checkpoint.rows(stacked, start, start + local.shape[0]))
            check_finite(f"{folder}: tensor {name}", local)


def load_model(folder: Path | str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Llama:
    """A whole model on one device, for generation, with parameters in `dtype`."""
    model = meta_model(folder).to(dtype).to_empty(device=device)
    load_weights(model, folder)
    return model.eval().requires_grad_(False)


def load_packed(folder: Path | str, products: torch.dtype, device: torch.device | str = "cpu") -> Llama:
    """A whole model for generation, packed for products in this dtype; around products in int8 all is in fp32."""
    return pack(load_model(folder, torch.float32 if products == torch.int8 else products, device), products)


def split_parameters(parameters: Iterable[tuple[str, Tensor]], config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """A model's (name, whole tensor) pairs as a checkpoint's, with the fused projections split."""
    for name, tensor in parameters:
        stacked = parts(name, tensor.shape[0], config)
        yield from zip(stacked, (part.contiguous() for part in tensor.split(list(stacked.values()))), strict=True)


def write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> list[Path]:
    """Write named tensors as safetensors, one file or shards of at most 4 GiB and their index; returns the files.

    At most one shard is in memory.
    """
    shard: dict[str, Tensor] = {}
    names, total, size = list[list[str]](), 0, 0  # size: bytes in `shard`

    def write() -> None:
        path = folder / f"shard-{len(names)}"
        try:
            save_file(shard, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None
        names.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        check_finite(f"{folder}: tensor {name}", tensor)
        if shard and size + tensor.nbytes > SHARD_BYTES:
            write()
            size = 0
        shard[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    count = len(names)
    files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [SINGLE]
    written = [(folder / f"shard-{i}").rename(folder / file) for i, file in enumerate(files)]
    if count > 1:
        weight_map = {name: file for file, stored in zip(files, names, strict=True) for name in stored}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        written.append(folder / INDEX)
    return written


def save_pretrained(
    parameters: Iterable[tuple[str, Tensor]], config: LlamaConfig, source: Path | str, folder: Path | str
) -> list[Path]:
    """Write a Hugging Face directory: safetensors, and config and tokenizer as in `source`. Returns the files.

    `parameters`: the model's own names and whole tensors, taken one after another, in the dtype to be stored.
    """
    source, folder = Path(source), Path(folder)
    check_links(source)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = split_parameters(parameters, config)
    name, first = next(tensors)
    written = write_tensors(chain([(name, first)], tensors), folder)
    table = read_json(source / "config.json", FETCH)
    table["dtype" if "dtype" in table else "torch_dtype"] = str(first.dtype).removeprefix("torch.")
    write_json(folder / "config.json", table)
    copied = [path for path in sorted(source.iterdir()) if path.is_file() and path.name.startswith(COPIED)]
    for path in copied if source != folder else ():
        shutil.copy(path, folder)
    return [*written, folder / "config.json", *(folder / path.name for path in copied)]


@torch.no_grad()
def random_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Fill a model with seeded weights: norms with 1, biases with 0, others from a normal distribution with `std`."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0.0, std, generator=generator)
