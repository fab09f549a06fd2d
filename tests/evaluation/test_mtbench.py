"""MT-Bench's scores, worked by hand."""

import sys
from pathlib import Path

import pytest
from questions import without

from evaluation.benchmarks import MT_BENCH, Question, read_questions
from evaluation.mtbench import main, read_scores, report
from stages.files import UserError, write_jsonl

CATEGORIES = {"81": "writing", "82": "writing", "111": "math"}


def questions(path: Path, categories: dict[str, str] = CATEGORIES) -> list[Question]:
    turns = {"turns": ["One?", "Two?"]}
    write_jsonl(path, [{"question_id": int(name), "category": own} | turns for name, own in categories.items()])
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
    return report(*read_scores(tmp_path / "j.jsonl", known), known)


def test_worked_by_hand(tmp_path):
    """Turn 1: 8 and 3. Turn 2: 6.5, 4, 1. All: 22.5 of 5 scores; a turn without a score is in no mean."""
    [scored] = tables(tmp_path, both(WORKED))
    [row] = scored["rows"]
    assert (row["turn_1"], row["turn_2"], row["mean"]) == (5.5, pytest.approx(11.5 / 3, abs=1e-9), 4.5)
    assert (row["writing"], row["math"], row["unreadable"]) == (pytest.approx(18.5 / 3, abs=1e-9), 2.0, 1)
    # Resamples of questions: three of 111 alone has mean 2, three of 81 alone 7.25.
    assert 2.0 <= row["low"] < 4.5 < row["high"] <= 7.25


def test_scores_outside_of_the_scale_count_as_in_fastchat_and_are_told(tmp_path):
    [scored] = tables(tmp_path, both({81: (0, 6), 82: (12, 4), 111: (3, -1)}))
    assert scored["rows"][0]["mean"] == 5.0
    assert scored["notes"][-1] == "2 scores lie outside of 1 to 10, and count"


def test_several_models_best_first_and_a_table_a_judge(tmp_path):
    rows = both(WORKED, model="weak") + both({81: (9, 9), 82: (9, 9), 111: (9, 9)}, model="strong")
    rows += both(WORKED, model="strong", judge="M1's")
    judges = tables(tmp_path, rows)
    assert [(table["title"], [row["model"] for row in table["rows"]]) for table in judges] == [
        ("mt-bench: 3 questions, judged by M1's", ["strong"]),
        ("mt-bench: 3 questions, judged by gpt-4", ["strong", "weak"]),
    ]
    assert {judges[1]["rows"][0][key] for key in ("mean", "low", "high")} == {9.0}


def test_nothing_readable_is_no_number(tmp_path):
    [scored] = tables(tmp_path, both({81: (-1, 5), 82: (None, 5), 111: (-1, -1)}))
    row = scored["rows"][0]
    assert (row["turn_1"], row["math"], row["mean"], row["turn_2"], row["unreadable"]) == (None, None, 5.0, 5.0, 4)


def test_only_gpt_4_over_eighty_questions_makes_the_benchmarks_number(tmp_path):
    eighty = {str(81 + i): "writing" for i in range(80)}
    [scored] = tables(tmp_path, both({81 + i: (5, 5) for i in range(80)}), eighty)
    assert scored["notes"] == []
    [scored] = tables(tmp_path, both({81: (5, 0), 82: (0, 0), 111: (2.5, None)}, judge="M1's", scale=[0, 5]))
    differs = "the judge is M1's, not gpt-4; 3 questions, not 80; scores are from 0 to 5, not 1 to 10"
    assert scored["notes"] == [f"not the benchmark's number: {differs}"] and scored["rows"][0]["mean"] == 1.5


ROW = judged(81, 1, 5)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], r"j\.jsonl: no judgments"),
        (both(WORKED)[1:], r"j\.jsonl: gpt-4 did not judge M1 on 1 of 6 questions: '81, turn 1'"),
        ([*both(WORKED), ROW], "line 7: question 81, turn 1, of M1 comes twice"),
        ([judged(99, 1, 5)], "line 1: question 99, turn 1, of M1 is not in --questions"),
        ([ROW | {"turn": 3}], "line 1: question 81, turn 3, of M1 is not in --questions"),
        ([without(ROW, "score")], "line 1: score is missing"),
        ([ROW | {"judge": []}], r"line 1: judge\.0 is missing"),
        ([ROW | {"score": "5"}], "line 1: score is '5'"),
        ([ROW, judged(81, 2, 5, scale=[0, 5])], r"j\.jsonl: several scales"),
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
    monkeypatch.setattr(sys, "argv", words)
    main()
    _, heads, row, note = capsys.readouterr().out.splitlines()
    assert heads.split() == ["model", "turn", "1", "turn", "2", "mean", "low", "high", "unreadable", "writing", "math"]
    assert row.split()[:4] == ["M1", "5.50", "3.83", "4.50"] and row.split()[-3:] == ["1", "6.17", "2.00"]
    assert note == "not the benchmark's number: 3 questions, not 80"
