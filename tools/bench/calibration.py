"""The speed of this CPU: `python -m tools.bench.calibration --config C` prints a JSON line, after about 20 seconds.

The config's own model (one of its shape, with random weights, where it is not there) generates for requests of the
run's own kinds, and trains on pairs like the run's. A step's time is taken to be linear in its work (`StepWork`), a
micro-batch's in its operations; the coefficients are least squares of relative errors, none below zero.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpo.flops import forward_flops
from dpo.loss import completion_logprob, dpo_loss
from dpo.optimizer import clip, local_gradients, make_optimizer, squared_norm
from dpo.packing import MicroBatch, keep_usable, micro_batches
from dpo.parallel import World, distributed, end_process, load_sharded, sharded_model
from model.config import LlamaConfig
from model.dtype import generation_dtype, held_dtype, training_dtype
from model.llama import Llama
from model.packing import pack
from model.weights import load_packed, random_weights
from sampling.engine import Engine
from sampling.request import Request
from sampling.scheduler import Step
from stages.files import command
from stages.settings import Settings, load_settings
from tools.planning.requests import Requests, Sample
from tools.planning.texts import chat_format
from tools.simulation import StepWork

GENERATION_SECONDS = 9.0
"""For all its measurements together, at most."""

SEQUENCES = (4, 16, 48)
"""Requests of a measurement; of the shortest requests there is one of as many as run together at most."""

NEW_TOKENS = 8
"""Of each of them."""

DRAWN_PAIRS = 32
"""Of them the first four that fit a micro-batch are trained on."""


@dataclass(frozen=True)
class MeasuredCpu:
    """A CPU's coefficients, in seconds: a `tools.planning.machine.Machine`."""

    start_seconds: float
    load_seconds: float
    step: tuple[float, ...]
    """A step's own time, then that of each token, token drawn, key read and key seen."""
    forward: tuple[float, ...]
    """A micro-batch's own time, and that of an operation of its forward pass, without backward."""
    backward: tuple[float, ...]
    """The same with backward."""
    update: float
    """The optimizer's step."""
    disk: float
    """A byte's writing."""

    def of(self, config: LlamaConfig) -> "MeasuredCpu":
        """Itself: no other model was measured."""
        return self

    def stated(self) -> dict[str, Any]:
        """The coefficients."""
        return asdict(self)

    def generation_seconds(self, steps: Iterable[StepWork]) -> float:
        """Of one rank."""
        return sum(float(np.dot(self.step, (1, *astuple(step)))) for step in steps)

    def update_seconds(self, micro_batches: Sequence[float]) -> float:
        """A step of training; of each micro-batch the operations of a forward pass."""
        return _linear(self.backward, micro_batches) + self.update

    def forward_seconds(self, micro_batches: Sequence[float]) -> float:
        """The same micro-batches without backward."""
        return _linear(self.forward, micro_batches)

    def disk_seconds(self, size: float) -> float:
        """Writing bytes."""
        return self.disk * size


def _linear(coefficients: Sequence[float], flops: Sequence[float]) -> float:
    return coefficients[0] * len(flops) + coefficients[1] * sum(flops)


class TimeIsOver(Exception):
    """Ends a measurement."""


class TimedEngine(Engine):
    """An engine that keeps each step's work and when it began, and stops in time."""

    until: float
    work: list[StepWork]
    starts: list[float]

    def _forward(self, step: Step) -> list[int]:
        self.starts.append(time.perf_counter())
        if self.starts[-1] > self.until:
            raise TimeIsOver
        self.work.append(StepWork.of(step, self.block_size))
        return super()._forward(step)

    def measure(self, requests: list[Request], until: float) -> list[tuple[StepWork, float]]:
        """Steps with their seconds, scheduling included, till the requests are done or it is `until`."""
        self.until, self.work, self.starts = until, [], []
        with suppress(TimeIsOver):
            for _ in self.run(requests):
                pass
            self.starts.append(time.perf_counter())
        return list(zip(self.work, [end - start for start, end in pairwise(self.starts)], strict=True))


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Coefficients, none below zero, that say the seconds of the rows with the least squared error.

    Of the error in seconds, not in shares: the few long steps of a prefill are most of a stage's time. The solution is
    the best of the unbounded ones of all sets of columns that have no negative part.
    """
    matrix, target = np.array(rows), np.array(seconds)
    best, found = np.inf, np.zeros(matrix.shape[1])
    for size in range(1, matrix.shape[1] + 1):
        for columns in map(list, combinations(range(matrix.shape[1]), size)):
            solution, *_ = np.linalg.lstsq(matrix[:, columns], target)
            error = float(((matrix[:, columns] @ solution - target) ** 2).sum())
            if error < best and (solution >= 0).all():
                best, found = error, np.zeros(matrix.shape[1])
                found[columns] = solution
    return tuple(float(value) for value in found)


def measure_generation(settings: Settings, config: LlamaConfig, requests: Requests) -> tuple[float, tuple[float, ...]]:
    """Seconds to load the model, and a step's coefficients."""
    options, started = settings.engine, time.perf_counter()
    folder, products = Path(settings.model.path), generation_dtype(settings.model.dtype, torch.device("cpu"))
    there = (folder / "config.json").is_file()
    model = load_packed(folder, products) if there else _random(config, products)
    engine = TimedEngine(
        model,
        num_kv_blocks=options.num_kv_blocks,
        block_size=options.block_size,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=options.max_num_seqs,
    )
    loaded = time.perf_counter() - started
    kinds = samples(settings, requests)
    turns = [(kind, count) for count in SEQUENCES for kind in kinds] + [(kinds[0], options.max_num_seqs)]
    rows: list[tuple[StepWork, float]] = []
    started = time.perf_counter()
    for i, (sample, count) in enumerate(turns, 1):
        asked = [item.request(requests.chat) for item in sample.items[:count]]
        sampling = replace(asked[0].sampling, max_new_tokens=NEW_TOKENS, stop_ids=frozenset())
        short = [replace(request, sampling=sampling) for request in asked]
        rows += engine.measure(short, started + GENERATION_SECONDS * i / len(turns))
    features = [(1.0, *map(float, astuple(work))) for work, _ in rows]
    return loaded, fit(features, [seconds for _, seconds in rows])


def samples(settings: Settings, requests: Requests) -> list[Sample]:
    """Requests of the kinds that the run has most of."""
    kinds = [requests.respond()]
    if not settings.judge.scores_file:
        kinds.append(requests.judge())
    if any(iteration.judge_pairs for iteration in settings.iteration):
        kinds.append(requests.metajudge())
    return kinds


def _random(config: LlamaConfig, products: torch.dtype) -> Llama:
    model = Llama(config)
    random_weights(model, seed=0)
    return pack(model.to(held_dtype(products)), products)


class TrainingBench:
    """A model in training, timed."""

    def __init__(self, world: World, settings: Settings, config: LlamaConfig):
        self.settings, self.config = settings, config
        dtype = training_dtype(settings.model.dtype, world.device)
        self.model = sharded_model(config, world, dtype, settings.trainer)
        folder = Path(settings.model.path)
        if (folder / "config.json").is_file():
            load_sharded(self.model, folder)
        else:
            for parameter in self.model.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
        self.optimizer = make_optimizer(self.model, settings.dpo)

    def measure(self, requests: Requests) -> dict[str, tuple[float, ...] | float]:
        """Coefficients of a micro-batch with and without backward, and the optimizer's seconds.

        All are 0 where no pair fits `trainer.tokens_per_microbatch`: nothing can be trained then, and the plan says so.
        """
        options = self.settings.trainer
        usable, _ = keep_usable(requests.pairs(1, 1, DRAWN_PAIRS), options, self.config.max_position_embeddings)
        if not usable:
            return {"forward": (0.0, 0.0), "backward": (0.0, 0.0), "update": 0.0}
        examples = usable[:4]
        one, all_of_them = (micro_batches(examples, range(count), options)[0] for count in (1, len(examples)))
        self.forward(one)  # warm
        flops = [float(forward_flops(self.config, batch)) for batch in (one, all_of_them)]
        rows = [(1.0, operations) for operations in flops]
        without = [timed(partial(self.forward, batch)) for batch in (one, all_of_them)]
        self.backward(one)
        with_backward = [timed(partial(self.backward, batch)) for batch in (one, all_of_them)]
        update = min(timed(self.update) for _ in range(2))
        return {"forward": fit(rows, without), "backward": fit(rows, with_backward), "update": update}

    @torch.no_grad()
    def forward(self, batch: MicroBatch) -> None:
        completion_logprob(self.model, batch, self.settings.model.attention)

    def backward(self, batch: MicroBatch) -> None:
        logprob_n = completion_logprob(self.model, batch, self.settings.model.attention)
        sums_e2 = batch.sums(logprob_n)
        dpo_loss(sums_e2, torch.zeros_like(sums_e2), self.settings.dpo.beta)["loss"].sum().backward()

    def update(self) -> None:
        gradients = local_gradients(self.model.parameters())
        clip(gradients, float(squared_norm(gradients)) ** 0.5, 1.0)
        self.optimizer.step()


def timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def disk_seconds(size: int = 2**26) -> float:
    """A byte's, of a file that is written through to the disk."""
    data = os.urandom(size)
    with tempfile.NamedTemporaryFile(dir=".") as file:

        def write() -> None:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        return timed(write) / size


def main() -> None:
    parser = argparse.ArgumentParser(description="This CPU's coefficients, as a JSON line.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--started", type=float, help="when this process was started, in seconds since the epoch")
    arguments = parser.parse_args()
    start = time.time() - (arguments.started or time.time())
    settings = load_settings(arguments.config)
    folder = Path(settings.model.path)
    config = LlamaConfig.load(settings.model.shape)
    requests = Requests(settings, chat_format(folder, config.vocab_size))
    torch.set_num_threads(settings.engine.threads)
    loaded, step = measure_generation(settings, config, requests)
    found = {"start_seconds": start, "load_seconds": loaded, "step": step, "disk": disk_seconds()}
    with distributed(settings.engine.threads) as world:
        found |= TrainingBench(world, settings, config).measure(requests)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    end_process(lambda: command(main))
