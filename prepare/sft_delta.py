"""A fine-tuned model as its seed and a small file: `make sft` writes it, `make iterate` adds it to the seed.

Of each matrix's difference D = U diag(s) V the file has the columns of U diag(s) and the rows of diag(s) V as whole
numbers of steps. The step is the same everywhere, as far as int8 goes, so that a larger s gets more bits, and what
rounds to next to nothing is left out. D ~ left diag(scale) right with left [m, r] and right [r, n] in int8 and scale
[r] = step^2 / s in fp32. Vectors (the norms) are kept whole, in bf16. LZMA, which has a range coder, packs the file.
"""

import lzma
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from model.config import LlamaConfig, reading
from model.llama import Llama
from model.weights import load_model, save_pretrained
from stages.command import UserError
from stages.files import digest, is_complete, read_json, stage_key, write_atomic, write_json, write_manifest
from stages.lock import run_lock

Tensors = Mapping[str, Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]  # left [m, k], values [k], right [k, n] of a matrix [m, n]

LEAST_DEVIATION = 0.3  # a triplet whose numbers deviate less from 0, in steps, is left out
PACKED = 1.06  # LZMA's bytes over those at the entropy, about
FILTER = {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}  # numbers do not depend on their neighbours


def rounded(triplets: Mapping[str, Triplets], step: float) -> dict[str, Tensor]:
    """The file's tensors of the matrices, in numbers of steps: `name.left`, `name.scale`, `name.right`."""
    tensors: dict[str, Tensor] = {}
    for name, (left, values, right) in triplets.items():
        deviation = values / step / max(len(left), right.shape[1]) ** 0.5  # of the numbers of the longer side
        if r := int((deviation >= LEAST_DEVIATION).sum()):
            left_mr, right_rn = left[:, :r] * values[:r], values[:r, None] * right[:r]
            largest = torch.maximum(left_mr.abs().amax(0), right_rn.abs().amax(1))
            step_r = (largest / 127).clamp_min(step)  # int8 holds up to 127 steps
            tensors[f"{name}.left"] = (left_mr / step_r).round().to(torch.int8).contiguous()
            tensors[f"{name}.right"] = (right_rn / step_r[:, None]).round().to(torch.int8).contiguous()
            tensors[f"{name}.scale"] = step_r**2 / values[:r]
    return tensors


def packed_size(tensors: Mapping[str, Tensor]) -> float:
    """The bytes that tensors take at their entropy."""
    total = 0.0
    for tensor in tensors.values():
        numbers = tensor.flatten().view(torch.int8)
        shares = torch.bincount(numbers.to(torch.int64) + 128) / len(numbers)
        total -= (shares * shares.clamp_min(1e-12).log2()).sum().item() * len(numbers) / 8
    return total


def compress(base: Tensors, tuned: Tensors, megabytes: float) -> tuple[bytes, float]:
    """The file, at most `megabytes` 10^6 bytes, and the share that it explains of the matrices' squared difference."""
    change, room = {name: tuned[name] - base[name] for name in base}, megabytes * 1e6
    vectors = {name: delta.to(torch.bfloat16) for name, delta in change.items() if delta.dim() == 1}
    matrices = {name: delta.float() for name, delta in change.items() if delta.dim() == 2}
    triplets = {name: torch.linalg.svd(delta, full_matrices=False) for name, delta in matrices.items()}
    low, high = (max(float(values[0]) for _, values, _ in triplets.values()) * factor for factor in (1e-5, 1.0))
    for _ in range(14):  # packing takes a minute, so the step is first found by the entropy
        middle = (low * high) ** 0.5
        fits = packed_size(rounded(triplets, middle) | vectors) * PACKED <= room
        low, high = (low, middle) if fits else (middle, high)
    while len(data := packed(tensors := rounded(triplets, high) | vectors)) > room:
        high *= 1.01
    total = sum(delta.square().sum().item() for delta in matrices.values())
    lost = sum((delta - product(tensors, name)).square().sum().item() for name, delta in matrices.items())
    return data, 1 - lost / total if total else 1.0


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    return lzma.compress(save(dict(tensors), {"format": "pt"}), filters=[FILTER])


def product(tensors: Tensors, name: str) -> Tensor | float:
    """A matrix's difference as the file has it."""
    if f"{name}.left" not in tensors:
        return 0.0
    left, scale, right = (tensors[f"{name}.{part}"].float() for part in ("left", "scale", "right"))
    return left * scale @ right


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in the JSON file beside `path`: base (a digest), recipe, explained, what `annotate` added."""
    mend = '`make sft` writes it, or set sft.sft_delta to ""'
    if not path.is_file():
        raise UserError(f"{path}: no such file; {mend}")
    return {"base": None, "recipe": None} | read_json(path.with_suffix(".json"), mend)


@torch.no_grad()
def merge(base: Path, path: Path, out: Path) -> None:
    """Write the Hugging Face directory `out` in bf16: the model in `base` with the difference in `path` added."""
    if read_facts(path)["base"] != digest(base / "model.safetensors"):
        raise UserError(f"{path}: made for another model than {base}; `make sft` makes it anew for this one")
    with reading(path):
        tensors = load(lzma.decompress(path.read_bytes()))
    model = load_model(base, torch.float32)
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.add_(tensors[name])
        else:
            parameter.add_(product(tensors, name))
    _save(model, base, out)


@torch.no_grad()
def average(folders: Sequence[Path], out: Path) -> None:
    """Write the Hugging Face directory `out` in bf16: the mean of models of one architecture (model soups, arXiv
    2203.05482)."""
    first, *others = (load_model(folder, torch.float32) for folder in folders)
    for parameter, *rest in zip(first.parameters(), *(model.parameters() for model in others), strict=True):
        parameter.add_(sum(rest)).div_(len(folders))
    _save(first, folders[0], out)


def _save(model: Llama, source: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    parameters = ((name, parameter.to(torch.bfloat16)) for name, parameter in model.named_parameters())
    save_pretrained(parameters, LlamaConfig.load(source), source, out)


def mean_model(models: Sequence[Path]) -> Path:
    """The folder of the model whose weights are the mean of these models'."""
    if len(models) == 1:
        return models[0]
    key = stage_key("sft-mean", {}, {str(i): model for i, model in enumerate(models)})
    return shared_model("sft-mean", key, lambda out: average(models, out))


def shared_model(stage: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of a model that `make` writes, unless a run with the same inputs has done so."""
    out = Path("models") / "sft" / key[:12] / "checkpoint"
    with run_lock(out.parent, wait=True):
        if not is_complete(out, key):
            make(out)
            write_manifest(out, stage, key, [file for file in out.iterdir() if file.is_file()])
    return out


def write(base: Path, tuned: Path, megabytes: float, path: Path, **facts: Any) -> dict[str, Any]:
    """Write to `path` the difference between two Hugging Face directories of one architecture; returns its facts."""
    before, after = (dict(load_model(folder, torch.float32).named_parameters()) for folder in (base, tuned))
    data, explained = compress(before, after, megabytes)
    write_atomic(path, data)
    facts |= {"base": digest(base / "model.safetensors"), "explained": round(explained, 4)}
    write_json(path.with_suffix(".json"), facts)
    return facts


def annotate(path: Path, **facts: Any) -> dict[str, Any]:
    facts = read_facts(path) | facts
    write_json(path.with_suffix(".json"), facts)
    return facts
