"""Pool and scheduler without a model: whatever the events, each token attends to its own prefix and no block is lost.

The cache is simulated: a slot holds which prefix (as a tuple of tokens) its key and value were computed from.
"""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.blocks import BlockPool
from sampling.request import Request, Sampling
from sampling.scheduler import Scheduler, Sequence, Step


class Machine:
    """A scheduler, and the cache's content after a model's forward passes."""

    def __init__(self, blocks: int, size: int, budget: int, sequences: int):
        self.pool = BlockPool(blocks, size)
        self.scheduler = Scheduler(self.pool, budget, sequences, max_length=10**6)
        self.budget, self.sequences, self.size = budget, sequences, size
        self.cache: dict[tuple[int, int], tuple[int, ...]] = {}
        self.done: dict[str, list[int]] = {}

    def step(self) -> None:
        step = self.scheduler.schedule()
        assert step.scheduled, "a busy scheduler always has something to compute"
        self.compute(step)
        self.check_blocks()
        drawn = [(sum(item.sequence.tokens) + len(item.sequence.tokens)) % 5 for item in step.scheduled if item.samples]
        for sequence in self.scheduler.complete(step, drawn):
            assert sequence.request.id not in self.done
            self.done[sequence.request.id] = sequence.completion
        self.check_blocks()

    def compute(self, step: Step) -> None:
        """Copy and write; then every token must have its prefix in its sequence's blocks."""
        assert sum(item.end - item.start for item in step.scheduled) <= self.budget
        assert len(self.scheduler.running) <= self.sequences
        for source, destination in step.copies:
            for slot in range(self.size):
                self.cache[destination, slot] = self.cache.get((source, slot), ())

        def slots(item, start: int) -> dict:
            blocks, tokens = item.sequence.blocks, item.sequence.tokens
            return {(blocks[i // self.size], i % self.size): tuple(tokens[: i + 1]) for i in range(start, item.end)}

        for item in step.scheduled:
            assert item.start == item.sequence.computed < item.end <= len(item.sequence.tokens)
            self.cache |= slots(item, item.start)
        assert all(slots(item, 0).items() <= self.cache.items() for item in step.scheduled)

    def check_blocks(self) -> None:
        """References count the running sequences' blocks; the free blocks are exactly those without a reference."""
        held = Counter(block for sequence in self.scheduler.running for block in sequence.blocks)
        assert {block: count for block, count in enumerate(self.pool.references) if count} == dict(held)
        assert set(self.pool.free) == set(range(len(self.pool.references))) - set(held)
        assert all(not sequence.blocks for sequence in self.scheduler.waiting)


def expected(request: Request) -> list[int]:
    """The tokens that the machine draws for a request alone."""
    sequence = Sequence(request, 0, 0, list(request.ids))
    for _ in range(request.sampling.max_new_tokens):
        sequence.tokens.append((sum(sequence.tokens) + len(sequence.tokens)) % 5)
    return sequence.completion


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)  # two tokens only: prefixes are often shared


@settings(max_examples=80)
@given(
    prompts=st.lists(st.tuples(PROMPTS, st.integers(1, 8)), min_size=1, max_size=12),
    arrivals=st.lists(st.integers(0, 6), min_size=12, max_size=12),
    size=st.sampled_from([1, 2, 4]),
    spare=st.integers(0, 30),
    budget=st.integers(1, 20),
    sequences=st.integers(1, 8),
)
def test_any_sequence_of_events(prompts, arrivals, size, spare, budget, sequences):
    requests = [Request(str(i), ids, Sampling(1.0, 1.0, new), seed=i) for i, (ids, new) in enumerate(prompts)]
    longest = max(len(r.ids) + r.sampling.max_new_tokens for r in requests)
    machine = Machine(-(-longest // size) + spare, size, budget, sequences)
    work = sum(len(r.ids) + r.sampling.max_new_tokens for r in requests)
    for request, steps in zip(requests, arrivals, strict=False):
        assert machine.scheduler.add(request)
        for _ in range(steps):
            if machine.scheduler.busy:
                machine.step()
    for _ in range(100 * work):
        if machine.scheduler.busy:
            machine.step()
    assert machine.done == {request.id: expected(request) for request in requests}
    assert machine.pool.references == [0] * len(machine.pool.references)


def test_a_prompt_that_can_never_fit_is_refused():
    scheduler = Machine(blocks=4, size=2, budget=8, sequences=4).scheduler
    fits = {length: scheduler.add(Request("r", [0] * length, Sampling(1.0, 1.0, 5), 0)) for length in (0, 7, 8)}
    assert fits == {0: False, 7: True, 8: False}


def test_the_youngest_gives_way_and_loses_nothing():
    """Two sequences that outgrow the pool together: the younger one waits, and ends with the same tokens."""
    machine = Machine(blocks=6, size=2, budget=16, sequences=4)
    requests = [Request(str(i), [i] * 4, Sampling(1.0, 1.0, 8), 0) for i in range(2)]
    for request in requests:
        machine.scheduler.add(request)
    while machine.scheduler.busy:
        machine.step()
    assert machine.scheduler.preemptions > 0 and list(machine.done) == ["0", "1"]
    assert machine.done == {request.id: expected(request) for request in requests}
