"""The engine: same tokens whatever the batch, the chunks, the sharing and the preemptions."""

import gc
import resource
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from workload import FIXTURE, GREEDY, greedy_by_full_forwards, mixed_requests

from model.llama import Llama
from model.weights import load_model
from sampling.engine import Engine
from sampling.request import Request, Sampling


@pytest.fixture(scope="module")
def model() -> Llama:
    return load_model(FIXTURE, torch.float32)


def engine(model: Llama, passes: int = 1, **changes) -> Engine:
    options = {"num_kv_blocks": 256, "block_size": 8, "max_num_batched_tokens": 256, "max_num_seqs": 32}
    machine = Engine(model, **options | changes)
    machine.max_passes = passes
    return machine


@cache
def oracle(model: Llama, ids: tuple[int, ...]) -> list[int]:
    return greedy_by_full_forwards(model, list(ids), 24)


@pytest.mark.parametrize(
    "changes",
    [
        {"passes": 8},
        {"max_num_batched_tokens": 13, "max_num_seqs": 9},
        {"block_size": 1, "passes": 3},
        {"num_kv_blocks": 20, "passes": 5},
    ],
    ids=str,
)
def test_greedy_tokens_equal_full_forwards(model, changes):
    """The oracle computes a whole forward pass for each token."""
    machine, requests = engine(model, **changes), mixed_requests(16)
    completions = {c.id: c.ids for c in machine.run(requests)}
    assert completions == {r.id: oracle(model, tuple(r.ids)) for r in requests}
    assert (machine.preemptions > 0) == (changes.get("num_kv_blocks", 256) * changes.get("block_size", 8) <= 256)


def test_a_shared_prompt_is_computed_once(model):
    ids = list(range(3, 63))
    sampling = Sampling(1.0, 1.0, 10)
    machine = engine(model)
    completions = list(machine.run([Request(str(i), ids, sampling, seed=i) for i in range(8)]))
    assert len({tuple(c.ids) for c in completions}) == 8  # samples differ
    # The prompt once, its last token anew for each of the other seven, nine decode steps for all.
    assert machine.computed_tokens == 60 + 7 + 8 * 9


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident memory is read from /proc")
def test_memory_does_not_grow(model):
    """2,000 requests, many of them preempted on the way, after 500 that have warmed everything up."""
    machine = engine(model, num_kv_blocks=40, max_num_batched_tokens=64)
    resident = []
    for first in range(0, 2500, 250):
        prompts = {i: [3 + i % 100, *range(3, 5 + i % 40)] for i in range(first, first + 250)}
        requests = [Request(str(i), ids, Sampling(1.0, 0.95, 12), seed=i) for i, ids in prompts.items()]
        assert sum(1 for _ in machine.run(requests)) == 250
        gc.collect()
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    assert machine.preemptions > 0
    assert max(resident[2:]) - resident[1] < 2 * 2**20


def test_several_passes_a_step_give_the_same_bits(model):
    """All sequences in one batch up to the end: tokens and sums of log-probabilities are equal."""
    requests = mixed_requests(12, Sampling(1.0, 0.9, 20))
    engines = [engine(model, passes, max_num_batched_tokens=1000) for passes in (1, 2, 8)]
    one, *more = ({c.id: c for c in machine.run(requests)} for machine in engines)
    assert len(one) == 12 and all(other == one for other in more)


def test_samples_do_not_depend_on_batch_or_order(model):
    requests = mixed_requests(12, Sampling(1.0, 0.9, 20))
    first = {c.id: c.ids for c in engine(model).run(requests)}
    second = {c.id: c.ids for c in engine(model, 6, max_num_seqs=3, max_num_batched_tokens=17).run(reversed(requests))}
    assert first == second


@pytest.mark.parametrize("passes", [1, 8])
def test_stop_tokens_and_reasons(model, passes):
    prompt = list(range(3, 40))
    tokens = oracle(model, tuple(prompt))
    stop = tokens[10]
    end = tokens.index(stop) + 1
    requests = [
        Request("stop", prompt, Sampling(0.0, 1.0, 24, frozenset({stop, 1})), 0),
        Request("length", prompt, Sampling(0.0, 1.0, 5), 0),
        Request("too_long", [5] * 512, GREEDY, 0),
        Request("context", [5] * 510, GREEDY, 0),
    ]
    completions = {c.id: c for c in engine(model, passes).run(requests)}
    for name, ids in (("stop", tokens[:end]), ("length", tokens[:5]), ("too_long", [])):
        assert (completions[name].ids, completions[name].finish_reason) == (ids, name)
    assert (len(completions["context"].ids), completions["context"].finish_reason) == (2, "length")


@pytest.mark.parametrize("passes", [1, 8])
def test_no_stop_token_is_drawn_too_early(model, passes):
    """In a batch with requests that may stop at once, and that stop at what the other must not draw."""
    prompt = list(range(3, 40))
    stops = tuple(oracle(model, tuple(prompt))[:2])
    begun = greedy_by_full_forwards(model, prompt, 12, stops)
    rest = greedy_by_full_forwards(model, prompt + begun, 12)
    end = next((i + 1 for i, token in enumerate(rest) if token in stops), 12)
    sampling = Sampling(0.0, 1.0, 24, frozenset(stops))
    requests = [Request("free", prompt, sampling, 0), Request("late", prompt, replace(sampling, min_new_tokens=12), 0)]
    completions = {c.id: c.ids for c in engine(model, passes).run(requests)}
    assert completions == {"free": [stops[0]], "late": begun + rest[:end]}
