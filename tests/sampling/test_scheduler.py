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

    def __init__(self, blocks: int, size: int, budget: int, sequences: int, passes: int = 1):
        self.pool = BlockPool(blocks, size)
        self.scheduler = Scheduler(self.pool, budget, sequences, 10**6, passes)
        self.budget, self.sequences, self.size = budget, sequences, size
        self.cache: dict[tuple[int, int], tuple[int, ...]] = {}
        self.done: dict[str, list[int]] = {}

    def step(self) -> None:
        step = self.scheduler.schedule()
        assert step.scheduled, "a busy scheduler always has something to compute"
        texts, drawn = [list(item.sequence.tokens) for item in step.scheduled], list[list[int]]()
        self.copy(step)
        for passed in range(step.passes):
            self.compute(step, passed, texts)
            sampling = [text for item, text in zip(step.scheduled, texts, strict=True) if item.samples]
            drawn.append([next_token(text) for text in sampling])
            for text, token in zip(sampling, drawn[-1], strict=True):
                text.append(token)
        self.check_blocks()
        for sequence in self.scheduler.complete(step, drawn, drawn):
            assert sequence.request.id not in self.done
            self.done[sequence.request.id] = sequence.completion
        self.check_blocks()

    def copy(self, step: Step) -> None:
        assert sum(item.end - item.start for item in step.scheduled) <= self.budget
        assert len(self.scheduler.running) <= self.sequences
        for source, destination in step.copies:
            for slot in range(self.size):
                self.cache[destination, slot] = self.cache.get((source, slot), ())

    def compute(self, step: Step, passed: int, texts: list[list[int]]) -> None:
        """Write; then every token must have its prefix in its sequence's blocks."""

        def slots(item, tokens: list[int], start: int) -> dict:
            blocks, places = item.sequence.blocks, range(start, item.end + passed)
            return {(blocks[i // self.size], i % self.size): tuple(tokens[: i + 1]) for i in places}

        for item, text in zip(step.scheduled, texts, strict=True):
            assert item.start == item.sequence.computed < item.end <= len(item.sequence.tokens)
            self.cache |= slots(item, text, item.start + passed)
        assert all(slots(*one, 0).items() <= self.cache.items() for one in zip(step.scheduled, texts, strict=True))

    def check_blocks(self) -> None:
        """References count the running sequences' blocks; the free blocks are exactly those without a reference."""
        held = Counter(block for sequence in self.scheduler.running for block in sequence.blocks)
        assert {block: count for block, count in enumerate(self.pool.references) if count} == dict(held)
        assert set(self.pool.free) == set(range(len(self.pool.references))) - set(held)
        assert all(not sequence.blocks for sequence in self.scheduler.waiting)


def expected(request: Request) -> list[int]:
    """The tokens that the machine draws for a request alone."""
    sequence = Sequence(request, 0, len(request.ids) + request.sampling.max_new_tokens, list(request.ids))
    while not sequence.completion or not sequence.finish_reason:
        sequence.tokens.append(next_token(sequence.tokens))
    return sequence.completion


def next_token(tokens: list[int]) -> int:
    return (sum(tokens) + len(tokens)) % 5


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)  # two tokens only: prefixes are often shared


@settings(max_examples=80)
@given(
    prompts=st.lists(st.tuples(PROMPTS, st.integers(1, 8)), min_size=1, max_size=12),
    arrivals=st.lists(st.integers(0, 6), min_size=12, max_size=12),
    size=st.sampled_from([1, 2, 4]),
    spare=st.integers(0, 30),
    budget=st.integers(1, 20),
    sequences=st.integers(1, 8),
    passes=st.integers(1, 5),
    stop=st.frozensets(st.integers(2, 4), max_size=1),
)
def test_any_sequence_of_events(prompts, arrivals, size, spare, budget, sequences, passes, stop):
    requests = [Request(str(i), ids, Sampling(1.0, 1.0, new, stop), seed=i) for i, (ids, new) in enumerate(prompts)]
    longest = max(len(r.ids) + r.sampling.max_new_tokens for r in requests)
    machine = Machine(-(-longest // size) + spare, size, budget, sequences, passes)
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


def test_a_step_has_as_many_passes_as_sequences_need_and_blocks_allow():
    """Two prompts of 2 tokens, to which 7 and 3 are drawn, the first of each with the prompt. Then 4 passes, the most,
    and the 2 that the first still needs; with 5 blocks of 2 tokens, of which each has 2, one is not enough for 4."""

    def passes(blocks: int) -> list[int]:
        machine, steps = Machine(blocks, size=2, budget=16, sequences=4, passes=4), list[int]()
        for i, new in enumerate((7, 3)):
            machine.scheduler.add(Request(str(i), [i] * 2, Sampling(1.0, 1.0, new), 0))
        complete = machine.scheduler.complete
        machine.scheduler.complete = lambda step, *drawn: (steps.append(step.passes), complete(step, *drawn))[1]
        while machine.scheduler.busy:
            machine.step()
        assert machine.scheduler.preemptions == 0
        return steps

    assert passes(blocks=20) == [1, 4, 2]
    assert passes(blocks=5) == [1, 2, 4]
