"""Arena-Hard's scores: worked by hand, against optimisers and a second reading of the benchmark's procedure."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from questions import game, game_2, written
from sklearn.linear_model import LogisticRegression

from evaluation.arena import main, read_judgments, report


def tables(path: Path, rows: list[dict]) -> list[dict]:
    return report(read_judgments([written(path, rows)]))


def scored(path: Path, *rows: dict) -> dict:
    """The one model's row of the one table."""
    [[row]] = [board["rows"] for board in tables(path, list(rows))]
    return row


def simulated(model: str, skill: float, seed: int) -> list[dict]:
    """Verdicts of all kinds on 50 questions, unreadable ones included."""
    draw, rows = random.Random(seed), []
    for index in range(50):
        orders = [place if draw.random() < skill else place[::-1] for place in ("BA", "AB")]  # the better one first
        verdicts = [f"{best}{draw.choice(['>', '>>'])}{worst}" for best, worst in orders]
        verdicts = [draw.choice([verdict] * 12 + ["A=B", "A=B", None, "A<B"]) for verdict in verdicts]
        rows.append(game(f"q{index}", *verdicts, model=model))
    return rows


def row_battles(row: dict) -> list[float]:
    """A second reading of v0.1: what the model has of each battle."""
    scores = []
    for verdict, mine in zip([own["score"] for own in row["games"]], "BA", strict=True):
        if verdict == "A=B":
            scores.append(0.5)
        elif verdict and ">" in verdict:
            scores += [float(verdict[0] == mine)] * (3 if ">>" in verdict else 1)
    return scores


def test_the_interval_is_the_benchmarks(tmp_path):
    """Its procedure anew: a regression on all rows, and on 100 resamples by numpy's global generator, seeded 42, with
    percentiles of the ratings, shown as win rates."""
    rows = simulated("a", 0.3, 1) + simulated("b", 0.7, 2)
    [board] = tables(tmp_path / "a.jsonl", rows)
    assert [row["model"] for row in board["rows"]] == ["b", "a"]
    battles = [(row["model"], win) for row in rows for win in row_battles(row)]
    np.random.seed(42)
    ratings: dict[str, list[float]] = {"a": [], "b": []}
    design = [[1, 0, -1.0], [1, 0, -1.0], [0, 1, -1.0], [0, 1, -1.0]]  # won and lost battles of a, and of b
    for resample in range(101):
        drawn = np.random.choice(len(battles), len(battles), replace=True) if resample else range(len(battles))
        sample = [battles[index] for index in drawn]
        results = [[win for name, win in sample if name == model] for model in "ab"]
        weights = [count for wins in results for count in (sum(wins), len(wins) - sum(wins))]
        regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
        a, b, baseline = regression.fit(design, [1, 0, 1, 0], sample_weight=weights).coef_[0]
        ratings["a"].append(400 * (a - baseline) / math.log(10))
        ratings["b"].append(400 * (b - baseline) / math.log(10))
    for row in board["rows"]:
        score, *resamples = ratings[row["model"]]
        wanted = {"score": score} | dict(zip(("low", "high"), np.percentile(resamples, [2.5, 97.5]), strict=True))
        for name, rating in wanted.items():
            assert row[name] == pytest.approx(100 / (1 + 10 ** (-rating / 400)), abs=0.02)


def test_worked_by_hand(tmp_path):
    """q1: lost thrice as B, won once as A. q2: half as B, lost thrice as A. So 1.5 of 8; 0.5 of 4 as B, 1 of 4 as A."""
    row = scored(tmp_path / "a.jsonl", game("q1", "A>>B", "A>B"), game("q2", "A=B", "B>>A"))
    assert (row["score"], row["shown_second"], row["shown_first"]) == (18.75, 12.5, 25.0)


@pytest.mark.parametrize(
    ("first", "second", "score"), [("B>A", "A>>B", 100.0), ("A>B", "B>A", 0.0), ("A=B", "A=B", 50.0)]
)
def test_all_won_all_lost_and_all_ties(tmp_path, first, second, score):
    row = scored(tmp_path / "a.jsonl", *(game(f"q{i}", first, second) for i in range(7)))
    assert {row[key] for key in ("score", "low", "high", "questions_low", "questions_high")} == {score}
    # Two battles, one won: a quarter of the resamples win both, a quarter none.
    row = scored(tmp_path / "a.jsonl", game("q1", "A>B", "A>B"))
    assert [row[key] for key in ("score", "low", "high")] == [50.0, 0.0, 100.0]


def test_what_is_unreadable_in_each_edition(tmp_path):
    """v0.1 knows five verdicts, and leaves out a game; v2.0 reads them backwards too, and leaves out the question."""
    rows = [("q1", "A<B", "A>B"), ("q2", None, "A>B"), ("q3", "B<<A", "A=B"), ("q4", "A>B", "[]"), ("q5", "A>B", "B=A")]
    one = scored(tmp_path / "a.jsonl", *(game(*row) for row in rows))
    assert (one["battles"], one["unreadable"], one["score"]) == (5, 5, 50.0)  # q1 1, q2 1, q3 1/2, q4 0, q5 0
    lost = game_2("q6", None, "A>B")
    lost["games"][0] = None
    two = scored(tmp_path / "b.jsonl", *(game_2(*row) for row in rows), lost)
    assert (two["battles"], two["unreadable"], two["score"]) == (8, 3, 37.5)  # q1 1 1, q3 0 0 0 1/2, q5 0 1/2


def test_the_interval_of_v2_spans_nine_tenths_of_a_models_own_resamples(tmp_path):
    wins = np.random.default_rng(2).random((50, 2)) < 0.3
    verdicts = np.where(wins, ["B>A", "A>B"], ["A>B", "B>A"])
    rows = [game_2(f"q{i}", *map(str, games)) for i, games in enumerate(verdicts)]
    np.random.seed(42)
    low, high = np.percentile([np.random.choice(wins.ravel(), wins.size).mean() for _ in range(100)], [5, 95])
    [board] = tables(tmp_path / "a.jsonl", rows + [row | {"model": "another"} for row in reversed(rows)])
    [own] = [row for row in board["rows"] if row["model"] == "M1"]
    assert (own["score"], own["low"], own["high"]) == pytest.approx((100 * wins.mean(), 100 * low, 100 * high))


def test_judges_categories_and_editions_have_their_own_tables(tmp_path):
    poems = {"category": "creative_writing", "baseline": "gemini-2.0-flash-001"}
    rows = [game("u1", "A=B", "A=B"), game_2("u2", "B>A", "A>B", **poems)]
    rows += [game_2("u1", "A>B", "B>A"), game_2("u1", "B>A", "A>B", judge="gpt-4.1")]
    wanted = [
        ("arena-hard-v0.1", "M1's", "gpt-4-0314", 50.0),
        ("arena-hard-v2.0, creative_writing", "M1's", "gemini-2.0-flash-001", 100.0),
        ("arena-hard-v2.0, hard_prompt", "M1's", "o3-mini-2025-01-31", 0.0),
        ("arena-hard-v2.0, hard_prompt", "gpt-4.1", "o3-mini-2025-01-31", 100.0),
    ]
    for board, (name, judge, baseline, score) in zip(tables(tmp_path / "a.jsonl", rows), wanted, strict=True):
        assert board["title"] == f"{name}, without style control: judged by {judge}, against {baseline} (50.0)"
        assert board["rows"][0]["score"] == score


def test_todays_rows_of_v0_1_are_v0_1s(tmp_path):
    """arena-hard-auto now names v0.1's questions by "uid", too; the numbers are those of the older rows."""
    old = simulated("a", 0.3, 1) + simulated("b", 0.7, 2)
    new = [{"uid" if key == "question_id" else key: value for key, value in row.items()} for row in old]
    new = [row | {"category": "arena-hard-v0.1", "baseline": "gpt-4-0314"} for row in new]
    [board] = tables(tmp_path / "new.jsonl", new)
    assert board["title"].startswith("arena-hard-v0.1, without style control: judged by M1's, against gpt-4-0314")
    assert [board] == tables(tmp_path / "old.jsonl", old)
    assert [board] == tables(tmp_path / "both.jsonl", old[:50] + new[50:])


def test_only_the_benchmarks_own_judge_baseline_and_questions_make_its_number(tmp_path):
    def noted(count: int = 500, row=game, **more) -> list[str]:
        [board] = tables(tmp_path / "a.jsonl", [row(f"q{i}", "A>B", "A>B", **more) for i in range(count)])
        return board["notes"]

    assert noted(judge="gpt-4-1106-preview") == []
    differs = "the judge is M1's, not gpt-4-1106-preview; the baseline is M0, not gpt-4-0314; 3 questions, not 500"
    assert noted(3, baseline="M0") == [f"not the benchmark's number: {differs}"]
    differs = "its published tables have style control, or several judges"
    assert noted(row=game_2, judge="gpt-4.1") == [f"not the benchmark's number: {differs}"]


def test_the_command(tmp_path, call):
    path = written(tmp_path / "a.jsonl", [game("q1", "A>>B", None), game("q2", "A=B", None)])
    _, heads, row, note = call(main, "--judgments", path).out.splitlines()
    assert "shown first" not in heads
    assert row.split()[:2] == ["M1", "12.5"] and row.split()[-4:] == ["12.5", "2", "4", "2"]
    assert note.startswith("not the benchmark's number")
