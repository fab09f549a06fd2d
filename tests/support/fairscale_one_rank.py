"""Plain layers in place of fairscale's, which Meta's model needs: on one rank they are the same.

Importing this module makes `llama_models.llama3.model` and `llama_models.checkpoint` importable.
"""

import sys
from types import ModuleType

from torch import nn


class Linear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool, **_):
        super().__init__(inputs, outputs, bias=bias)


class Embedding(nn.Embedding):
    def __init__(self, rows: int, columns: int, **_):
        super().__init__(rows, columns)


def module(name: str, **content) -> None:
    made = ModuleType(f"fairscale{name}")
    vars(made).update(content)
    sys.modules[made.__name__] = made


for package in ("", ".nn", ".nn.model_parallel"):
    module(package)
module(".nn.model_parallel.initialize", get_model_parallel_rank=lambda: 0, get_model_parallel_world_size=lambda: 1)
layers = {"ColumnParallelLinear": Linear, "RowParallelLinear": Linear, "VocabParallelEmbedding": Embedding}
module(".nn.model_parallel.layers", **layers)
