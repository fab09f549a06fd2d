"""A GPU's speed at what a run does: `make bench-gpu` prints JSON lines, and at the end a table of each part.

The shape is Llama-3-8B's, weights are random. Kernels: beside PyTorch's own (`tools/bench/kernels.py`). Generation:
requests of the paper's run as `make plan` draws them (K = 7, N = 11, shared prefixes); of two runs the second counts,
since the first captures graphs. Training: updates on that run's pairs, as many as fill a micro-batch; without LoRA of 8
layers, as no GPU holds Adam's moments of all. `mfu` counts what is computed again once.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from dpo.checkpoint import Progress
from dpo.data import Example
from dpo.metrics import peak_flops, peak_memory_mib
from dpo.packing import own_prefix
from dpo.parallel import World, distributed, sharded_model
from dpo.trainer import Trainer, make_optimizer
from kernels.compile import table
from kernels.launch import interpreted
from model.config import LlamaConfig
from model.dtype import training_dtype
from model.llama import Llama
from prepare.seed_model import prepare
from sampling.request import Request, Sampling
from sampling.worker import new_engine
from stages.command import UserError, arguments, command
from stages.settings import load_settings
from tools.bench import free, kernels, peers
from tools.planned import Planned

Row = dict[str, Any]
CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = ("kernels", "generation", "training")
TRAININGS: dict[str, Row] = {"full": {}, "compile": {"compile": True}}
TRAININGS |= {"recompute": {"activation_checkpointing": True}, "LoRA": {"lora_rank": 16}}
LAYERS, WARM_UP = 8, 3


class Bench:
    """The paper's run on this machine, or a `tiny` one: its shape, requests by stage, and pairs."""

    updates = 8

    def __init__(self, world: World, tiny: bool):
        self.world, self.tiny, self.dtype = world, tiny, training_dtype("auto", world.device)
        self.settings = load_settings(CONFIGS / ("tiny.toml" if tiny else "llama3-8b-instruct.toml"))
        if world.device.type == "cpu":  # where Triton would be interpreted, for minutes
            self.settings = replace(self.settings, model=replace(self.settings.model, attention="sdpa"))
        self.config = LlamaConfig.load(prepare(self.settings.model) if tiny else self.settings.model.shape)
        self.requests, self.pairs = dict[str, list[Request]](), list[Example]()
        planned, options = Planned(self.settings), self.settings.trainer
        planned.ids = cycle(range(self.config.vocab_size - 1))  # the last token ends TRL's texts
        room, stages = options.tokens_per_microbatch, cast(dict[str, Any], planned.stages())
        for stage in ("responses", "judgments", "comparisons"):
            drawn = planned.requests(stages[f"iter1/{stage}"], 8 if tiny else 1024)
            self.requests[stage] = [replace(r, sampling=Sampling(0.8, 0.95, r.sampling.max_new_tokens)) for r in drawn]
        for pair in planned.examples(stages["iter1/checkpoint"], 8 if tiny else 64):
            if (needed := pair.tokens(own_prefix(pair, options))) <= room:
                self.pairs.append(pair)
                room -= needed

    def shape(self, name: str) -> LlamaConfig:
        """Of a training: all layers, or as many as fit."""
        layers = self.config.num_hidden_layers
        return replace(self.config, num_hidden_layers=layers if name == "LoRA" else min(LAYERS, layers))

    def generated(self, stage: str, program: str, new: int, seconds: float, prefill: int | None = None) -> Row:
        row: Row = {"generation": stage, "program": program, "requests": len(self.requests[stage])}
        row |= {"prefill_tokens": prefill, "new_tokens": new, "seconds": round(seconds, 2)}
        return row | {"new_a_second": round(new / seconds, 1)}

    def trained(self, name: str, program: str, seconds: list[float], mfu: float | None = None) -> Row:
        """Of the median update, the first ones aside. A pair's prompt counts once."""
        middle, tokens = median(seconds[WARM_UP:]), sum(pair.tokens(len(pair.prompt)) for pair in self.pairs)
        row: Row = {"training": name, "program": program, "layers": self.shape(name).num_hidden_layers}
        row |= {"pairs": len(self.pairs), "tokens": tokens, "tokens_a_second": round(tokens / middle, 1), "mfu": mfu}
        return row | {"peak_mib": round(peak_memory_mib(self.world.device))}

    def kernels(self) -> Iterator[Row]:
        if self.world.device.type == "cuda" or interpreted():
            with self.world.device:
                yield from kernels.rows(self.tiny)
        else:
            yield {"kernels": "skipped", "reason": "without a GPU they need TRITON_INTERPRET=1"}

    def generation(self) -> Iterator[Row]:
        with torch.device("meta"):
            model = Llama(self.config).to(self.dtype).requires_grad_(False)
        engine = new_engine(filled(model.to_empty(device=self.world.device)), self.settings)
        for stage, requests in self.requests.items():
            for _ in range(2):
                started, before = time.perf_counter(), engine.computed_tokens
                new = sum(len(completion.ids) for completion in engine.run(requests))
                seconds = time.perf_counter() - started
            yield self.generated(stage, "ours", new, seconds, engine.computed_tokens - before - new)

    def training(self) -> Iterator[Row]:
        device, indices = self.world.device, list(range(len(self.pairs)))
        peak, reference_e2 = peak_flops(device, self.dtype), torch.zeros(len(indices), 2, device=device)
        for name, options in TRAININGS.items():
            if name == "compile" and device.type == "cpu":  # takes minutes, and a compiler
                continue
            free()
            settings = replace(self.settings, trainer=replace(self.settings.trainer, **options))
            model = filled(sharded_model(self.shape(name), self.world, self.dtype, settings.trainer))
            with TemporaryDirectory() as folder:
                rest = (reference_e2, Progress(name), Path(folder), Path(folder), None, peak)
                optimizer = make_optimizer(model, settings.dpo)
                trainer = Trainer("dpo", settings, self.world, model, optimizer, self.pairs, *rest)
                steps = [trainer.step(indices)[0] for _ in range(self.updates)]
            mfu = round(median(step["mfu"] for step in steps[WARM_UP:]), 3)
            yield self.trained(name, "ours", [step["seconds"] for step in steps], mfu)
            del trainer, optimizer, model


@torch.no_grad()
def filled(model: Llama) -> Llama:
    for parameter in model.parameters():
        getattr(parameter, "_local_tensor", parameter).normal_(0.0, 0.02)
    return model


def main() -> None:
    small = {"action": "store_true", "help": "a small shape, on a CPU, too: it tries the command and measures nothing"}
    others = {"action": "store_true", "help": "also vLLM and TRL, where they are installed"}
    given = arguments(__doc__, tiny=small, peers=others, only={"choices": PARTS, "help": "one part; default: all"})
    if not (torch.cuda.is_available() or given.tiny):
        raise UserError("no CUDA device: speed is measured on a GPU; --tiny tries the command without one")
    tables = defaultdict[tuple[str, ...], list[Row]](list)
    with distributed(torch.get_num_threads()) as world:
        bench = Bench(world, given.tiny)
        for part in [given.only] if given.only else PARTS:
            for row in chain(getattr(bench, part)(), peers.rows(part, bench) if given.peers else ()):
                print(json.dumps(row), flush=True)
                tables[tuple(row)].append(row)
            free()
    print("", *map(table, tables.values()), sep="\n\n")


if __name__ == "__main__":
    command(main)
