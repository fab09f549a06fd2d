"""The meta-judge's measurement: both orders of each case, and the agreement."""

from pathlib import Path

import pytest

from evaluation.meta_agreement import comparison_items, report
from model.chat import load_chat
from prepare.seed_model import make_tiny
from stages.settings import load_settings

CASES = [
    {
        "prompt": "q",
        "response": "r",
        "judgments": [{"score": 5, "justification": "x"}, {"score": 2, "justification": "y"}],
        "winner": "second",
    },
    {
        "prompt": "q",
        "response": "r",
        "judgments": [{"score": 1, "justification": "x"}, {"score": 1, "justification": "y"}],
        "winner": "first",
    },
]


def test_both_orders_are_asked_and_the_right_one_moves(tmp_path):
    make_tiny(tmp_path / "tiny")
    settings = load_settings(Path(__file__).parents[2] / "configs" / "tiny.toml")
    items = list(comparison_items(CASES, load_chat(tmp_path / "tiny"), settings))
    assert [(item.record["first"], item.record["right"]) for item in items] == [
        (0, "second"),
        (1, "first"),
        (0, "first"),
        (1, "second"),
    ]
    assert [item.record["differ_in"] for item in items] == ["score", "score", "evidence", "evidence"]
    shown = [item.messages()[-1]["content"] for item in items]
    assert "Judgment A:\nScore: 5\nx\n\nJudgment B:\nScore: 2\ny" in shown[0]
    assert "Judgment A:\nScore: 2\ny\n\nJudgment B:\nScore: 5\nx" in shown[1]
    assert len({item.seed for item in items}) == 4


def test_report_worked_by_hand():
    """Case 0: right, and wrong. Case 1: right, and no winner, which counts half. The first place wins one of three."""

    def row(case: int, first: int, right: str, winner: str | None, kind: str) -> dict:
        return {"case": case, "first": first, "right": right, "winner": winner, "differ_in": kind}

    result = report(
        [
            row(0, 0, "second", "second", "score"),
            row(0, 1, "first", "second", "score"),
            row(1, 0, "first", "first", "evidence"),
            row(1, 1, "second", None, "evidence"),
        ]
    )
    assert result["parse_rate"] == 0.75
    assert result["agreement"]["value"] == 2.5 / 4
    assert {kind: value["value"] for kind, value in result["by_kind"].items()} == {"score": 0.5, "evidence": 0.75}
    assert result["first_position"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert result["consistency"]["value"] == 0.0  # the one case decided twice: the second place won both times
