"""What a layer of Llama-3-8B launches, counted without a GPU: `python -m tests.support.traffic`.

The model runs on tensors without storage: PyTorch's operations and Triton's kernels are counted, and taken to read and
write each of their tensors once. A layer is what two layers launch beyond one.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.attention import VarlenAttention
from kernels.compile import recording
from kernels.metadata import TileSizes
from kernels.paged_triton import DeviceTiles, TritonPagedAttention
from kernels.segments import Segments
from model.config import LlamaConfig
from model.llama import Llama, logits_head
from stages.command import command

SHAPE = Path(__file__).parents[2] / "configs" / "architectures" / "llama-3-8b"
SEQUENCES, TOKENS = 64, 7_664  # of a decoding step, and of a micro-batch, as in docs/performance.md
NO_KERNEL = ("empty", "_unsafe_view")
NOT_ELEMENTWISE = ("mm", "addmm", "attention.", "paged.")


class Launches(TorchDispatchMode):
    """Counts kernels, and the bytes of their tensors, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), function._schema.name.removeprefix("aten::")
        if not function.is_view and not any(word in name for word in NO_KERNEL):
            self.add(name, (args, result))
        return result

    def add(self, name: str, tensors: Any) -> None:
        self.kernels[name] += 1
        self.bytes[name] += sum(x.numel() * x.itemsize for x in tree_leaves(tensors) if isinstance(x, Tensor))


def of_a_layer(run: Callable[[Llama], None], model_type: str = "llama") -> tuple[Counter[str], Counter[str]]:
    """Kernels and bytes of a layer by name, on compute capability 9.0."""
    config, counted = replace(LlamaConfig.load(SHAPE), model_type=model_type), []
    for layers in (2, 1):
        with torch.device("meta"):
            model = Llama(replace(config, num_hidden_layers=layers)).bfloat16()
            with recording(90) as recorded, Launches() as launches:
                run(model)
        for launch in recorded:
            launches.add(launch.name, launch.arguments)
        counted.append(launches)
    return counted[0].kernels - counted[1].kernels, counted[0].bytes - counted[1].bytes


@torch.no_grad()
def decode(model: Llama) -> None:
    """A step as a graph captures it."""
    config, sizes = model.config, TileSizes(SEQUENCES, blocks=128 * SEQUENCES, narrow=256, wide=256, entries=256)
    tiles = DeviceTiles(torch.empty(sum(sizes.parts), dtype=torch.int32), sizes, merges=True)
    shape = (config.num_hidden_layers, 2, 512, config.num_key_value_heads, 16, config.head_dim)
    attend = TritonPagedAttention(torch.empty(shape, dtype=torch.bfloat16), tiles)
    model(tiles.positions_t.long(), tiles.positions_t.long(), attend, logits_head)


def train(model: Llama) -> None:
    """Forward and backward, without activation checkpointing."""
    segments = Segments([0, TOKENS], [-1], *(torch.empty(size, dtype=torch.int32) for size in ((2,), (3, 1))))
    ids_t = torch.empty(TOKENS, dtype=torch.int64)
    hidden_td = model(ids_t, ids_t, VarlenAttention(segments), lambda hidden_td, _: hidden_td)
    hidden_td.backward(torch.empty_like(hidden_td))


def elementwise(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if not name.startswith(NOT_ELEMENTWISE))


def main() -> None:
    kernels, _ = of_a_layer(decode)
    names = ", ".join(f"{count} {name}" for name, count in sorted(kernels.items()))
    print(f"a layer of a step that decodes {SEQUENCES} sequences: {kernels.total()} kernels ({names})")
    count, size = (elementwise(counts) for counts in of_a_layer(train))
    print(f"a layer in training on {TOKENS:,} tokens: {count} elementwise kernels move {size / 1e9:.1f} GB")


if __name__ == "__main__":
    command(main)
