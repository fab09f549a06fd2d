"""A fine-tuned model as its seed and a small file: `make sft` writes it, `make iterate` adds it to the seed.

Of each matrix's difference D = tuned - base the largest singular triplets are kept: D ~ left diag(scale) right with
left [m, r] and right [r, n] in int8 and scale [r] in fp32. Vectors (the norms) are kept whole, in bf16.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from model.config import LlamaConfig, reading
from model.weights import load_model, save_pretrained
from stages.files import UserError, digest, read_json, write_atomic, write_json

Tensors = Mapping[str, Tensor]


def choose_ranks(values: dict[str, Tensor], sizes: dict[str, int], room: int) -> Counter[str]:
    """How many triplets of each matrix to keep in `room` bytes, at `sizes` bytes one."""
    offers = [(float(value) ** 2 / sizes[name], name) for name, spectrum in values.items() for value in spectrum]
    offers = sorted((offer for offer in offers if offer[0] > 0), reverse=True)
    taken = accumulate(sizes[name] for _, name in offers)
    return Counter(name for (_, name), total in zip(offers, taken, strict=True) if total <= room)


def compress(base: Tensors, tuned: Tensors, megabytes: float) -> tuple[dict[str, Tensor], float]:
    """The file's tensors, and the share of the matrices' squared difference that the kept triplets explain.

    The file takes at most `megabytes` 10^6 bytes. A matrix `name` becomes `name.left`, `name.scale`, `name.right`.
    """
    change = {name: tuned[name] - base[name] for name in base}
    tensors = {name: delta.to(torch.bfloat16) for name, delta in change.items() if delta.dim() == 1}
    header = 4096 + 512 * len(base)  # facts, names and shapes
    room = int(megabytes * 1e6) - header - 2 * sum(map(Tensor.numel, tensors.values()))
    matrices = {name: delta.float() for name, delta in change.items() if delta.dim() == 2}
    triplets = {name: torch.linalg.svd(delta, full_matrices=False) for name, delta in matrices.items()}
    sizes = {name: sum(base[name].shape) + 4 for name in triplets}
    ranks = choose_ranks({name: values for name, (_, values, _) in triplets.items()}, sizes, room)
    kept = total = 0.0
    for name, (left, values, right) in triplets.items():
        r = ranks[name]
        kept, total = kept + values[:r].square().sum().item(), total + values.square().sum().item()
        if r:
            tensors[f"{name}.left"], left_scale = _int8(left[:, :r], 0)
            tensors[f"{name}.right"], right_scale = _int8(right[:r], 1)
            tensors[f"{name}.scale"] = values[:r] * left_scale * right_scale
    return tensors, kept / total if total else 1.0


def _int8(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Vectors along `dim` as int8, and each vector's scale."""
    scale = vectors.abs().amax(dim, keepdim=True) / 127
    return (vectors / scale).round().to(torch.int8).contiguous(), scale.flatten()


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in the JSON file beside `path`: base (a digest), recipe, explained, what `annotate` added."""
    for file in (path, beside := path.with_suffix(".json")):
        if not file.is_file():
            raise UserError(f'{file}: no such file; `make sft` writes it, or set sft.sft_delta to ""')
    return {"base": None, "recipe": None} | read_json(beside, "`make sft` writes it again")


@torch.no_grad()
def merge(base: Path, path: Path, out: Path) -> None:
    """Write the Hugging Face directory `out` in bf16: the model in `base` with the difference in `path` added."""
    if read_facts(path)["base"] != digest(base / "model.safetensors"):
        raise UserError(f"{path}: made for another model than {base}; `make sft` makes it anew for this one")
    with reading(path):
        tensors = load_file(path)
    model = load_model(base, torch.float32)
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.add_(tensors[name])
        elif f"{name}.left" in tensors:
            left, scale, right = (tensors[f"{name}.{part}"].float() for part in ("left", "scale", "right"))
            parameter.add_(left * scale @ right)
    shutil.rmtree(out, ignore_errors=True)
    parameters = ((name, parameter.to(torch.bfloat16)) for name, parameter in model.named_parameters())
    save_pretrained(parameters, LlamaConfig.load(base), base, out)


def write(base: Path, tuned: Path, megabytes: float, path: Path, **facts: Any) -> dict[str, Any]:
    """Write to `path` the difference between two Hugging Face directories of one architecture; returns its facts."""
    before, after = (dict(load_model(folder, torch.float32).named_parameters()) for folder in (base, tuned))
    tensors, explained = compress(before, after, megabytes)
    write_atomic(path, save(tensors, {"format": "pt"}))
    facts |= {"base": digest(base / "model.safetensors"), "explained": round(explained, 4)}
    write_json(path.with_suffix(".json"), facts)
    return facts


def annotate(path: Path, **facts: Any) -> dict[str, Any]:
    facts = read_facts(path) | facts
    write_json(path.with_suffix(".json"), facts)
    return facts
