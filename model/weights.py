"""Weights between Hugging Face's safetensors and the model: strict, streamed, sharded or whole.

The model fuses q, k, v and gate, up; a checkpoint stores them separately. A parameter is therefore several of a
checkpoint's tensors stacked by rows, and a rank that holds some of the rows reads only those.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import LlamaConfig
from model.dtype import held_dtype
from model.llama import Llama
from model.packing import pack
from stages.files import UserError, write_json

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
COPIED = ("tokenizer", "special_tokens", "generation_config", "chat_template", "vocab", "merges", "added_tokens")
SHARD_BYTES = 4 * 2**30


def part_names(name: str) -> list[str]:
    """The checkpoint's names of the tensors that a parameter stacks, in order of rows."""
    prefix = "" if name.startswith("lm_head.") else "model."
    for fused, parts in FUSED.items():
        if f".{fused}." in name:
            return [prefix + name.replace(fused, part) for part in parts]
    return [prefix + name]


def part_rows(name: str, config: LlamaConfig) -> list[int] | None:
    """Rows of each stacked tensor; None for a parameter that is one tensor."""
    if ".qkv_proj." in name:
        return [config.q_size, config.kv_size, config.kv_size]
    return [config.intermediate_size] * 2 if ".gate_up_proj." in name else None


class Checkpoint:
    """The safetensors of a Hugging Face directory, read by name and rows; single file or sharded by an index."""

    def __init__(self, folder: Path | str):
        """Raises `UserError` if there are no weights, or a file is missing or damaged."""
        self.folder = Path(folder)
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (json.JSONDecodeError, KeyError, AttributeError):
                raise UserError(f"{index}: not an index of safetensors; fetch the file again") from None
        elif single.is_file():
            files = [single.name]
        else:
            raise UserError(f"{self.folder}: no model.safetensors or its index; fetch or convert the weights")
        self.slices: dict[str, Any] = {}
        for file in files:
            if not (self.folder / file).is_file():
                raise UserError(f"{self.folder / file}: no such file, but {index.name} names it; fetch it")
            try:
                handle = safe_open(self.folder / file, framework="pt")
            except SafetensorError as error:
                raise UserError(f"{self.folder / file}: damaged ({error}); fetch the file again") from None
            self.slices |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118

    def shape(self, name: str) -> list[int]:
        return self.slices[name].get_shape()

    def rows(self, names: list[str], start: int, end: int) -> Tensor:
        """Rows [start, end) of the tensors `names` stacked by rows."""
        pieces, offset = [], 0
        for name in names:
            count = self.shape(name)[0]
            low, high = max(start - offset, 0), min(end - offset, count)
            if low < high:
                pieces.append(self.slices[name][low:high])
            offset += count
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def check_names(model: Llama, checkpoint: Checkpoint) -> None:
    """Raise `UserError` naming the first tensor that is missing, unexpected or of another shape."""
    config, expected = model.config, {}
    for name, parameter in model.named_parameters():
        parts, rows = part_names(name), part_rows(name, model.config)
        for part, count in zip(parts, rows or [parameter.shape[0]], strict=True):
            expected[part] = [count, *parameter.shape[1:]]
    for name, shape in expected.items():
        if name not in checkpoint.slices:
            raise UserError(f"{checkpoint.folder}: tensor {name} is missing; config.json and weights do not match")
        if checkpoint.shape(name) != shape:
            shape_read = checkpoint.shape(name)
            raise UserError(f"{checkpoint.folder}: tensor {name} has shape {shape_read}, config.json says {shape}")
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name in checkpoint.slices:
        if name not in expected and name not in ignored and not name.endswith("rotary_emb.inv_freq"):
            raise UserError(f"{checkpoint.folder}: tensor {name} is unexpected; config.json and weights do not match")


def _whole(parameter: nn.Parameter) -> tuple[Tensor, int]:
    return parameter, 0


@torch.no_grad()
def load_weights(model: Llama, folder: Path | str, part: Callable[[nn.Parameter], tuple[Tensor, int]] = _whole) -> None:
    """Fill the model's parameters, tensor by tensor; each keeps its dtype.

    `part`: this rank's part of a parameter, and its first row; no other rows are read (`dpo.parallel.load_sharded`).
    Raises `UserError` as `Checkpoint` and `check_names` do.
    """
    checkpoint = Checkpoint(folder)
    check_names(model, checkpoint)
    for name, parameter in model.named_parameters():
        local, start = part(parameter)
        if local.numel():
            local.copy_(checkpoint.rows(part_names(name), start, start + local.shape[0]))


def load_model(folder: Path | str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Llama:
    """A whole model on one device, for generation, with parameters in `dtype`."""
    config = LlamaConfig.load(folder)
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.to_empty(device=device)
    load_weights(model, folder)
    return model.eval().requires_grad_(False)


def load_packed(folder: Path | str, products: torch.dtype, device: torch.device | str = "cpu") -> Llama:
    """A whole model for generation, packed for products in this dtype (`model.dtype.generation_dtype`)."""
    return pack(load_model(folder, held_dtype(products), device), products)


def split_parameters(parameters: Iterable[tuple[str, Tensor]], config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """A model's (name, whole tensor) pairs as a checkpoint's, with the fused projections split."""
    for name, tensor in parameters:
        rows = part_rows(name, config)
        parts = tensor.split(rows) if rows else (tensor,)
        yield from zip(part_names(name), (part.contiguous() for part in parts), strict=True)


def write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> list[Path]:
    """Write named tensors as Hugging Face's safetensors: one file, or shards of at most 4 GiB and their index.

    Tensors are taken one after another, and each shard is written when it is full, so at most one shard is in memory.
    Returns the files.
    """
    shards: list[tuple[Path, list[str]]] = []
    pending: dict[str, Tensor] = {}
    total, size = 0, 0

    def flush() -> None:
        nonlocal pending, size
        path = folder / f"shard-{len(shards)}"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append((path, list(pending)))
        pending, size = {}, 0

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > SHARD_BYTES:
            flush()
        pending[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    written: list[Path] = []
    weight_map: dict[str, str] = {}
    for i, (path, names) in enumerate(shards):
        single = len(shards) == 1
        final = folder / ("model.safetensors" if single else f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
        written.append(path.rename(final))
        weight_map |= dict.fromkeys(names, final.name)
    if len(shards) > 1:
        index = folder / "model.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        written.append(index)
    return written


def save_pretrained(
    parameters: Iterable[tuple[str, Tensor]], config: LlamaConfig, source: Path | str, folder: Path | str
) -> list[Path]:
    """Write a Hugging Face directory: safetensors, and config and tokenizer as in `source`.

    `parameters` are the model's own names and whole tensors, taken one after another, in the dtype to be stored.
    Returns the files written. For a folder that appears whole the caller writes to a temporary one and renames it.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float32

    def seen() -> Iterator[tuple[str, Tensor]]:
        nonlocal dtype
        for name, tensor in split_parameters(parameters, config):
            dtype = tensor.dtype
            yield name, tensor

    written = write_tensors(seen(), folder)
    table = json.loads((source / "config.json").read_text(encoding="utf-8"))
    table["dtype" if "dtype" in table else "torch_dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", table)
    written.append(folder / "config.json")
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.startswith(COPIED):
            if source != folder:
                shutil.copy(path, folder / path.name)
            written.append(folder / path.name)
    return written


def random_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Fill a model with seeded weights: norms with 1, others from a normal distribution with `std`."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, std, generator=generator)
