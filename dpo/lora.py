"""LoRA (arXiv 2106.09685): a frozen matrix W [o, i] is trained by a product of low rank, W x + s B A x, s = alpha / r.

A [r, i] is drawn as PEFT draws it and B [o, r] is zero, so the model before its first update is DPO's reference. The
frozen model has the dtype of products and is whole on each rank; adapters are fp32 and equal on all ranks. A fused
matrix has one adapter: q, k and v share an A, as do gate and up.

Shapes: t tokens, i and o the sizes of a matrix's input and output, r the rank.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import LlamaConfig
from model.layers import Linear
from model.llama import Llama
from model.weights import parts, stored_parameters
from stages.files import write_json
from stages.settings import TrainerOptions


class Adapter(nn.Module):
    """A and B of one matrix, and the matrix's forward hook that adds s B A x to its product."""

    def __init__(self, matrix: Linear, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.A = nn.Parameter(matrix.weight.new_empty(rank, matrix.in_features, dtype=torch.float32))
        self.B = nn.Parameter(matrix.weight.new_empty(matrix.out_features, rank, dtype=torch.float32))

    def forward(self, _matrix: Linear, inputs: tuple[Tensor], product_to: Tensor) -> Tensor:
        low_tr = F.linear(inputs[0], self.A.to(product_to.dtype))
        return product_to.addmm_(low_tr, self.B.to(product_to.dtype).t(), alpha=self.scale)


def add_adapters(model: Llama, options: TrainerOptions) -> Llama:
    """Freeze the model, in place, and give each matrix of `lora_targets` an adapter, not yet filled."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in options.lora_targets:
            module.lora = Adapter(cast(Linear, module), options.lora_rank, options.lora_alpha)
            module.register_forward_hook(module.lora)
    return model


def adapters(model: Llama) -> dict[str, Adapter]:
    """The adapters by the names of their matrices; none in a model that is trained whole."""
    return {name.removesuffix(".lora"): part for name, part in model.named_modules() if isinstance(part, Adapter)}


@torch.no_grad()
def draw_adapters(model: Llama, seed: Callable[[str], int]) -> None:
    """Fill each A with uniform numbers of variance 1 / (3 i), seeded by the matrix's name, and each B with zeros."""
    for name, adapter in adapters(model).items():
        generator, bound = torch.Generator().manual_seed(seed(name)), adapter.A.shape[1] ** -0.5
        adapter.A.copy_(torch.empty(adapter.A.shape).uniform_(-bound, bound, generator=generator))
        adapter.B.zero_()


@torch.no_grad()
def merged(model: Llama) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters, with W + s B A, summed in fp32, for a W that has an adapter."""
    found = adapters(model)
    for name, parameter in stored_parameters(model):
        adapter, weight = found.get(name.removesuffix(".weight")), parameter.detach()
        yield name, torch.addmm(weight.float(), adapter.B, adapter.A, alpha=adapter.scale) if adapter else weight


@torch.no_grad()
def save_peft(model: Llama, source: Path, folder: Path) -> None:
    """Write the adapters in PEFT's format, for the model in `source`: the parts of a fused matrix get its A and their
    own rows of B."""
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters(model).items():
        stacked = parts(f"{name}.weight", len(adapter.B), model.config)
        for part, rows in zip(stacked, adapter.B.cpu().split(list(stacked.values())), strict=True):
            prefix = f"base_model.model.{part.removesuffix('.weight')}"
            tensors |= {f"{prefix}.lora_A.weight": adapter.A.cpu().clone(), f"{prefix}.lora_B.weight": rows.clone()}
    config: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(source)}
    config |= {"r": len(adapter.A), "lora_alpha": adapter.scale * len(adapter.A), "inference_mode": True}
    config |= {"target_modules": sorted({key.split(".")[-3] for key in tensors})}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def trained_parameters(config: LlamaConfig, options: TrainerOptions) -> int:
    """How many parameters a training changes."""
    if not options.lora_rank:
        return config.parameter_count()
    with torch.device("meta"):
        model = add_adapters(Llama(config), options)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
