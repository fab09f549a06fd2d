"""Packing: dropped examples, shared prefixes, and the layout of a micro-batch."""

from bisect import bisect_right
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from dpo.data import Example
from dpo.packing import LEAST_SHARED, MicroBatch, common_prefixes, keep_usable, micro_batches
from stages.settings import TrainerOptions

RUBRIC, OTHER = list(range(100, 140)), list(range(200, 220))


def test_what_cannot_be_used_is_dropped_whole_and_counted():
    long, fits = list(range(9)), Example("ok", [1] * 4, ([2] * 5, [3] * 6))
    given_examples = [
        fits,
        Example("no prompt", [], ([1], [2])),
        Example("no completion", [1], ([1], [])),
        Example("one and the same", [1], ([1, 2], [1, 2])),
        Example("beyond the context", [1, 2], ([1], long)),
        Example("beyond the budget", [1] * 5, ([2] * 5, [3] * 5)),
    ]
    assert fits.tokens() == 8 + 9
    kept, dropped = keep_usable(given_examples, TrainerOptions(tokens_per_microbatch=17), context=10)
    assert kept == [fits]
    expected = {"empty": 2, "identical": 1, "over_context": 1, "over_token_budget": 1}
    assert dropped == {f"dropped.{reason}": count for reason, count in expected.items()}
    shared = Example("with its prompt once", [1] * 20, ([2] * 5, [3] * 6))
    assert keep_usable([shared], TrainerOptions(tokens_per_microbatch=29), context=30) == ([shared], {})
    assert keep_usable([shared], TrainerOptions(tokens_per_microbatch=48, share_prefixes=False), context=30)[0] == []


def test_sharing_never_costs_a_micro_batch():
    """Groups whose prefixes do not all fit into one micro-batch are replaced by one group of all prompts."""
    rubric, prompts = list(range(700)), [list(range(1000 + 400 * i, 1400 + 400 * i)) for i in range(8)]
    many = [Example(f"{i}/{j}", [*rubric, *prompts[i], j], ([1] * 59,)) for i in range(8) for j in range(4)]
    batches = micro_batches(many, range(32), TrainerOptions(4096))
    assert sum(batch.tokens for batch in batches) == 32 * 459 + 700 * len(batches) and len(batches) == 5
    pairs = [Example(f"{i}/{j}", [i] * 900 + [j], ([1] * 399,)) for i in range(4) for j in range(2)]
    plain = micro_batches(pairs, range(8), TrainerOptions(4096, share_prefixes=False))
    assert len(micro_batches(pairs, range(8), TrainerOptions(4096))) == len(plain) == 3


def tokens_saved(prompts: list[list[int]]) -> int:
    """The most tokens that groups can save, by trying every cut of the sorted prompts into a run and a rest."""
    best = 0
    for end in range(1, len(prompts) + 1):
        same = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts[:end], strict=False))))
        saved = (end - 1) * same if same >= LEAST_SHARED else 0
        best = max(best, saved + tokens_saved(prompts[end:]))
    return best


heads, tails = st.sampled_from([RUBRIC, OTHER, OTHER[:10] + RUBRIC]), st.lists(st.integers(0, 3), max_size=3)
prompt = st.builds(lambda head, length, tail: [*head[:length], *tail], heads, st.integers(1, 50), tails)
prompts = st.lists(prompt, min_size=1, max_size=7)


@given(prompts)
@settings(deadline=None)
def test_groups_save_as_much_as_any(prompts):
    examples = [Example(str(i), prompt, ([1],)) for i, prompt in enumerate(prompts)]
    groups = common_prefixes(examples, range(len(examples)))
    for group in groups:
        heads = {tuple(prompts[i][: group.prefix]) for i in group.members}
        assert len(heads) == 1 and len(heads.pop()) == group.prefix
    assert sum((len(group.members) - 1) * group.prefix for group in groups) == tokens_saved(sorted(prompts))


def read_back(batch: MicroBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """For each target: the tokens that its source sees, their positions, and the target itself."""
    borders, rows = batch.segments.borders, []
    for source, target in zip(batch.sources_n.tolist(), batch.targets_n.tolist(), strict=True):
        own = bisect_right(borders, source) - 1
        prefix = batch.segments.prefixes[own]
        before = range(borders[prefix], borders[prefix + 1]) if prefix >= 0 else ()
        seen = [*before, *range(borders[own], source + 1)]
        rows.append((batch.ids_t[seen].tolist(), batch.positions_t[seen].tolist(), target))
    return rows


@given(prompts, st.integers(1, 2), st.integers(1, 3), st.booleans(), st.data())
@settings(deadline=None)
def test_every_token_is_predicted_from_all_that_stands_before_it(prompts, completions, ranks, share, data):
    """Micro-batches of all ranks predict each completion token once, from its whole past, within the budget."""
    completion = st.lists(st.integers(0, 9), min_size=1, max_size=4)
    examples = [
        Example(str(i), p, tuple(data.draw(completion) for _ in range(completions))) for i, p in enumerate(prompts)
    ]
    longest = max(example.tokens() for example in examples)
    options = TrainerOptions(tokens_per_microbatch=data.draw(st.integers(longest, 3 * longest)), share_prefixes=share)
    indices = list(range(len(examples)))
    shares = [micro_batches(examples, indices, options, rank, ranks) for rank in range(ranks)]
    assert len({len(batches) for batches in shares}) == 1
    batches = [batch for batches in shares for batch in batches]
    assert all(batch.tokens <= options.tokens_per_microbatch for batch in batches)
    assert sorted(i for batch in batches if batch.real for i in batch.examples) == indices
    for batch in batches:
        expected, sequences = [], []
        for place, i in enumerate(batch.examples):
            for number, ids in enumerate(examples[i].completions):
                for k, target in enumerate(ids):
                    past = examples[i].prompt + ids[:k]
                    expected.append((past, list(range(len(past))), target))
                    sequences.append(place * completions + number)
        assert read_back(batch) == expected and batch.sequences_n.tolist() == sequences


def test_ranks_get_even_loads():
    examples = [Example(str(i), [1] * 20, ([2] * (1 + 7 * i % 50), [3] * (1 + 3 * i % 40))) for i in range(64)]
    loads = [sum(b.tokens for b in micro_batches(examples, range(64), TrainerOptions(1000), r, 4)) for r in range(4)]
    assert max(loads) <= 1.05 * min(loads)
