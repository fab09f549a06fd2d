"""evaluation/summary.py: what the terminal shows of an iteration."""

from made_runs import made_run
from records import CHAT

import judging.pairs
from evaluation.summary import summary_lines
from stages.files import read_json


def test_the_summary_says_what_guards_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(judging.pairs, "load_chat", lambda path: CHAT)
    summary = read_json(made_run(tmp_path / "runs" / "made", True) / "summary.json")
    assert not [line for line in summary_lines(summary) if "guards" in line]
    summary["iterations"][0]["pairs"]["reasons"] = {"judge.equal_elo": 2, "judge.score_share": 3}
    (line,) = [line for line in summary_lines(summary) if "guards" in line]
    why = "too many chosen judgments give this score (guards.max_score_share)"
    assert line.split(maxsplit=1) == ["guards", f"3 judge pairs removed: {why}"]
