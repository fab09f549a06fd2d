"""What a decode step costs the processor besides the model: `python -m tests.support.host_cost` prints a JSON line.

The engine runs as with CUDA graphs, but the graphs compute nothing. Microseconds are the process's own time, so that
other programs on the machine do not count. The work is meta-judging's: all prompts share a rubric, those of a group a
question and a response, and contexts have 1,500 tokens.
"""

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from model.config import LlamaConfig
from sampling import graphs
from sampling.engine import Engine
from sampling.request import Request, Sampling
from sampling.scheduler import PASSES
from stages.command import command

SEQUENCES, GROUP = 512, 8
RUBRIC, SHARED, OWN, NEW = 640, 640, 200, 200  # tokens: of all prompts, of a group's, of one, and of a completion
STEPS = 128  # measured
CONFIG: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 8, "hidden_size": 256}
CONFIG |= {"vocab_size": SEQUENCES + 2, "intermediate_size": 1, "num_hidden_layers": 1, "max_position_embeddings": 4096}
CONFIG |= {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True}
ENGINE: dict[str, Any] = {"num_kv_blocks": 16384, "block_size": 16, "max_num_batched_tokens": 8192}


def requests() -> Iterator[Request]:
    sampling = Sampling(0.8, 0.95, NEW, frozenset({1}))
    for i in range(SEQUENCES):
        ids = [0] * RUBRIC + [2 + i // GROUP] * SHARED + [2 + i] * OWN
        yield Request(str(i), ids, sampling, seed=i)


@contextmanager
def idle_engine(passes: int) -> Iterator[tuple[Engine, list[float]]]:
    """An engine whose model computes nothing, and the process's time at each decode step of all sequences."""
    model: Any = SimpleNamespace(config=LlamaConfig(**CONFIG), embed_tokens=SimpleNamespace(weight=torch.zeros(1)))
    drawn, times = (torch.zeros(SEQUENCES, dtype=torch.int64), torch.zeros(SEQUENCES)), list[float]()

    def decode(model: Any, cache: Any, inputs: Any, sizes: Any) -> graphs.Drawn:
        times.append(time.process_time())
        return drawn

    with mock.patch.object(graphs, "decode", decode):
        engine = Engine(model, **ENGINE, max_num_seqs=SEQUENCES)
        engine.graphs, engine.max_passes = graphs.DecodeGraphs(model, engine.cache), passes
        with mock.patch.multiple(engine, _logits=lambda *a: None, _draw=lambda s, *a: [x[: len(s)] for x in drawn]):
            yield engine, times


def microseconds(passes: int = PASSES) -> float:
    """Of a decode step of all sequences, on average, where a plan is for `passes` of them."""
    gc.freeze()  # the collector is not to walk through what the process has besides, such as other tests' objects
    with idle_engine(passes) as (engine, times):
        for _ in engine.run(requests()):
            break  # a sequence has ended
    gc.unfreeze()
    return 1e6 * (times[STEPS] - times[0]) / STEPS


def main() -> None:
    torch.set_num_threads(1)
    runs = sorted(microseconds() for _ in range(3))
    print(json.dumps({"sequences": SEQUENCES, "microseconds_a_step": round(runs[1])}))


if __name__ == "__main__":
    command(main)
