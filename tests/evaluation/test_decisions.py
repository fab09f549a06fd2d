"""Stored verdicts: the three forms, what is made of each, and what is refused by name."""

from fractions import Fraction

import pytest

from evaluation.decisions import Decisions, longer_wins, read_decisions
from evaluation.labelled import Labelled, read_labelled
from stages.files import UserError, write_jsonl

GROUP = {"id": "g", "prompt": "q", "responses": [{"text": t, "score": s} for t, s in (("xx", 4), ("y", 2), ("z", 0))]}
PAIR = {"id": "p", "prompt": "q", "output_1": "a", "output_2": "b", "label": 1}
TWINS = {"id": "t", "prompt": "q", "output_1": "same", "output_2": "same", "label": "tie"}
HALF = Fraction(1, 2)


@pytest.fixture
def labelled(tmp_path) -> Labelled:
    write_jsonl(tmp_path / "cases.jsonl", [GROUP, PAIR, TWINS])
    return read_labelled(tmp_path / "cases.jsonl")


@pytest.fixture
def read(tmp_path, labelled):
    def write_and_read(rows: list[dict]) -> Decisions:
        write_jsonl(tmp_path / "decisions.jsonl", rows)
        return read_decisions(tmp_path / "decisions.jsonl", labelled)

    return write_and_read


def scores(**given: list) -> list[dict]:
    """Rows of g/0, g/1, ... by their scores."""
    rest = {"p0": [1], "p1": [2], "t0": [3], "t1": [3]} | given
    return [
        {"id": f"{name[0]}/{name[1]}", "index": i, "score": score}
        for name, values in rest.items()
        for i, score in enumerate(values)
    ]


def comparisons(**given: tuple) -> list[dict]:
    """Rows of both orders: what wins as shown; of g the pairs g01, g02, g12."""
    return [
        {"id": f"g/{name[1]}-{name[2]}" if name[0] == "g" else name, "order": order, "winner": winner}
        for name, both in given.items()
        for order, winner in enumerate(both)
    ]


def test_scores_prefer_the_higher_mean(read, labelled):
    decisions = read(scores(g0=[4, 5], g1=[4.5, None], g2=[None, None]))
    opinion = decisions.opinion(labelled)
    assert opinion.preferences == {"g/0-1": "tie", "g/0-2": None, "g/1-2": None, "p": "second", "t": "tie"}
    assert opinion.values["g/0"] == Fraction(9, 2) and opinion.values["g/2"] is None
    first = decisions.first(1).opinion(labelled)
    assert first.preferences["g/0-1"] == "second" and decisions.most == 2
    assert len(decisions.verdicts) == 10 and decisions.verdicts.count(None) == 3


def test_comparisons_prefer_what_both_orders_do(read, labelled):
    """In order 1 the second is shown first: "second" there is a vote for the first. g/1 wins once and ties once."""
    rows = comparisons(
        g01=("first", "second"), g02=("tie", "second"), g12=("second", "first"), p=(None, "first")
    )  # fmt: skip
    opinion = read(rows).opinion(labelled)
    assert opinion.preferences == {"g/0-1": "first", "g/0-2": "tie", "g/1-2": "second", "p": "second", "t": "tie"}
    assert [opinion.values[f"g/{i}"] for i in range(3)] == [Fraction(3, 4), 0, Fraction(3, 4)]
    assert (opinion.values["p/0"], opinion.values["p/1"], opinion.values["t/0"]) == (0, 1, HALF)


def test_a_response_without_a_decided_pair_has_no_value(read, labelled):
    rows = comparisons(g01=(None, None), g02=(None, None), g12=("first", "second"), p=("tie", "tie"))
    values = read(rows).opinion(labelled).values
    assert [values[f"g/{i}"] for i in range(3)] == [None, 1, 0]


def test_several_comparisons_in_an_order_are_told_apart_by_index(read, labelled):
    rows = comparisons(g01=("first", "second"), g02=("first", "second"), g12=("first", "second"), p=("first", "second"))
    more = [row | {"index": i + 3} for i, row in enumerate(rows)]
    decisions = read(rows + more)
    assert decisions.most == 2
    assert [row["index"] for row in decisions.rows["p"]] == [0, 1, 0, 1]


def test_decisions_are_taken_as_they_are(read, labelled):
    said = {"g/0-1": "second", "g/0-2": "tie", "g/1-2": None, "p": "first"}
    opinion = read([{"id": name, "decision": decision, "why": "..."} for name, decision in said.items()]).opinion(
        labelled
    )
    assert opinion.preferences == said | {"t": "tie"}
    assert opinion.values["g/1"] == 1 and opinion.values["g/0"] == Fraction(1, 4)


def test_longer_wins(labelled):
    opinion = longer_wins(labelled)
    assert opinion.preferences == {"g/0-1": "first", "g/0-2": "first", "g/1-2": "tie", "p": "tie", "t": "tie"}
    assert opinion.values["g/0"] == 2


ALL = scores(g0=[1], g1=[2], g2=[3])
DECIDED = [{"id": name, "decision": "tie"} for name in ("g/0-1", "g/0-2", "g/1-2", "p")]
BOTH = comparisons(g01=("tie", "tie"), g02=("tie", "tie"), g12=("tie", "tie"), p=("tie", "tie"))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no verdicts"),
        ([{"id": "p"}], "line 1: no score, winner or decision"),
        ([{"decision": "tie"}], "line 1: key 'id' is missing"),
        (ALL[1:-1], "no score of 'g/2'; 'p/0'; add"),
        (ALL[:2], "no score of 'g/0'; 'g/1'; 'g/2' and 2 more"),
        (BOTH[:-1], "no winner of 'p', order 1"),
        (DECIDED[:-1], "no decision of 'p'"),
        ([*ALL, {"id": "x", "score": 1}], "line 8: no response of the cases has the id 'x'"),
        ([*ALL, {"id": "p", "score": 1}], "line 8: no response of the cases has the id 'p'"),
        ([*DECIDED, {"id": "p/0", "decision": "tie"}], "line 5: no pair of the cases has the id 'p/0'"),
        ([*ALL, ALL[-1]], "line 8: 'g/2' has this verdict already"),
        ([*BOTH, BOTH[-1]], "line 9: 'p' has this verdict already"),
        ([*DECIDED, DECIDED[0] | {"index": 1}], "line 5: 'g/0-1' has this verdict already"),
        ([*DECIDED, ALL[0] | {"id": "p"}], "line 5: 'p' has no decision"),
        ([ALL[0] | {"score": "4"}], "line 1: the score of 'p/0' is '4'"),
        ([ALL[0] | {"score": True}], "line 1: the score of 'p/0' is True"),
        ([ALL[0] | {"score": float("inf")}], "line 1: the score of 'p/0' is inf"),
        ([ALL[0] | {"index": -1}], "line 1: the index of 'p/0' is -1"),
        ([DECIDED[0] | {"decision": "A"}], "line 1: the decision of 'g/0-1' is 'A'"),
        ([BOTH[0] | {"winner": 1}], "line 1: the winner of 'g/0-1' is 1"),
        ([BOTH[0] | {"order": 2}], "line 1: the order of 'g/0-1' is 2; it must be 0 or 1"),
        ([{"id": "p", "winner": "tie"}], "line 1: the order of 'p' is None"),
    ],
)
def test_what_is_refused(read, rows, complaint):
    with pytest.raises(UserError) as error:
        read(rows)
    assert complaint in str(error.value) and "\n" not in str(error.value)
