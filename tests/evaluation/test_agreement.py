"""Judge agreement: measures on worked examples, held to scipy and scikit-learn; degenerate inputs; the command."""

import json
import random
from dataclasses import replace
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from questions import refused, written
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from evaluation.agreement import comparison_items, main, meta_report, report, table
from evaluation.labelled import Case, Decisions, Labelled, Pair, majority
from evaluation.statistics import bootstrap, cohen_kappa, spearman
from stages.files import read_jsonl
from stages.settings import Guards, load_settings

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.toml"
CLASSES = ("first", "second", "tie")


def case(name: str, quality: float, text: str = "x", flaw: str = "", subset: str = "") -> Case:
    """A response of the group that its name begins with."""
    return Case(name[0], name, "prompt", text, quality, flaw, subset)


def grouped(*cases: Case) -> Labelled:
    both = [(a, b) for a, b in combinations(cases, 2) if a.group == b.group and a.quality != b.quality]
    return Labelled(list(cases), [Pair(f"{a.name}-{b.name}", a, b) for a, b in both])


def labelled_pairs(*rows: dict[str, str]) -> Labelled:
    """Pairs named 0, 1, ..., by their labels by annotator."""
    pairs = []
    for i, labels in enumerate(rows):
        qualities = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}[majority(labels.values())]
        pairs.append(Pair(str(i), *(case(f"{i}/{k}", qualities[k], "xy"[: k + 1]) for k in (0, 1)), labels))
    return Labelled([c for pair in pairs for c in (pair.first, pair.second)], pairs)


def scored(**scores: list[int | None]) -> Decisions:
    return Decisions("scores", {name: [own] for name, own in scores.items()})


def decided(labelled: Labelled, *decisions: str | None) -> Decisions:
    return Decisions("decisions", {pair.name: [[d]] for pair, d in zip(labelled.pairs, decisions, strict=True)})


value = itemgetter("value", "count")


def test_statistics_equal_scipy_and_scikit_learn():
    rng, draw = np.random.default_rng(0), random.Random(0)
    for i in range(20):
        a, b = rng.integers(0, 5, 12), rng.integers(0, 5, 12)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
        first = draw.choices(CLASSES[: 2 + i % 2], k=30)
        second = [label if draw.random() < 0.5 else draw.choice(CLASSES) for label in first]
        kappa = cohen_kappa(list(zip(first, second, strict=True)))
        assert kappa["value"] == pytest.approx(cohen_kappa_score(first, second), abs=1e-4)
        assert kappa["low"] <= kappa["value"] <= kappa["high"] and kappa["count"] == 30
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    same = cohen_kappa([("tie", "tie")] * 5)
    assert same["value"] is None and same["count"] == 5 and "one label" in same["reason"]
    assert cohen_kappa([("tie", "tie"), ("tie", "first")])["value"] == 0  # one of them is constant: chance


def test_intervals_are_those_of_large_samples():
    rng = np.random.default_rng(1)
    result = bootstrap([[float(x) for x in rng.random(4) < 0.7] for _ in range(200)])
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 800), rel=0.25)
    assert bootstrap([[1.0], [0.0] * 3]) == {"value": 0.25, "low": 0.0, "high": 1.0, "count": 4}  # groups are drawn
    # Kappa 0.5 of two balanced classes: standard error sqrt(p_o (1 - p_o) / n) / (1 - p_e), p_e about constant.
    kappa = cohen_kappa([(a, b) for a in CLASSES[:2] for b in CLASSES[:2] for _ in range(150 if a == b else 50)])
    assert kappa["high"] - kappa["low"] == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 400) ** 0.5 / 0.5, rel=0.1)


def test_report_worked_by_hand():
    """Group g: qualities 5, 3, 0 judged 4 (mean of 5 and 3), 4, 1. Pairs: 5>3 ties, 5>0 agrees, 3>0 agrees.
    Group h: qualities 2, 1 judged 0 and 5: disagrees. So 2.5 of 4; the failure does not count."""
    g = (case("ga", 5, "xx", "none", "s"), case("gb", 3, "xxx", "cut_off", "s"), case("gc", 0, "x", "far", "s"))
    groups = grouped(*g, case("hd", 2, subset="t"), case("he", 1, subset="t"))
    decisions = scored(ga=[5, 3], gb=[4, None], gc=[1], hd=[0], he=[5])
    result = report(groups, decisions)
    assert result["judgments"] == 7 and result["parse_rate"] == round(6 / 7, 4)
    credits = [value(result[name]) for name in ("pairwise", "with_ties", "without_ties")]
    assert credits == [(2.5 / 4, 4), (2 / 4, 4), (round(2 / 3, 4), 3)]
    # With the first judgment alone 5>3 agrees (5 against 4): 3 of 4.
    assert {n: row["value"] for n, row in result["pairwise_by_N"].items()} == {"1": 3 / 4, "2": 2.5 / 4}
    # Longer wins: 5>3 says no, 5>0 yes, 3>0 yes, h ties: 2.5 of 4 too.
    assert result["longer_wins"] == result["longer"]["pairwise"] and value(result["longer_wins"]) == (2.5 / 4, 4)
    assert value(result["longer"]["without_ties"]) == (round(2 / 3, 4), 3)
    assert {gap: row["value"] for gap, row in result["by_gap"].items()} == {"1": 0.0, "2": 0.5, "3": 1.0, "5": 1.0}
    in_g, by_length = (spearmanr([5, 3, 0], other).statistic for other in ([4, 4, 1], [2, 3, 1]))
    assert result["spearman"]["value"] == pytest.approx((in_g - 1) / 2, abs=1e-4)
    assert result["longer"]["spearman"]["value"] == pytest.approx(by_length / 2, abs=1e-4)  # h's lengths are equal
    assert value(result["exact_order"]) == (0, 2)
    assert result["mean_score_by_quality"] == {"0": 1.0, "1": 5.0, "2": 0.0, "3": 4.0, "5": 4.0}
    assert result["score_histogram"] == {"0": 1, "1": 1, "3": 1, "4": 1, "5": 2}
    assert result["annotators"] is None and result["kappa"]["value"] is None and result["consistency"]["count"] == 0
    by_flaw = {flaw: row["value"] for flaw, row in result["by_flaw"].items()}  # against the flawless response alone
    assert by_flaw == {"cut_off": 0.5, "far": 1.0} and list(result["subsets"]) == ["s", "t"]
    s, t = result["subsets"]["s"], result["subsets"]["t"]
    thirds = [(round(n / 3, 4), 3) for n in (2.5, 2)]
    assert [value(s["pairwise"]), value(s["longer"]["pairwise"])] == thirds and s["pairs"] == 3
    assert (value(t["pairwise"]), value(t["longer"]["pairwise"]), t["spearman"]["value"]) == ((0, 1), (0.5, 1), -1)


def test_labelled_pairs_by_hand():
    """Labels 1 1 2 tie tie, decisions 1 tie 1 tie 2, and one without a verdict. The second is always the longer one."""
    labels, judged = ("first", "first", "second", "tie", "tie"), ("first", "tie", "first", "tie", "second")
    pairs = labelled_pairs(*({"": label} for label in (*labels, "first")))
    result = report(pairs, decided(pairs, *judged, None))
    assert value(result["with_ties"]) == (2 / 5, 5) and value(result["without_ties"]) == (1 / 2, 2)
    assert value(result["pairwise"]) == ((1 + 0.5 + 0 + 1 + 0.5) / 5, 5)
    assert result["parse_rate"] == round(5 / 6, 4) and result["pairs"] == 6
    longer = result["longer"]
    assert value(longer["with_ties"]) == (round(1 / 6, 4), 6) and value(longer["without_ties"]) == (0.25, 4)
    assert result["spearman"]["count"] == result["exact_order"]["count"] == 0  # pairs are no rankings
    assert result["annotators"]["annotators"] == 1 and result["annotators"]["kappa"] is None
    assert result["kappa"]["value"] == pytest.approx(cohen_kappa_score(labels, judged), abs=1e-4)
    assert longer["kappa"]["value"] == 0 and result["score_histogram"] == {}


def test_several_annotators_by_hand():
    """x and y share three pairs, and both share one with z; the judge has no verdict of the last pair."""
    pairs = labelled_pairs(
        *({"x": "first", "y": "first"}, {"x": "second", "y": "first"}),
        *({"x": "second", "y": "second", "z": "tie"}, {"x": "tie"}),
    )
    people = report(pairs, decided(pairs, "first", "second", "tie", None))["annotators"]
    assert (people["annotators"], people["labels"]) == (3, 8)
    # Votes: yes, yes; yes, no; no, no, yes. Without ties the first two pairs alone.
    assert value(people["with_ties"]) == (round(4 / 7, 4), 7) and value(people["without_ties"]) == (0.75, 4)
    # Kappas: x with y; with z both have 0.
    x_y = cohen_kappa_score(["first", "second", "second"], ["first", "first", "second"])
    assert people["kappa"] == pytest.approx((x_y + 0 + 0) / 3, abs=1e-4)


def test_comparisons_in_both_orders():
    """As shown: the first response twice; whichever is first; a tie and the first response; one order unread."""
    pairs = labelled_pairs(*({"": "first"},) * 4)
    shown = [("first", "second"), ("first", "first"), ("tie", "second"), (None, "second")]
    result = report(pairs, Decisions("comparisons", {str(i): [[a], [b]] for i, (a, b) in enumerate(shown)}))
    assert value(result["consistency"]) == (round(1 / 3, 4), 3)
    assert value(result["with_ties"]) == (2 / 4, 4)  # orders that disagree are a tie
    assert value(result["without_ties"]) == (1, 2) and value(result["pairwise"]) == (0.75, 4)
    assert value(result["first_position"]) == (3 / 6, 6)
    assert result["judgments"] == 8 and result["parse_rate"] == 7 / 8 and result["mean_score_by_quality"] == {}


def test_exact_order():
    """Members of equal quality may be in any order; a judge's tie is no order; groups without a value don't count."""
    groups = grouped(*(case(f"{group}{i}", q) for group in "ghik" for i, q in enumerate((2, 1, 1))))
    scores = {"g": (5, 1, 3), "h": (5, 5, 3), "i": (3, 5, 1), "k": (5, 1, None)}
    decisions = scored(**{f"{group}{i}": [score] for group, given in scores.items() for i, score in enumerate(given)})
    assert value(report(groups, decisions)["exact_order"]) == (round(1 / 3, 4), 3)


def test_numbers_that_nearly_agree_keep_apart_and_gaps_are_of_decimals():
    large, small = (
        (case("ga", 1000001), case("gb", 1000002.5)),
        [case(f"h{i}", q) for i, q in enumerate((4.1, 4.2, 4.3))],
    )
    groups = grouped(*large, *small, case("ki", -0.0))
    result = report(groups, scored(**{c.name: [1000001 if c is large[0] else 1000002] for c in groups.cases}))
    assert list(result["mean_score_by_quality"]) == ["0", "4.1", "4.2", "4.3", "1000001", "1000002.5"]
    assert {gap: row["count"] for gap, row in result["by_gap"].items()} == {"0.1": 2, "0.2": 1, "1.5": 1}
    assert result["score_histogram"] == {"1000001": 1, "1000002": 5}


def test_ties_are_chance_and_nothing_is_nothing():
    groups = grouped(case("ga", 1), case("gb", 2))
    result = report(groups, scored(ga=[3], gb=[3]))
    assert value(result["pairwise"]) == (0.5, 1) and result["without_ties"]["value"] is None
    assert value(result["spearman"]) == (0, 1) and value(result["exact_order"]) == (0, 1)
    result = report(groups, scored(ga=[None], gb=[None]))
    assert result["parse_rate"] == 0 and value(result["pairwise"]) == (None, 0)


CASES = [
    {"id": "g", "prompt": "Name a river.", "subset": "facts",
     "responses": [{"text": t, "score": s} for t, s in (("The Po.", 5), ("Water.", 2), ("A river, a river.", 0))]},
    {"id": "p", "prompt": [{"role": "user", "content": "Add 2 and 2."}], "output_1": "5", "output_2": "4",
     "label": 2, "annotator": "ann", "subset": "sums"},
    {"id": "p", "prompt": "Add 2 and 2.", "output_1": "5", "output_2": "4", "label": "tie", "annotator": "bob"},
    {"id": "q", "prompt": "Add 2 and 3.", "output_1": "5", "output_2": "4", "label": 1, "annotator": "ann"},
    {"id": "t", "prompt": "Add 3 and 3.", "output_1": "6", "output_2": "6", "label": "tie", "annotator": "ann"},
]  # fmt: skip


def test_a_models_decisions_give_the_same_report_again(call, judge, tmp_path):
    """By both protocols in the same folder."""
    cases, out, again = written(tmp_path / "cases.jsonl", CASES), tmp_path / "out", tmp_path / "again"
    of_model = ("--config", CONFIG, "--model", judge, "--cases", cases, "--out", out, "--protocol")
    for protocol, N, judgments in (("scores", 3, 9 * 3), ("pairwise", 1, 5 * 2)):
        assert str(judge) in call(main, *of_model, protocol, "--N", N).out
        result = json.loads((out / "agreement.json").read_text())
        assert result["judge"] == str(judge) and result["judgments"] == judgments and result["pairs"] == 6
        assert 0 < result["parse_rate"] < 1 and list(result["subsets"]) == ["facts", "sums"]
        assert (result["consistency"]["count"] > 0) == (result["first_position"]["count"] > 0) == (protocol != "scores")
        assert len(list(read_jsonl(out / "decisions.jsonl"))) == result["judgments"]
        shown = call(main, "--cases", cases, "--decisions", out / "decisions.jsonl", "--out", again).out
        stored = json.loads((again / "agreement.json").read_text())
        assert stored["judge"] == str(out / "decisions.jsonl") and {**stored, "judge": result["judge"]} == result
        assert shown == table(stored) + "\n" and shown.startswith(stored["judge"]) and "2 annotators, 4 labels" in shown
    assert call(main, *of_model, "pairwise").out == table(result) + "\n"


def test_the_table_has_the_judge_and_the_baseline(tmp_path, call):
    """Of two pairs b agrees; the longer response is right once."""
    pairs = [{"id": n, "prompt": "q", "output_1": "xx", "output_2": "x", "label": 1 + (n == "b")} for n in "ab"]
    cases = written(tmp_path / "cases.jsonl", pairs)
    decisions = written(tmp_path / "decisions.jsonl", [{"id": n, "decision": "second"} for n in "ab"])
    shown = call(main, "--cases", cases, "--decisions", decisions).out.splitlines()
    (line,) = [line for line in shown if "without ties" in line]
    assert line.split() == ["without", "ties", *("50.0%", "[0.0%,", "100.0%]", "of", "2") * 2]
    with refused("--decisions has no use for them"):
        call(main, "--cases", cases, "--decisions", decisions, "--protocol", "pairwise")


def compared(a: int, b: int, winner: str) -> dict:
    judgments = [{"score": a, "justification": "x"}, {"score": b, "justification": "y"}]
    return {"prompt": "q", "response": "r", "judgments": judgments, "winner": winner}


def test_a_meta_judge_is_asked_both_orders_and_the_right_one_moves():
    chat, rows = SimpleNamespace(stop_ids=(0,)), [compared(5, 2, "second"), compared(1, 1, "first")]
    items = list(comparison_items(rows, chat, load_settings(CONFIG)))
    assert [(item.record["first"], item.record["right"], item.record["differ_in"]) for item in items] == [
        *((0, "second", "score"), (1, "first", "score"), (0, "first", "evidence"), (1, "second", "evidence")),
    ]
    shown = [item.messages()[-1]["content"] for item in items]
    assert "Judgment A:\nScore: 5\nx\n\nJudgment B:\nScore: 2\ny" in shown[0]
    assert "Judgment A:\nScore: 2\ny\n\nJudgment B:\nScore: 5\nx" in shown[1]
    assert len({item.seed for item in items}) == 4
    hidden = replace(load_settings(CONFIG), guards=Guards(hide_scores=True))
    first = next(comparison_items(rows, chat, hidden)).messages()[-1]["content"]
    assert "Judgment A:\nx\n\nJudgment B:\ny" in first and "Score" not in first


def test_a_meta_judges_report_worked_by_hand():
    """Case 0: right, and wrong. Case 1: right, and no winner, which counts half. The first place wins one of three."""
    rows = [
        *((0, 0, "second", "second", "score"), (0, 1, "first", "second", "score")),
        *((1, 0, "first", "first", "evidence"), (1, 1, "second", None, "evidence")),
    ]
    keys = ("case", "first", "right", "winner", "differ_in")
    result = meta_report([dict(zip(keys, row, strict=True)) for row in rows])
    assert result["parse_rate"] == 0.75 and result["agreement"]["value"] == 2.5 / 4
    assert {kind: value["value"] for kind, value in result["by_kind"].items()} == {"score": 0.5, "evidence": 0.75}
    assert result["first_position"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert result["consistency"]["value"] == 0.0  # the one case decided twice: the second place won both times
