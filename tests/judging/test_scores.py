"""Scores, the choice of the meta-judged response, and scores from a file, by hand."""

import json
from fractions import Fraction

import pytest
from records import judgments, make_settings, response

from judging.metajudge import choose_meta_judged
from judging.scores import distinct_judgments, distinct_responses, mean_score, read_scores
from stages.command import UserError


def test_what_is_distinct():
    rows = [(1, 0, "same"), (1, 1, "same", "length"), (1, 2, "", "too_long"), (1, 3, "cut", "length")]
    rows += [(2, 0, "same"), (1, 4, "same "), (1, 5, "")]
    names = [row["id"] for row in distinct_responses([response(*row) for row in rows])]
    assert names == ["p1/r0", "p1/r3", "p2/r0", "p1/r4", "p1/r5"]
    rows = judgments("p1/r0", [4, 4, None, 2, 4], ["a", "a", "b", "c", "d"])
    assert [row["index"] for row in distinct_judgments(rows)] == [0, 3, 4]


def test_mean_scores_are_exact_and_failures_are_as_deleted():
    for scores, needed, mean in [
        ([4, None, 4, None, 3], 3, Fraction(11, 3)),
        ([4, None, 4, None, 3], 4, None),
        ([None, None], 1, None),
        ([], 0, None),
        ([4.1, 4.2], 1, Fraction(83, 20)),
    ]:
        assert mean_score(judgments("p1/r0", scores), needed) == mean
    # Equal texts are two draws of one distribution: both enter the mean.
    assert mean_score(judgments("p1/r0", [5, 5, 2], ["a", "a", "b"]), 1) == 4


def chosen(scores, texts=None, seed: int = 0) -> tuple[int, list[int]] | str:
    """Which of one prompt's responses is meta-judged and by which judgments, or why none is."""
    responses = [response(1, sample, f"text {sample}") for sample in range(4)]
    rated = {f"p1/r{i}": judgments(f"p1/r{i}", row, (texts or {}).get(i)) for i, row in scores.items()}
    (row,) = choose_meta_judged(responses, rated, make_settings(seed=seed), 1)
    return row["reason"] or (int(row["response_id"][-1]), row["judgments"])


@pytest.mark.parametrize(
    ("scores", "texts", "choice"),
    [
        ({0: [3, 3, 3], 1: [1, 5, 3], 2: [2, 4, 3]}, {}, (1, [0, 1, 2])),
        # a failure is as deleted: [0, 5] varies more than [1, 5, 5, 1], 25/4 against 4
        ({0: [1, 5, 5, 1], 1: [0, None, 5, None]}, {}, (1, [0, 2])),
        # one parsed judgment cannot be compared, whatever it says; equal texts are one judgment
        ({0: [5, None, None], 1: [3, 3, None], 2: [4, 4, None]}, {2: ["x", "x", "y"]}, (1, [0, 1])),
        ({1: [3, 4]}, {}, (1, [0, 1])),
        # r0: {0, 5} without repetitions, 25/4, with them (0, 5, 5, 5) 75/16; r1: 59/12, in between
        ({0: [0, 5, 5, 5], 1: [0, 0, 5, 5, 1, 4]}, {0: ["x", "y", "y", "y"]}, (0, [0, 1])),
        # population variances: (0, 5, 5) 50/9 against (0, 0, 5, 5) 25/4; sample variances would be 25/3 each
        ({0: [0, 5, 5], 1: [0, 0, 5, 5]}, {}, (1, [0, 1, 2, 3])),
        ({0: [4, 4, None], 1: [None, 3, None]}, {0: ["x", "x", "y"]}, "too_few_judgments"),
    ],
)
def test_the_response_of_highest_variance_is_meta_judged(scores, texts, choice):
    assert chosen(scores, texts) == choice


def test_variance_ties_are_drawn_with_the_seed():
    assert {chosen({0: [1, 5], 1: [5, 1], 2: [3, 4], 3: [0, 4]}, seed=seed)[0] for seed in range(60)} == {0, 1, 3}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "p9/r0", "score": 1}, "line 2: no response has the id 'p9/r0'"),
        ({"id": "p1/r0", "score": 1}, "line 2: id 'p1/r0' came before"),
        ({"id": "p1/r1", "score": "4"}, "line 2: score is '4'"),
        ({"id": "p1/r1", "score": None}, "line 2: score is None"),
        ({"id": "p1/r1", "score": True}, "line 2: score is True"),
        ({"id": "p1/r1", "score": float("nan")}, "line 2: not JSON (invalid literal for int() with base 10: 'NaN')"),
        ('{"id": "p1/r1", "score": 1e999}', "line 2: not JSON (1e999 is beyond the range of numbers)"),
        ({"id": "p1/r1", "score": 10**400}, "line 2: score is 1000"),
        ({"id": "p1/r1", "score": 4, "text": "good"}, "line 2: 'p1/r1' has another text"),
        ({"id": ["p1/r1"], "score": 1}, "line 2: id is ['p1/r1']"),
        ({"id": "p1/r1"}, "line 2: key 'score' is missing"),
        ({"id": "p1/r1", "score": 1e-7, "model": "any"}, None),
    ],
)
def test_scores_from_a_file_are_exact_and_bad_rows_are_named(tmp_path, row, complaint):
    path, responses = tmp_path / "scores.jsonl", [response(1, 0, "good"), response(1, 1, "bad")]
    rows = [{"id": "p1/r0", "score": -0.1, "text": "good"}, row]
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    if complaint is None:
        assert read_scores(path, responses) == {"p1/r0": Fraction(-1, 10), "p1/r1": Fraction(1, 10**7)}
        return
    with pytest.raises(UserError, match=r"scores\.jsonl, ") as error:
        read_scores(path, responses)
    assert complaint in str(error.value)
