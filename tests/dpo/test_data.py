"""Training examples: reading, order, and the held-out share."""

import json

import pytest

from dpo.data import Example, epoch_batches, read_examples
from dpo.data import split as split_examples
from stages.command import UserError

PAIR = {"id": "a", "prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}
SFT = {"id": "a", "prompt_ids": [1, 2], "completion_ids": [3, 4, 5], "token_weights": [1, 4.5, 0]}


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def test_pairs_and_sft_examples_are_read(tmp_path):
    assert read_examples(written(tmp_path, PAIR), "dpo", 10) == [Example("a", [1, 2], ([3, 4], [5]))]
    plain = {"id": "b", "prompt_ids": [1, 2], "completion_ids": [3]}
    weighted, unweighted = read_examples(written(tmp_path, SFT, plain), "sft", 10)
    assert weighted == Example("a", [1, 2], ([3, 4, 5],), [1.0, 4.5, 0.0])
    assert unweighted == Example("b", [1, 2], ([3],), [1.0])


@pytest.mark.parametrize(
    ("stage", "rows", "message"),
    [
        ("dpo", [PAIR, PAIR], r"line 2: id 'a' came before"),
        ("dpo", [PAIR | {"chosen_ids": "34"}], r"line 1: chosen_ids is '34'; it must be a list of token ids below 10"),
        ("dpo", [PAIR | {"rejected_ids": [10]}], r"line 1: rejected_ids is \[10\]; it must be a list of token ids"),
        *(("dpo", [PAIR | {"chosen_ids": ids}], "line 1: chosen_ids is ") for ids in ([], None, [1.0], [True], [-1])),
        *(("dpo", [PAIR | {"id": name}], "line 1: id is ") for name in (None, ["a"], 7, " ")),
        ("sft", [SFT | {"token_weights": [1, 4]}], r"token_weights is \[1, 4\]; it must be 3 weights of at least 0"),
        ("sft", [SFT | {"token_weights": [0, 0, 0]}], r"token_weights is \[0, 0, 0\]; it must be .* not all 0"),
    ],
)
def test_errors_name_file_and_example(tmp_path, stage, rows, message):
    with pytest.raises(UserError, match=rf"rows\.jsonl.*{message}"):
        read_examples(written(tmp_path, *rows), stage, 10)


def test_order_is_a_function_of_seed_and_epoch():
    first = epoch_batches(range(10), 4, seed=1, epoch=0)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(i for batch in first for i in batch) == list(range(10))
    assert first != epoch_batches(range(10), 4, seed=1, epoch=1)
    assert first != epoch_batches(range(10), 4, seed=2, epoch=0)
    assert epoch_batches([5, 3, 8], 2, seed=1, epoch=1, ordered=True) == [[5, 3], [8]]


def test_held_out_is_a_function_of_seed_and_ids():
    examples = [Example(str(i), [1], ([1],)) for i in range(30)]
    training, held_out = split_examples(examples, 0.1, seed=3)
    assert len(held_out) == 3 and sorted(training + held_out) == list(range(30))
    backwards = examples[::-1]
    _, again = split_examples(backwards, 0.1, seed=3)
    assert {backwards[i].id for i in again} == {examples[i].id for i in held_out}
    assert split_examples(examples, 0.1, seed=4)[1] != held_out
    assert split_examples(examples, 0.0, seed=3)[1] == []
