"""MT-Bench's scores, worked by hand."""

from pathlib import Path

import pytest
from questions import rated, refused, written

from evaluation.benchmarks import MT_BENCH, read_questions
from evaluation.mtbench import main, read_scores, report

CATEGORIES = {81: "writing", 82: "writing", 111: "math"}


def both(scores: dict[int, tuple], **more) -> list[dict]:
    return [rated(name, turn, score, **more) for name, own in scores.items() for turn, score in enumerate(own, 1)]


def write(folder: Path, rows: list[dict], categories: dict[int, str] = CATEGORIES) -> list[Path]:
    known = [{"question_id": name, "category": own, "turns": ["1?", "2?"]} for name, own in categories.items()]
    return [written(folder / "j.jsonl", rows), written(folder / "q.jsonl", known)]


def tables(*given) -> list[dict]:
    path, questions = write(*given)
    known = read_questions(MT_BENCH, questions)
    return report(*read_scores(path, known), known)


WORKED = {111: (3, 1), 81: (8, 6.5), 82: (-1, 4)}


def test_worked_by_hand(tmp_path):
    """Turn 1: 8 and 3. Turn 2: 6.5, 4, 1. All: 22.5 of 5 scores; a turn without a score is in no mean."""
    [row] = tables(tmp_path, both(WORKED))[0]["rows"]
    assert (row["turn_1"], row["turn_2"], row["mean"]) == (5.5, pytest.approx(11.5 / 3, abs=1e-9), 4.5)
    assert (row["writing"], row["math"], row["unreadable"]) == (pytest.approx(18.5 / 3, abs=1e-9), 2.0, 1)
    # Resamples of questions: three of 111 alone has mean 2, three of 81 alone 7.25.
    assert 2.0 <= row["low"] < 4.5 < row["high"] <= 7.25
    [row] = tables(tmp_path, both({81: (-1, 5), 82: (None, 5), 111: (-1, -1)}))[0]["rows"]
    assert (row["turn_1"], row["math"], row["mean"], row["turn_2"], row["unreadable"]) == (None, None, 5.0, 5.0, 4)


def test_several_models_best_first_and_a_table_a_judge(tmp_path):
    rows = both(WORKED, model="weak") + both({81: (9, 9), 82: (9, 9), 111: (9, 9)}, model="strong")
    ours, theirs = tables(tmp_path, rows + both(WORKED, model="strong", judge="M1's"))
    assert ours["title"] == "mt-bench: 3 questions, judged by M1's" and len(ours["rows"]) == 1
    assert [row["model"] for row in theirs["rows"]] == ["strong", "weak"]
    assert {theirs["rows"][0][key] for key in ("mean", "low", "high")} == {9.0}


def test_only_gpt_4_over_eighty_questions_makes_the_benchmarks_number(tmp_path):
    """Scores outside of the scale count, as in FastChat, and are told."""
    eighty = dict.fromkeys(range(80), "writing")
    [scored] = tables(tmp_path, both({i: (5, 12 * (i == 9)) for i in range(80)}), eighty)
    assert scored["rows"][0]["mean"] == (80 * 5 + 12) / 160
    [scored] = tables(tmp_path, both({81: (5, 0), 82: (0, 0), 111: (2.5, None)}, judge="M1's", scale=[0, 5]))
    differs = "the judge is M1's, not gpt-4; 3 questions, not 80; scores are from 0 to 5, not 1 to 10"
    assert scored["notes"] == [f"not the benchmark's number: {differs}"] and scored["rows"][0]["mean"] == 1.5


@pytest.mark.parametrize("name", ["mean", "turn_1", "turn 2", "model", "unreadable"])
def test_a_category_is_no_column(tmp_path, name):
    with refused(f"--questions: category '{name}' has the name of a column; give it another"):
        tables(tmp_path, both(WORKED), CATEGORIES | {111: name})


@pytest.mark.parametrize("category", [None, " ", ["x"], {}, True])
def test_a_category_is_a_name(tmp_path, category):
    with refused(r"q\.jsonl, line 3: category is .*; it must be a text that is not blank"):
        tables(tmp_path, both(WORKED), CATEGORIES | {111: category})


def test_the_command(tmp_path, call):
    judgments, questions = write(tmp_path, both(WORKED))
    row = call(main, "--judgments", judgments, "--questions", questions).out.splitlines()[2]
    assert row.split()[:4] == ["M1", "5.50", "3.83", "4.50"] and row.split()[-3:] == ["1", "6.17", "2.00"]
