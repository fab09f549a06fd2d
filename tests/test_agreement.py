"""Judge agreement: metrics on worked examples and degenerate inputs, held to scipy."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluation.agreement import Case, pair_outcomes, read_cases, report
from evaluation.statistics import bootstrap, spearman
from files import UserError


def case(group: str, name: str, quality: float, text: str = "x") -> Case:
    return Case(group, name, "prompt", text, quality)


def judgment(name: str, score: int | None) -> dict:
    return {"response_id": name, "score": score, "failure": None if score is not None else "missing"}


def test_spearman_equals_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 12), rng.integers(0, 5, 12)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_report_worked_by_hand():
    """Group g: qualities 5, 3, 0 judged 4 (mean of 5 and 3), 4, 1. Pairs: 5>3 ties, 5>0 agrees, 3>0 agrees.
    Group h: qualities 2, 1 judged 0 and 5: disagrees. So 2.5 of 4; the failure enters nothing."""
    cases = [case("g", "a", 5, "xx"), case("g", "b", 3, "xxx"), case("g", "c", 0), case("h", "d", 2), case("h", "e", 1)]
    scores = [("a", 5), ("a", 3), ("b", 4), ("b", None), ("c", 1), ("d", 0), ("e", 5)]
    found = report(cases, [judgment(*pair) for pair in scores])
    assert found["parse_rate"] == round(6 / 7, 4)
    assert found["pairwise"]["value"] == 2.5 / 4 and found["pairwise"]["count"] == 4
    # With the first judgment alone 5>3 agrees (5 against 4): 3 of 4.
    assert {n: row["value"] for n, row in found["pairwise_by_N"].items()} == {"1": 3 / 4, "2": 2.5 / 4}
    # Longer wins: 5>3 says no, 5>0 yes, 3>0 yes, h ties: 2.5 of 4 too.
    assert found["longer_wins"]["value"] == 2.5 / 4
    assert {gap: row["value"] for gap, row in found["by_gap"].items()} == {"1": 0.0, "2": 0.5, "3": 1.0, "5": 1.0}
    expected = (spearmanr([5, 3, 0], [4, 4, 1]).statistic - 1) / 2
    assert found["spearman"]["value"] == pytest.approx(expected, abs=1e-4)
    assert found["mean_score_by_quality"] == {"0": 1.0, "1": 5.0, "2": 0.0, "3": 4.0, "5": 4.0}


def test_each_flaw_is_held_against_the_flawless():
    cases = [
        Case(group, f"{group}{flaw}", "prompt", "x", quality, flaw)
        for group in "gh"
        for flaw, quality in (("none", 5), ("cut_off", 3), ("far", 0))
    ]
    scores = {"gnone": 4, "gcut_off": 4, "gfar": 0, "hnone": 3, "hcut_off": 5, "hfar": 1}
    found = report(cases, [judgment(*pair) for pair in scores.items()])["by_flaw"]
    assert {flaw: row["value"] for flaw, row in found.items()} == {"cut_off": (0.5 + 0) / 2, "far": 1.0}


def test_all_ties_are_chance_and_nothing_is_nothing():
    cases = [case("g", "a", 1), case("g", "b", 2)]
    assert pair_outcomes(cases, lambda c: 3.0)["g"] == [(0.5, 1)]
    assert pair_outcomes(cases, lambda c: None) == {"g": []}
    empty = bootstrap([[], []])
    assert empty["count"] == 0 and empty["value"] is None


def test_bootstrap_covers_groups():
    rng = np.random.default_rng(1)
    groups = [[float(x) for x in rng.random(4) < 0.7] for _ in range(200)]
    found = bootstrap(groups)
    error = np.sqrt(0.7 * 0.3 / 800)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_both_forms_of_groups(tmp_path):
    path = tmp_path / "cases.jsonl"
    own = {"id": "p", "prompt": "q", "responses": [{"text": "a", "score": 4}, {"text": "b", "score": 1}]}
    ranked = {
        "message_id": "m",
        "context": [{"role": "user", "text": "q"}],
        "replies": [{"rank": 0, "text": "best"}, {"rank": 1, "text": "next"}],
    }
    path.write_text(json.dumps(own) + "\n" + json.dumps(ranked) + "\n")
    assert [(c.group, c.quality) for c in read_cases(path)] == [("p", 4), ("p", 1), ("m", 0), ("m", -1)]
    path.write_text('{"id": "x"}\n')
    with pytest.raises(UserError, match="line 1: neither"):
        list(read_cases(path))
