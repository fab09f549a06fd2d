"""dpo/data.py: reading, dropping, order and packing."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo.data import Example, content_digest, epoch_batches, keep_usable, lay_out, micro_batches, pack, read_examples
from dpo.data import split as split_examples
from files import UserError

PAIR = {"id": "a", "prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}
SFT = {"id": "a", "prompt_ids": [1, 2], "completion_ids": [3, 4, 5], "token_weights": [1, 4.5, 0]}


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def test_pairs_and_sft_examples_are_read(tmp_path):
    assert read_examples(written(tmp_path, PAIR), "dpo", 10) == [Example("a", [1, 2], ([3, 4], [5]))]
    plain = {key: value for key, value in SFT.items() if key != "token_weights"} | {"id": "b"}
    assert read_examples(written(tmp_path, SFT, plain), "sft", 10) == [
        Example("a", [1, 2], ([3, 4, 5],), [1.0, 4.5, 0.0]),
        Example("b", [1, 2], ([3, 4, 5],), [1.0, 1.0, 1.0]),
    ]


@pytest.mark.parametrize(
    ("stage", "rows", "message"),
    [
        ("dpo", [{"id": "a", "prompt_ids": [1], "chosen_ids": [2]}], r"line 1: key 'rejected_ids' is missing"),
        ("dpo", [PAIR, PAIR], r"id 'a': this id came before"),
        ("dpo", [PAIR | {"chosen_ids": "34"}], r"id 'a': chosen_ids is not a list of token ids"),
        ("dpo", [PAIR | {"chosen_ids": [3.0]}], r"chosen_ids is not a list of token ids"),
        ("dpo", [PAIR | {"rejected_ids": [10]}], r"rejected_ids has an id outside the vocabulary of 10"),
        ("dpo", [PAIR | {"prompt_ids": [-1]}], r"prompt_ids has an id outside"),
        ("sft", [SFT | {"token_weights": [1, 4]}], r"token_weights \[1, 4\] are not 3 weights of at least 0"),
        ("sft", [SFT | {"token_weights": [1, -4, 1]}], r"are not 3 weights of at least 0"),
        ("sft", [SFT | {"token_weights": [0, 0, 0]}], r"token_weights are all 0"),
    ],
)
def test_errors_name_file_and_example(tmp_path, stage, rows, message):
    with pytest.raises(UserError, match=rf"rows\.jsonl.*{message}"):
        read_examples(written(tmp_path, *rows), stage, 10)


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
    assert fits.tokens == 8 + 9
    kept, dropped = keep_usable(given_examples, token_budget=17, context=10)
    assert kept == [fits]
    assert dropped == {
        "dropped.empty": 2,
        "dropped.identical": 1,
        "dropped.over_context": 1,
        "dropped.over_token_budget": 1,
    }


def test_layout():
    """Sequences end to end, positions from each start; targets are the completions' own tokens, no end token added."""
    examples = [Example("a", [1, 2], ([3, 4], [5])), Example("b", [6], ([7], [8, 9, 7]))]
    batch = lay_out(examples, [1, 0])
    assert batch.ids_t.tolist() == [6, 6, 8, 9, 1, 2, 3, 1, 2]
    assert batch.positions_t.tolist() == [0, 0, 1, 2, 0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 1, 4, 7, 9] and batch.cu_seqlens.dtype == torch.int32
    assert batch.targets_n.tolist() == [7, 8, 9, 7, 3, 4, 5]
    assert batch.sources_n.tolist() == [0, 1, 2, 3, 5, 6, 8]
    assert batch.sequences_n.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert len(batch.ids_t) == sum(example.tokens for example in examples)
    assert batch.sums(torch.ones(7)).tolist() == [[1.0, 3.0], [2.0, 1.0]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 5), st.integers(50, 120))
def test_packing_holds_every_index_once_under_the_budget(costs, ranks, budget):
    bins = pack(costs, ranks, budget)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(costs)))
    assert len(bins) % ranks == 0 and bins
    assert all(sum(costs[i] for i in chosen) <= budget for chosen in bins)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 4))
def test_ranks_have_as_many_micro_batches_and_share_the_examples(lengths, ranks):
    examples = [Example(str(i), [1], ([1] * n, [2] * n)) for i, n in enumerate(lengths)]
    indices = list(range(0, len(examples), 2))
    shares = [micro_batches(examples, indices, rank, ranks, 40) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for batch in share if batch.real for i in batch.examples) == indices
    assert all(len(batch.ids_t) <= 40 for share in shares for batch in share)


def test_order_is_a_function_of_seed_and_epoch():
    first = epoch_batches(range(10), 4, seed=1, epoch=0)
    assert first == epoch_batches(range(10), 4, seed=1, epoch=0)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(i for batch in first for i in batch) == list(range(10))
    assert first != epoch_batches(range(10), 4, seed=1, epoch=1)
    assert first != epoch_batches(range(10), 4, seed=2, epoch=0)
    assert epoch_batches([5, 3, 8], 2, seed=1, epoch=1, in_order=True) == [[5, 3], [8]]


def test_held_out_is_a_function_of_seed_and_ids():
    examples = [Example(str(i), [1], ([1],)) for i in range(30)]
    training, held_out = split_examples(examples, 0.1, seed=3)
    assert len(held_out) == 3 and sorted(training + held_out) == list(range(30))
    backwards = examples[::-1]
    _, again = split_examples(backwards, 0.1, seed=3)
    assert {backwards[i].id for i in again} == {examples[i].id for i in held_out}
    assert split_examples(examples, 0.1, seed=4)[1] != held_out
    assert split_examples(examples, 0.0, seed=3)[1] == []


def test_content_digest_sees_tokens():
    pair = Example("a", [1, 2], ([3], [4]))
    assert content_digest([pair]) == content_digest([Example("a", [1, 2], ([3], [4]))])
    assert content_digest([pair]) != content_digest([Example("a", [1], ([2, 3], [4]))])
