"""The speed of this CPU: `python -m tools.bench.calibration --config C` prints a JSON line after about 20 seconds.

The config's model (or one of its shape with random weights) generates for the run's own kinds of requests, and trains
on pairs like the run's. A step's time is taken to be linear in its work (`StepWork`), a micro-batch's in its
operations; the coefficients are non-negative least squares (`fit`).
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
"""Seconds for all measurements of generation together, at most."""

SEQUENCES = (4, 16, 48)
"""Requests of a measurement; one more, of the shortest requests, has `engine.max_num_seqs`."""

NEW_TOKENS = 8
"""New tokens of each request."""

DRAWN_PAIRS = 32
"""Pairs that are made; the first four that fit a micro-batch are trained on."""


@dataclass(frozen=True)
class MeasuredCpu:
    """Coefficients of a CPU, in seconds: a `tools.planning.machine.Machine`."""

    start_seconds: float
    load_seconds: float
    step: tuple[float, ...]
    """Time of a step, then of each token, token drawn, key read and key seen."""
    forward: tuple[float, ...]
    """Time of a micro-batch, then of each operation of its forward pass, without backward."""
    backward: tuple[float, ...]
    """The same with backward."""
    update: float
    """Time of the optimizer's step."""
    disk: float
    """Time of writing a byte."""

    def of(self, config: LlamaConfig) -> "MeasuredCpu":
        return self

    def stated(self) -> dict[str, Any]:
        return asdict(self)

    def generation_seconds(self, steps: Iterable[StepWork]) -> float:
        return sum(float(np.dot(self.step, (1, *astuple(step)))) for step in steps)

    def update_seconds(self, micro_batches: Sequence[float]) -> float:
        return _linear(self.backward, micro_batches) + self.update

    def forward_seconds(self, micro_batches: Sequence[float]) -> float:
        return _linear(self.forward, micro_batches)

    def disk_seconds(self, size: float) -> float:
        return self.disk * size


def _linear(coefficients: Sequence[float], flops: Sequence[float]) -> float:
    return coefficients[0] * len(flops) + coefficients[1] * sum(flops)


class TimeIsOver(Exception):
    """Ends a measurement."""


class StepTimedEngine(Engine):
    """An engine that records each step's work and start, and stops when its time is over."""

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
        """Steps with their seconds, scheduling included, until the requests are done or the clock shows `until`."""
        self.until, self.work, self.starts = until, [], []
        with suppress(TimeIsOver):
            for _ in self.run(requests):
                pass
            self.starts.append(time.perf_counter())
        return list(zip(self.work, [end - start for start, end in pairwise(self.starts)], strict=True))


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Non-negative coefficients of the rows with the least squared error in seconds.

    The error is not relative, as the few long steps of a prefill take most of a stage's time. The solution is the best
    of the unbounded least-squares solutions over all sets of columns without a negative coefficient.
    """
    matrix, target = np.array(rows), np.array(seconds)
    best, coefficients = np.inf, np.zeros(matrix.shape[1])
    for size in range(1, matrix.shape[1] + 1):
        for columns in map(list, combinations(range(matrix.shape[1]), size)):
            solution, *_ = np.linalg.lstsq(matrix[:, columns], target)
            error = float(((matrix[:, columns] @ solution - target) ** 2).sum())
            if error < best and (solution >= 0).all():
                best, coefficients = error, np.zeros(matrix.shape[1])
                coefficients[columns] = solution
    return tuple(float(value) for value in coefficients)


def measure_generation(settings: Settings, config: LlamaConfig, requests: Requests) -> tuple[float, tuple[float, ...]]:
    """Seconds to load the model, and a step's coefficients."""
    options, started = settings.engine, time.perf_counter()
    folder, products = Path(settings.model.path), generation_dtype(settings.model.dtype, torch.device("cpu"))
    exists = (folder / "config.json").is_file()
    model = load_packed(folder, products) if exists else _random(config, products)
    engine = StepTimedEngine(
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
        whole = [item.request(requests.chat) for item in sample.items[:count]]
        sampling = replace(whole[0].sampling, max_new_tokens=NEW_TOKENS, stop_ids=frozenset())
        short = [replace(request, sampling=sampling) for request in whole]
        rows += engine.measure(short, started + GENERATION_SECONDS * i / len(turns))
    features = [(1.0, *map(float, astuple(work))) for work, _ in rows]
    return loaded, fit(features, [seconds for _, seconds in rows])


def samples(settings: Settings, requests: Requests) -> list[Sample]:
    """Requests of the kinds that a run has most of."""
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

        All are 0 where no pair fits `trainer.tokens_per_microbatch`: nothing is trained, and the plan reports it.
        """
        options = self.settings.trainer
        usable, _ = keep_usable(requests.pairs(1, 1, DRAWN_PAIRS), options, self.config.max_position_embeddings)
        if not usable:
            return {"forward": (0.0, 0.0), "backward": (0.0, 0.0), "update": 0.0}
        examples = usable[:4]
        batches = [micro_batches(examples, range(count), options)[0] for count in (1, len(examples))]
        rows = [(1.0, float(forward_flops(self.config, batch))) for batch in batches]
        self.forward(batches[0])  # warm
        without = [timed(partial(self.forward, batch)) for batch in batches]
        self.backward(batches[0])
        with_backward = [timed(partial(self.backward, batch)) for batch in batches]
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
    """Seconds a byte of a file that is written through to the disk."""
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
    coefficients = {"start_seconds": start, "load_seconds": loaded, "step": step, "disk": disk_seconds()}
    with distributed(settings.engine.threads) as world:
        coefficients |= TrainingBench(world, settings, config).measure(requests)
    print(json.dumps(coefficients), flush=True)


if __name__ == "__main__":
    end_process(lambda: command(main))
