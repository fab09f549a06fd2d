"""Labelled pairs and groups, and stored verdicts on them: the forms of a row, what follows from it, what is refused."""

import re
from fractions import Fraction

import pytest
from questions import refused, without, written

from evaluation.labelled import Labelled, majority, read_decisions, read_labelled

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
    return lambda *rows: read_labelled(written(tmp_path / "cases.jsonl", rows))


def test_a_label_says_which_is_better(read):
    """A preference may lie between 1 and 2, as AlpacaEval's weighted annotators give it."""
    labels = {"first": (1, "1", "first"), "second": (2, "2.0", "second"), "tie": (0, 1.5, "0", "Tie")}
    given = [(meaning, label) for meaning, ways in labels.items() for label in ways]
    pairs = read(*(PAIR | {"id": i, "label": label} for i, (_, label) in enumerate(given))).pairs
    assert [(pair.label, dict(pair.labels)) for pair in pairs] == [(meaning, {"": meaning}) for meaning, _ in given]
    sides = {pair.label: (pair.first.quality, pair.second.quality) for pair in pairs}
    assert sides == {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}
    rows = [ALPACA | {"output_2": str(i), "preference": p} for i, p in enumerate((1.01, 1.5, 1.99))]
    assert [pair.label for pair in read(*rows).pairs] == ["first", "tie", "second"]


def test_annotators_of_one_pair(read):
    rows = [PAIR | {"annotator": name, "label": label} for name, label in (("x", 2), ("y", "tie"), ("z", 2))]
    (pair,) = read(*rows).pairs
    assert pair.label == "second" and pair.labels == {"x": "second", "y": "tie", "z": "second"}
    by_texts = [ALPACA | {"annotator_index": i, "preference": label} for i, label in enumerate((1, 2))]
    first, other = read(*by_texts, ALPACA | {"output_1": "four"}).pairs
    assert (first.name, first.label, len(first.labels), other.name) == ("00000", "tie", 2, "00001")
    assert first.first.subset == "sums"
    assert majority(["first", "first", "second", "second", "tie"]) == majority(["first", "tie"]) == "tie"


def test_groups_of_both_forms(read):
    """Of three responses with scores 4, 1, 4 two pairs differ. Groups come before pairs; an id may be a number."""
    contents = read(PAIR | {"id": 7}, GROUP | {"subset": "s"}, RANKED)
    assert [(c.name, c.quality) for c in contents.cases] == [
        *(("g/0", 4), ("g/1", 1), ("g/2", 4), ("m/0", 0), ("m/1", -1), ("7/0", 1), ("7/1", 0)),
    ]
    assert [(p.name, p.label, len(p.labels)) for p in contents.pairs] == [
        *(("g/0-1", "first", 0), ("g/1-2", "second", 0), ("m/0-1", "first", 0), ("7", "first", 1)),
    ]
    assert [[case.name for case in members] for members in contents.rankings] == [["g/0", "g/1", "g/2"], ["m/0", "m/1"]]
    assert [read(row | {"subset": 0}).cases[0].subset for row in (PAIR, GROUP)] == ["0", "0"]
    part = contents.subset("s")
    assert len(part.cases) == 3 and len(part.pairs) == 2


def test_a_prompt_may_be_a_conversation(read):
    assert read(PAIR | {"prompt": [{"role": "user", "content": "Name it."}]}).cases[0].prompt == "Name it."
    turns = [("user", "Name a river."), ("assistant", "The Po."), ("user", "Another.")]
    several = read(PAIR | {"prompt": [{"role": role, "content": text} for role, text in turns]}).cases[0].prompt
    context = [{"role": {"user": "prompter"}.get(role, role), "text": text} for role, text in turns]
    assert several == read(RANKED | {"context": context}).cases[0].prompt
    assert several.index("Name a river.") < several.index("The Po.") < several.index("Another.")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        *(([PAIR | {"label": x}], "it must be 1, 2 or") for x in (3, "both", None)),
        ([PAIR | {"annotator": 7}, PAIR | {"annotator": 7}], "line 2: 'a' has a label by '7'"),
        ([PAIR, PAIR | {"output_1": "The Rhine."}], "line 2: 'a' came before with other texts"),
        *(([ALPACA | {"preference": x}], f"line 1: preference is {x}; it must be 1, 2") for x in (True, False)),
        *(
            ([PAIR | {"annotator": x}], f"line 1: annotator is {x}; it must be a text or a number")
            for x in ([], {}, True)
        ),
        *(([row | {"subset": ["x"]}], "line 1: subset is ['x']; it must be a text or") for row in (PAIR, GROUP)),
        ([GROUP, GROUP], "line 2: the id 'g' came before"),
        ([GROUP, PAIR | {"id": "g/0-1"}], "the id 'g/0-1' is of a pair, and of a group, its pairs"),
        (
            [PAIR | {"id": "00001"}, without(PAIR, "id")],
            "the id '00001' is of a pair, and of a group, its pairs, or a pair w",
        ),
        (
            [without(PAIR, "id"), PAIR | {"id": "00000"}],
            "the id '00000' is of a pair, and of a group, its pairs, or a pair w",
        ),
        (
            [GROUP | {"responses": [{"text": "x", "score": "4"}]}],
            "line 1: responses is [{",
        ),
        *(([PAIR | {"prompt": [{"role": r, "content": "x"}]}], "line 1: prompt is [") for r in ("system", "assistant")),
    ],
)
def test_labels_that_are_refused(read, rows, complaint):
    with refused(re.escape(complaint)):
        read(*rows)


# Stored verdicts

TRIPLE = {"id": "g", "prompt": "q", "responses": [{"text": t, "score": s} for t, s in (("xx", 4), ("y", 2), ("z", 0))]}
BETTER = {"id": "p", "prompt": "q", "output_1": "a", "output_2": "b", "label": 1}
TWINS = {"id": "t", "prompt": "q", "output_1": "same", "output_2": "same", "label": "tie"}


@pytest.fixture
def labelled(read) -> Labelled:
    return read(TRIPLE, BETTER, TWINS)


@pytest.fixture
def decide(tmp_path, labelled):
    return lambda rows: read_decisions(written(tmp_path / "decisions.jsonl", rows), labelled)


def scores(**given: list) -> list[dict]:
    """Rows of g/0, g/1, ... by their scores."""
    rest = {"p0": [1], "p1": [2], "t0": [3], "t1": [3]} | given
    rows = [(f"{name[0]}/{name[1]}", *own) for name, values in rest.items() for own in enumerate(values)]
    return [{"id": name, "index": i, "score": score} for name, i, score in rows]


def comparisons(**given: tuple) -> list[dict]:
    """Rows of both orders: what wins as shown; of g the pairs g01, g02, g12."""
    return [
        {"id": f"g/{name[1]}-{name[2]}" if name[0] == "g" else name, "order": order, "winner": winner}
        for name, both in given.items()
        for order, winner in enumerate(both)
    ]


def test_comparisons_prefer_what_both_orders_do(decide, labelled):
    """In order 1 the second is shown first: "second" there is a vote for the first. g/1 wins once and ties once."""
    rows = comparisons(g01=("first", "second"), g02=("tie", "second"), g12=("second", "first"), p=(None, "first"))
    opinion = decide(rows).opinion(labelled)
    assert opinion.preferences == {"g/0-1": "first", "g/0-2": "tie", "g/1-2": "second", "p": "second", "t": "tie"}
    assert [opinion.values[f"g/{i}"] for i in range(3)] == [Fraction(3, 4), 0, Fraction(3, 4)]
    assert (opinion.values["p/0"], opinion.values["p/1"], opinion.values["t/0"]) == (0, 1, Fraction(1, 2))
    # A response without a decided pair has no value; an index tells several comparisons in an order apart.
    rows = comparisons(g01=(None, None), g02=(None, None), g12=("first", "second"), p=("tie", "tie"))
    decisions = decide([row | {"index": 7, "winner": None} for row in rows] + [row | {"index": 3} for row in rows])
    assert [decisions.opinion(labelled).values[f"g/{i}"] for i in range(3)] == [None, 1, 0]
    assert decisions.verdicts["g/1-2"] == [["first", None], ["second", None]]


def test_scores_and_decisions(decide, labelled):
    decisions = decide(scores(g0=[4, 5], g1=[4.5, None], g2=[None, None]))
    opinion = decisions.opinion(labelled)
    assert opinion.preferences == {"g/0-1": "tie", "g/0-2": None, "g/1-2": None, "p": "second", "t": "tie"}
    assert opinion.values["g/0"] == Fraction(9, 2) and opinion.values["g/2"] is None
    given = {"g/0-1": "second", "g/0-2": "tie", "g/1-2": None, "p": "first"}
    opinion = decide([{"id": n, "decision": decision, "why": "..."} for n, decision in given.items()]).opinion(labelled)
    assert opinion.preferences == given | {"t": "tie"}
    assert opinion.values["g/1"] == 1 and opinion.values["g/0"] == Fraction(1, 4)


ALL = scores(g0=[1], g1=[2], g2=[3])
DECIDED = [{"id": name, "decision": "tie"} for name in ("g/0-1", "g/0-2", "g/1-2", "p")]
BOTH = comparisons(g01=("tie", "tie"), g02=("tie", "tie"), g12=("tie", "tie"), p=("tie", "tie"))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (ALL[:2], "no score of 'g/0', 'g/1', 'g/2', 't/0', 't/1'; add"),
        (BOTH[:-1], "no winner of 'p, order 1'"),
        ([*ALL, {"id": "p", "score": 1}], "line 8: the cases have no 'p' for a score"),
        ([*BOTH, BOTH[-1]], "line 9: 'p' has this verdict already"),
        ([*DECIDED, ALL[0] | {"id": "p"}], "line 5: key 'decision' is missing"),
        *(([ALL[0] | {"score": x}], f"line 1: score is {x!r}; it must be") for x in ("4", True, 1e16)),
        *(([BOTH[0] | {"order": x}], f"line 1: order is {x}; it must be 0 or 1") for x in (2, 1.0, True)),
    ],
)
def test_verdicts_that_are_refused(decide, rows, complaint):
    with refused(re.escape(complaint)):
        decide(rows)
