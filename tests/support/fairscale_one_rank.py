"""Plain layers in place of fairscale's, which Meta's model needs: on one rank they are the same.

Importing this module makes `llama_models.llama3.model` and `llama_models.checkpoint` importable.
"""

import sys
from types import ModuleType

from torch import nn


def linear(inputs: int, outputs: int, bias: bool, **_) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def module(name: str, **content) -> None:
    made = ModuleType(f"fairscale{name}")
    vars(made).update(content)
    sys.modules[made.__name__] = made


for package in ("", ".nn", ".nn.model_parallel"):
    module(package)
module(".nn.model_parallel.initialize", get_model_parallel_rank=lambda: 0, get_model_parallel_world_size=lambda: 1)
layers = {"ColumnParallelLinear": linear, "RowParallelLinear": linear}
layers |= {"VocabParallelEmbedding": lambda rows, columns, **_: nn.Embedding(rows, columns)}
module(".nn.model_parallel.layers", **layers)
