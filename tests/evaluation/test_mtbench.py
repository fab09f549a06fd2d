"""MT-Bench's scores, worked by hand."""

import json
import sys
from pathlib import Path

import pytest

from evaluation.answers import MT_BENCH, Question, read_questions
from evaluation.mtbench import main, read_scores, report, table
from stages.files import UserError, write_jsonl

CATEGORIES = {"81": "writing", "82": "writing", "111": "math"}


def questions(path: Path, categories: dict[str, str] = CATEGORIES) -> list[Question]:
    write_jsonl(
        path,
        [
            {"question_id": int(name), "category": category, "turns": ["One?", "Two?"]}
            for name, category in categories.items()
        ],
    )
    return read_questions(MT_BENCH, path)


def judged(question: int, turn: int, score: float | None, model: str = "M1", **more) -> dict:
    """A row as FastChat writes it."""
    judge = ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"]
    known = {"question_id": question, "model": model, "judge": judge, "user_prompt": "?", "judgment": "Rating: [[5]]"}
    return known | {"score": score, "turn": turn, "tstamp": 1.5} | more


def both(scores: dict[int, tuple], **more) -> list[dict]:
    return [judged(name, turn, score, **more) for name, own in scores.items() for turn, score in enumerate(own, 1)]


WORKED = {81: (8, 6.5), 82: (-1, 4), 111: (3, 1)}


def tables(tmp_path: Path, rows: list[dict], asked: dict[str, str] = CATEGORIES) -> list[dict]:
    write_jsonl(tmp_path / "j.jsonl", rows)
    known = questions(tmp_path / "q.jsonl", asked)
    judges = report(*read_scores(tmp_path / "j.jsonl", known), known)
    json.dumps(judges, allow_nan=False)
    return judges


def test_worked_by_hand(tmp_path):
    """Turn 1: 8 and 3. Turn 2: 6.5, 4, 1. All: 22.5 of 5 scores; a turn without a score is in no mean."""
    [scored] = tables(tmp_path, both(WORKED))
    [row] = scored["models"]
    values = {name: (row[name]["value"], row[name]["count"]) for name in ("turn_1", "turn_2", "mean")}
    assert values == {"turn_1": (5.5, 2), "turn_2": (pytest.approx(11.5 / 3, abs=1e-4), 3), "mean": (4.5, 5)}
    assert {name: mean["value"] for name, mean in row["categories"].items()} == {
        "writing": pytest.approx(18.5 / 3, abs=1e-4),
        "math": 2.0,
    }
    assert row["unreadable"] == 1
    # Resamples of questions: three of 111 alone has mean 2, three of 81 alone 7.25.
    assert 2.0 <= row["mean"]["low"] < 4.5 < row["mean"]["high"] <= 7.25
    assert row["categories"]["math"]["low"] == row["categories"]["math"]["high"] == 2.0


def test_scores_outside_of_the_scale_count_as_in_fastchat_and_are_told(tmp_path):
    [scored] = tables(tmp_path, both({81: (0, 6), 82: (12, 4), 111: (3, -1)}))
    assert (scored["models"][0]["mean"]["value"], scored["outside"], scored["scale"]) == (5.0, 2, [1, 10])
    assert "2 scores lie outside of 1 to 10, and count" in table(scored)


def test_a_mean_is_not_rounded(tmp_path):
    [scored] = tables(tmp_path, both({81: (7, 8), 82: (7, 7), 111: (7, 7)}))
    assert scored["models"][0]["mean"]["value"] == pytest.approx(43 / 6, abs=1e-9)


def test_several_models_best_first_and_a_table_a_judge(tmp_path):
    rows = both(WORKED, model="weak") + both({81: (9, 9), 82: (9, 9), 111: (9, 9)}, model="strong")
    rows += both(WORKED, model="strong", judge="M1's")
    judges = tables(tmp_path, rows)
    assert [(table["judge"], [row["model"] for row in table["models"]]) for table in judges] == [
        ("M1's", ["strong"]),
        ("gpt-4", ["strong", "weak"]),
    ]
    assert judges[1]["models"][0]["mean"] == {"value": 9.0, "low": 9.0, "high": 9.0, "count": 6}


def test_one_question_and_all_alike(tmp_path):
    [scored] = tables(tmp_path, both({81: (7, 7)}), {"81": "writing"})
    row = scored["models"][0]
    assert row["turn_1"] == row["turn_2"] == {"value": 7.0, "low": 7.0, "high": 7.0, "count": 1}


def test_nothing_readable_is_no_number(tmp_path):
    [scored] = tables(tmp_path, both({81: (-1, 5), 82: (None, 5), 111: (-1, -1)}))
    row = scored["models"][0]
    nothing = {"value": None, "low": None, "high": None, "count": 0}
    assert row["turn_1"] == row["categories"]["math"] == nothing
    assert row["mean"]["value"] == row["turn_2"]["value"] == 5.0 and row["unreadable"] == 4
    assert table(scored).splitlines()[3].split()[:4] == ["M1", "-", "5.00", "5.00"]


def test_only_gpt_4_over_eighty_questions_makes_the_benchmarks_number(tmp_path):
    eighty = {str(81 + i): "writing" for i in range(80)}
    [scored] = tables(tmp_path, both({81 + i: (5, 5) for i in range(80)}), eighty)
    assert scored["official"] and scored["differs"] == [] and "not the benchmark's" not in table(scored)
    [scored] = tables(tmp_path, both({81: (5, 0), 82: (0, 0), 111: (2.5, None)}, judge="M1's", scale=[0, 5]))
    assert not scored["official"] and scored["differs"] == [
        "the judge is M1's, not gpt-4",
        "3 questions, not 80",
        "scores are from 0 to 5, not 1 to 10",
    ]
    assert scored["models"][0]["mean"]["value"] == 1.5
    lines = table(scored).splitlines()
    assert lines[0] == "mt-bench: 3 questions, judged by M1's" and lines[1].startswith("not the benchmark's number: ")


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


ROW = judged(81, 1, 5)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], r"j\.jsonl: no judgments"),
        (both(WORKED)[1:], r"j\.jsonl: gpt-4 did not judge 1 of 6 turns: '81, turn 1', of M1"),
        ([*both(WORKED), ROW], "line 7: turn 1 of question '81' of M1 came before"),
        ([judged(99, 1, 5)], "line 1: question '99' is not in --questions"),
        ([without(ROW, "score")], "line 1: key 'score' is missing"),
        ([ROW | {"judge": []}], "line 1: 'judge' must be a text"),
        ([ROW | {"turn": 3}], "line 1: the turn is 3"),
        ([ROW | {"score": 11, "scale": [1, 10]}], r"line 1: the score is 11; it must lie in \[1, 10\]"),
        ([ROW | {"score": -2}], "line 1: the score is -2"),
        ([ROW | {"score": "5"}], "line 1: the score is '5'"),
        ([ROW | {"score": -1, "scale": [0, 5]}], r"line 1: the score is -1; it must lie in \[0, 5\]"),
        ([ROW | {"scale": 5}], "line 1: 'scale' must be a list"),
        ([ROW, judged(81, 2, 5, scale=[0, 5])], r"line 2: the scale is \[0, 5\], before it was \[1, 10\]"),
        ([ROW | {"g1_winner": "tie"}], "line 1: a comparison of two models"),
    ],
)
def test_bad_judgments_are_one_line(tmp_path, rows, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        tables(tmp_path, rows)
    assert "\n" not in str(error.value)


def test_the_command(tmp_path, monkeypatch, capsys):
    questions(tmp_path / "q.jsonl")
    write_jsonl(tmp_path / "j.jsonl", both(WORKED))
    words = ["mtbench", "--judgments", str(tmp_path / "j.jsonl"), "--questions", str(tmp_path / "q.jsonl")]
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    main()
    assert json.loads(capsys.readouterr().out)[0]["models"][0]["mean"]["value"] == 4.5
    monkeypatch.setattr(sys, "argv", words)
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:4] == ["M1", "5.50", "3.83", "4.50"]
    assert lines[4].split() == ["model", "writing", "math"] and lines[5].split() == ["M1", "6.17", "2.00"]
