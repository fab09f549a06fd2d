"""Scores from a file in place of the judge."""

from fractions import Fraction

import pytest
from records import response

from judging.scores import read_scores
from stages.files import UserError, write_jsonl

RESPONSES = [response(1, 0, "good"), response(1, 1, "bad"), response(2, 0, "other")]


def test_scores_are_exact_and_may_be_any_number(tmp_path):
    path = tmp_path / "scores.jsonl"
    rows = [{"id": "p1/r0", "score": -0.1, "text": "good"}, {"id": "p1/r1", "score": 1e-7, "model": "any"}]
    write_jsonl(path, rows)
    assert read_scores(path, RESPONSES) == {"p1/r0": Fraction(-1, 10), "p1/r1": Fraction(1, 10**7)}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "p9/r0", "score": 1}, "line 2: no response has the id 'p9/r0'"),
        ({"id": "p1/r0", "score": 1}, "line 2: 'p1/r0' comes twice"),
        ({"id": "p1/r1", "score": "4"}, "line 2: score is '4'"),
        ({"id": "p1/r1", "score": None}, "line 2: score is None"),
        ({"id": "p1/r1", "score": True}, "line 2: score is True"),
        ({"id": "p1/r1", "score": float("nan")}, "line 2: score is nan"),
        ({"id": "p1/r1", "score": float("inf")}, "line 2: score is inf"),
        ({"id": "p1/r1", "score": 4, "text": "good"}, "line 2: 'p1/r1' has another text"),
        ({"id": "p1/r1", "score": 10**400}, "line 2: score is 1000"),
        ({"id": ["p1/r1"], "score": 1}, "line 2: id is ['p1/r1']"),
        ({"id": "p1/r1"}, "line 2: key 'score' is missing"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, complaint):
    path = tmp_path / "scores.jsonl"
    write_jsonl(path, [{"id": "p1/r0", "score": 3}, row])
    with pytest.raises(UserError, match=r"scores\.jsonl, ") as error:
        read_scores(path, RESPONSES)
    assert complaint in str(error.value)
