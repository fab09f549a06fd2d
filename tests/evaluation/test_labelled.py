"""Labelled pairs and groups: the four forms of a row, annotators, conversations, and what is refused."""

import json

import pytest

from evaluation.labelled import Labelled, majority, read_labelled
from stages.files import UserError, write_jsonl

PAIR = {"id": "a", "prompt": "Name a river.", "output_1": "The Po.", "output_2": "Rome.", "label": 1}
ALPACA = {"instruction": "Add 2 and 2.", "output_1": "4", "output_2": "5", "preference": 1, "dataset": "sums"}
GROUP = {"id": "g", "prompt": "q", "responses": [{"text": t, "score": s} for t, s in (("x", 4), ("y", 1), ("z", 4))]}
RANKED = {
    "message_id": "m",
    "context": [{"role": "prompter", "text": "q"}],
    "replies": [{"rank": 0, "text": "best"}, {"rank": 1, "text": "next"}],
}


@pytest.fixture
def read(tmp_path):
    def write_and_read(*rows: dict) -> Labelled:
        write_jsonl(tmp_path / "cases.jsonl", rows)
        return read_labelled(tmp_path / "cases.jsonl")

    return write_and_read


@pytest.mark.parametrize(
    ("label", "meaning"),
    [
        *((1, "first"), (1.0, "first"), ("1", "first"), ("first", "first")),
        *((2, "second"), (2.0, "second"), ("2.0", "second"), ("second", "second")),
        *((0, "tie"), (1.5, "tie"), ("tie", "tie"), ("Tie", "tie")),
    ],
)
def test_a_label_says_which_is_better(read, label, meaning):
    (pair,) = read(PAIR | {"label": label}).pairs
    assert pair.label == meaning and pair.labels == {"": meaning}
    assert (pair.first.name, pair.second.name) == ("a/0", "a/1")
    assert (pair.first.quality, pair.second.quality) == {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}[meaning]


@pytest.mark.parametrize("label", [3, 1.2, True, "both", float("nan"), [1]])
def test_other_labels_are_refused(read, label):
    with pytest.raises(UserError, match=r"line 2: label is .*; it must be 1, 2 or"):
        read(PAIR, PAIR | {"id": "b", "label": label})


def test_a_preference_may_lie_between(read):
    """As AlpacaEval's weighted annotators give it: 1 and the probability of the second output."""
    rows = [ALPACA | {"output_2": str(i), "preference": p} for i, p in enumerate((1.01, 1.5, 1.99))]
    assert [pair.label for pair in read(*rows).pairs] == ["first", "tie", "second"]
    with pytest.raises(UserError, match=r"preference is 2\.5"):
        read(ALPACA | {"preference": 2.5})


def test_annotators_of_one_pair(read):
    rows = [PAIR | {"annotator": name, "label": label} for name, label in (("x", 2), ("y", "tie"), ("z", 2))]
    (pair,) = read(*rows).pairs
    assert pair.label == "second" and pair.labels == {"x": "second", "y": "tie", "z": "second"}
    by_texts = [ALPACA | {"annotator_index": i, "preference": label} for i, label in enumerate((1, 2))]
    first, other = read(*by_texts, ALPACA | {"output_1": "four"}).pairs
    assert (first.name, first.label, len(first.labels), other.name) == ("00000", "tie", 2, "00001")
    assert first.first.subset == "sums"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["first"], "first"),
        (["first", "second"], "tie"),
        (["first", "tie"], "tie"),
        (["first", "first", "second", "second", "tie"], "tie"),
        (["second", "first", "second"], "second"),
    ],
)
def test_majority(labels, expected):
    assert majority(labels) == expected


def test_groups_of_both_forms(read):
    """Of three responses with scores 4, 1, 4 two pairs differ. Groups come before pairs."""
    contents = read(PAIR, GROUP | {"subset": "s"}, RANKED)
    assert [(c.name, c.quality) for c in contents.cases] == [
        *(("g/0", 4), ("g/1", 1), ("g/2", 4), ("m/0", 0), ("m/1", -1)),
        *(("a/0", 1), ("a/1", 0)),
    ]
    assert [(p.name, p.label, len(p.labels)) for p in contents.pairs] == [
        *(("g/0-1", "first", 0), ("g/1-2", "second", 0), ("m/0-1", "first", 0), ("a", "first", 1)),
    ]
    assert [[case.name for case in members] for members in contents.rankings] == [["g/0", "g/1", "g/2"], ["m/0", "m/1"]]
    (name, part), *others = contents.subsets.items()
    assert name == "s" and len(part.cases) == 3 and len(part.pairs) == 2 and not others


def test_a_prompt_may_be_a_conversation(read):
    one = read(PAIR | {"prompt": [{"role": "user", "content": "Name a river."}]})
    assert one.cases[0].prompt == "Name a river."
    said = [("user", "Name a river."), ("assistant", "The Po."), ("user", "Another.")]
    several = read(PAIR | {"prompt": [{"role": role, "content": text} for role, text in said]}).cases[0].prompt
    context = [{"role": {"user": "prompter"}.get(role, role), "text": text} for role, text in said]
    assert several == read(RANKED | {"context": context}).cases[0].prompt
    assert several.index("Name a river.") < several.index("The Po.") < several.index("Another.")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no labelled responses"),
        ([{"id": "x"}], "line 1: neither a labelled pair nor a group"),
        ([PAIR | {"id": None}], "line 1: key 'id' is missing"),
        ([{key: value for key, value in PAIR.items() if key != "label"}], "line 1: key 'label' is missing"),
        ([PAIR | {"output_2": None}], "line 1: key 'output_2' is missing"),
        ([PAIR | {"output_2": 4}], "line 1: output_2 is 4; it must be a text"),
        ([PAIR, PAIR], "line 2: 'a': one without a name has labelled it before"),
        ([PAIR | {"annotator": 7}, PAIR | {"annotator": 7}], "line 2: 'a': annotator '7' has labelled it before"),
        ([PAIR, PAIR | {"output_1": "The Rhine."}], "line 2: 'a' came before with another prompt or outputs"),
        (
            [PAIR | {"annotator": "x"}, PAIR | {"annotator": "y", "id": "b"}],
            "line 2: 'b' and 'a' are the same pair",
        ),
        ([ALPACA, ALPACA], "line 2: the pair of 'Add 2 and 2.': one without a name"),
        ([GROUP, GROUP], "line 2: the id 'g' came before"),
        ([GROUP, PAIR | {"id": "g"}], "the id 'g' is of a pair, and of a group or its pairs, too"),
        ([GROUP, PAIR | {"id": "g/0-1"}], "the id 'g/0-1' is of a pair, and of a group or its pairs, too"),
        ([GROUP | {"responses": []}], "line 1: 'responses' of 'g' must be a list"),
        ([GROUP | {"responses": [{"text": "x"}]}], "line 1: key 'score' is missing"),
        ([GROUP | {"responses": [{"text": "x", "score": "4"}]}], "line 1: score is '4'; it must be a finite number"),
        ([RANKED | {"message_id": ""}], "line 1: message_id is ''"),
        ([PAIR | {"prompt": []}], "line 1: the prompt must be a text or a list of messages"),
        ([PAIR | {"prompt": [{"role": "system", "content": "x"}]}], "line 1: a message of the prompt must be"),
        ([PAIR | {"prompt": [{"role": "assistant", "content": "x"}]}], "line 1: the prompt must end with the user's"),
    ],
)
def test_what_is_refused(read, rows, complaint):
    with pytest.raises(UserError) as error:
        read(*rows)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_the_same_texts_may_be_two_pairs_where_nobody_is_named(read):
    assert len(read(PAIR, PAIR | {"id": "b"}).pairs) == 2


def test_ids_may_be_numbers(read, tmp_path):
    assert [case.name for case in read(PAIR | {"id": 7}).cases] == ["7/0", "7/1"]
    (tmp_path / "cases.jsonl").write_text(json.dumps(PAIR) + "\n[]\n")
    with pytest.raises(UserError, match="line 2"):
        read_labelled(tmp_path / "cases.jsonl")
