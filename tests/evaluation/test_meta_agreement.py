"""The meta-judge's measurement: both orders of each case, and the agreement."""

from pathlib import Path

import pytest

from evaluation.meta_agreement import comparison_items, report
from stages.settings import load_settings


class Chat:
    stop_ids = (0,)


def judged(a: int, b: int, winner: str) -> dict:
    judgments = [{"score": a, "justification": "x"}, {"score": b, "justification": "y"}]
    return {"prompt": "q", "response": "r", "judgments": judgments, "winner": winner}


def test_both_orders_are_asked_and_the_right_one_moves():
    settings = load_settings(Path(__file__).parents[2] / "configs" / "tiny.toml")
    items = list(comparison_items([judged(5, 2, "second"), judged(1, 1, "first")], Chat(), settings))
    asked = [(item.record["first"], item.record["right"], item.record["differ_in"]) for item in items]
    assert asked[:2] == [(0, "second", "score"), (1, "first", "score")]
    assert asked[2:] == [(0, "first", "evidence"), (1, "second", "evidence")]
    shown = [item.messages()[-1]["content"] for item in items]
    assert "Judgment A:\nScore: 5\nx\n\nJudgment B:\nScore: 2\ny" in shown[0]
    assert "Judgment A:\nScore: 2\ny\n\nJudgment B:\nScore: 5\nx" in shown[1]
    assert len({item.seed for item in items}) == 4


def test_report_worked_by_hand():
    """Case 0: right, and wrong. Case 1: right, and no winner, which counts half. The first place wins one of three."""
    rows = [
        *((0, 0, "second", "second", "score"), (0, 1, "first", "second", "score")),
        *((1, 0, "first", "first", "evidence"), (1, 1, "second", None, "evidence")),
    ]
    result = report([dict(zip(("case", "first", "right", "winner", "differ_in"), row, strict=True)) for row in rows])
    assert result["parse_rate"] == 0.75 and result["agreement"]["value"] == 2.5 / 4
    assert {kind: value["value"] for kind, value in result["by_kind"].items()} == {"score": 0.5, "evidence": 0.75}
    assert result["first_position"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert result["consistency"]["value"] == 0.0  # the one case decided twice: the second place won both times
