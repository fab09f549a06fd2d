"""What a layer of Llama-3-8B launches, counted without a GPU: `python -m tools.traffic`.

The model runs on tensors without storage: PyTorch's operations and Triton's kernels are counted, and taken to read and
write each of their tensors once. A layer is what two layers launch beyond one. Products and attention apart, the bytes
are those of elementwise kernels.
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
from stages.files import command

SEQUENCES, TOKENS = 64, 7_664  # of a decoding step, and of a micro-batch, as in docs/performance.md
SHAPE = Path(__file__).parents[1] / "configs" / "architectures" / "llama-3-8b"
ALLOCATE = ("empty", "_unsafe_view")  # launch nothing
PRODUCTS = ("mm", "addmm", "bmm", "attention.", "paged.")


class Launches(TorchDispatchMode):
    """Counts PyTorch's operations that launch a kernel, and the bytes of their tensors, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and not any(word in name for word in ALLOCATE):
            self.add(name, (args, result))
        return result

    def add(self, name: str, tensors: Any) -> None:
        self.kernels[name] += 1
        self.bytes[name] += sum(x.numel() * x.itemsize for x in tree_leaves(tensors) if isinstance(x, Tensor))


def of_a_layer(run: Callable[[Llama], None], model_type: str = "llama") -> tuple[Counter[str], Counter[str]]:
    """Kernels and bytes by name, on compute capability 9.0."""
    config, counts = replace(LlamaConfig.load(SHAPE), model_type=model_type), []
    for layers in (2, 1):
        with torch.device("meta"):
            model = Llama(replace(config, num_hidden_layers=layers)).bfloat16()
            with recording(90) as recorded, Launches() as launches:
                run(model)
        for launch in recorded:
            launches.add(launch.name, launch.arguments)
        counts.append(launches)
    return counts[0].kernels - counts[1].kernels, counts[0].bytes - counts[1].bytes


@torch.no_grad()
def decode(model: Llama) -> None:
    """A step as a graph captures it."""
    sizes = TileSizes(tokens=SEQUENCES, tables=SEQUENCES, blocks=128, narrow=256, wide=256, entries=256)
    tiles, config = DeviceTiles(torch.empty(sum(sizes.parts), dtype=torch.int32), sizes, merges=True), model.config
    cache = torch.empty(
        config.num_hidden_layers, 2, 512, config.num_key_value_heads, 16, config.head_dim, dtype=torch.bfloat16
    )
    model(tiles.positions_t.long(), tiles.positions_t.long(), TritonPagedAttention(cache, tiles), logits_head)


def train(model: Llama) -> None:
    """Forward and backward, without activation checkpointing."""
    segments = Segments([0, TOKENS], [-1], *(torch.empty(size, dtype=torch.int32) for size in ((2,), (3, 1))))
    ids_t = torch.empty(TOKENS, dtype=torch.int64)
    hidden_td = model(ids_t, ids_t, VarlenAttention(segments), lambda hidden_td, _: hidden_td)
    hidden_td.backward(torch.empty_like(hidden_td))


def elementwise(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if not name.startswith(PRODUCTS))


def main() -> None:
    kernels, _ = of_a_layer(decode)
    names = ", ".join(f"{count} {name}" for name, count in sorted(kernels.items()))
    print(f"a layer of a step that decodes {SEQUENCES} sequences: {kernels.total()} kernels ({names})")
    count, size = (elementwise(counts) for counts in of_a_layer(train))
    print(f"a layer in training on {TOKENS:,} tokens: {count} elementwise kernels move {size / 1e9:.1f} GB")


if __name__ == "__main__":
    command(main)
