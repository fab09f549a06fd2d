"""The bias panel on records worked by hand, and the limits that stop a run."""

from fractions import Fraction

import pytest
from scipy.stats import entropy

from evaluation.bias import (
    broken_limits,
    judge_panel,
    metajudge_panel,
    pairs_panel,
    response_panel,
    selection_panel,
)
from stages.files import write_jsonl, write_manifest
from stages.settings import Limits


def response(prompt: int, sample: int, characters: int) -> dict:
    return {"id": f"p{prompt}/r{sample}", "prompt_id": f"p{prompt}", "text": "x" * characters}


def judgment(name: str, index: int, score, failure: str | None = None, text: str = "") -> dict:
    own = {"score": score, "failure": failure, "text": text}
    return {"id": f"{name}/j{index}", "response_id": name, "index": index, **own}


RESPONSES = [response(*place, 10 * i) for i, place in enumerate(((1, 0), (1, 1), (2, 0), (2, 1), (2, 2)), 1)]
JUDGMENTS = [
    *(judgment("p1/r0", 0, 5), judgment("p1/r0", 1, 4.5), judgment("p1/r1", 0, 5)),
    *(judgment("p1/r1", 1, None, "truncated"), judgment("p2/r0", 0, 3), judgment("p2/r1", 0, 3)),
    *(judgment("p2/r2", 0, None, "fraction"), judgment("p2/r2", 1, None, "truncated")),
]


def test_what_the_judgments_say():
    """5 of 8 hold a score: 3 of 4 of p1's, 2 of 4 of p2's. Scores 5, 4.5, 5, 3, 3: mean 4.1; two are the highest; of
    the six numbers that were read two are fractions, one of them refused."""
    panel = judge_panel(RESPONSES, JUDGMENTS)
    assert panel["judgments"] == 8 and panel["failures"] == {"fraction": 1, "truncated": 2}
    assert panel["parse_rate"] == {"value": 0.625, "low": 0.5, "high": 0.75, "count": 8}
    assert panel["score_histogram"] == {"3": 2, "4.5": 1, "5": 2}
    near = judge_panel(RESPONSES, [judgment("p1/r0", i, score) for i, score in enumerate((3, 3.0000001))])
    assert near["score_histogram"] == {"3": 1, "3.0000001": 1}
    assert panel["score_mean"] == 4.1 and panel["saturation"] == 0.4
    assert panel["score_entropy_bits"] == pytest.approx(entropy([2, 1, 2], base=2), abs=1e-4)
    assert panel["fractions"] == pytest.approx(2 / 6, abs=1e-4)


def test_failures_by_response_length():
    """Edges 10, 10, 20, 30, 40, 50 without repetition: [10, 20), [20, 30), [30, 40), [40, 50]."""
    bins = judge_panel(RESPONSES, JUDGMENTS)["by_response_length"]
    rates = [(row["from_characters"], row["judgments"], row["parse_rate"]) for row in bins]
    assert rates == [(10, 2, 1.0), (20, 2, 0.5), (30, 1, 1.0), (40, 3, 0.3333)]
    assert bins[3]["failures"] == {"fraction": 1, "truncated": 1}


def test_expected_scores():
    """The histogram is that of the digits' probabilities, renormalised: 1/2 at 4 and 1/2 at 5, and 5 alone."""
    rows = [
        ("p1/r0", [0, 0, 0, 0, 0.4, 0.4], 4.5, None),
        ("p1/r1", [0, 0, 0, 0, 0, 1], 5.0, None),
        ("p1/r0", [0.2, 0, 0, 0, 0, 0], None, "low_mass"),
    ]
    keys = ("response_id", "probabilities", "score", "failure")
    panel = judge_panel(RESPONSES, [], [dict(zip(keys, row, strict=True)) for row in rows])
    assert panel["score_histogram"] == {"0": 0, "1": 0, "2": 0, "3": 0, "4": 0.5, "5": 1.5}
    assert (panel["score"], panel["score_mean"], panel["saturation"]) == ("expected", 4.75, 0.75)
    assert panel["digit_mass"] == round(2 / 3, 4) and panel["failures"] == {"low_mass": 1}
    assert panel["parse_rate"]["value"] == round(2 / 3, 4) and panel["by_response_length"] == []


def test_scores_ties_and_length():
    """p1: 5 at 10 characters, 3 at 20: -1. p2: 4, 4, 1 at 30, 40, 50: ranks 2.5 2.5 1 against 1 2 3, -0.866. Of four
    pairs within prompts one is tied; p3's one scored response is in no pair."""
    scores = {row["id"]: Fraction(s) for row, s in zip(RESPONSES, (5, 3, 4, 4, 1), strict=True)}
    panel = response_panel([*RESPONSES, response(3, 0, 60), response(3, 1, 60)], scores | {"p3/r0": Fraction(2)})
    assert panel["distinct"] == 7 and panel["scored"] == 6 and panel["ties"]["value"] == 0.25
    assert panel["ties"]["count"] == 4 and panel["all_equal"] == 0
    assert panel["score_length_spearman_within_prompt"]["value"] == pytest.approx((-1 - 0.866) / 2, abs=1e-3)
    assert panel["characters_mean"] == pytest.approx(270 / 7, abs=1e-3)
    assert response_panel(RESPONSES[:2], {row["id"]: Fraction(4) for row in RESPONSES[:2]})["all_equal"] == 1


def test_selection():
    """p1 asks for capitals, and two of three responses have them; p2 for JSON, which none has; p3 has no rules."""
    asked = [{"id": "p1", "rules": [{"rule": "upper_case"}]}, {"id": "p2", "rules": [{"rule": "json", "keys": ["a"]}]}]
    rows = [("p1", "YES", 5), ("p1", "no", 3), ("p1", "NO", 3), ("p2", "yes", 1), ("p2", "no", 2), ("p3", "x", 4)]
    responses = [{"id": f"{name}/{n}", "prompt_id": name, "text": text} for n, (name, text, _) in enumerate(rows)]
    scores = {row["id"]: Fraction(score) for row, (*_, score) in zip(responses, rows, strict=True)}
    panel = selection_panel([*asked, {"id": "p3"}], responses, scores)
    means = {name: own["value"] for name, own in panel["rules"].items()}
    # p1: random 2/3, best 1, worst (no and NO) 1/2, oracle 1; YES is above no, NO beside it
    assert means == {"random": 0.3333, "best": 0.5, "worst": 0.25, "oracle": 0.5, "gain": 0.1667, "ordered": 0.75}
    assert {name: own["value"] for name, own in panel["score"].items()} == {"random": 3.0556, "best": 3.6667}
    assert selection_panel([{"id": "p1"}], responses[:3], scores)["rules"] is None


def elos(*scores: float, group_size: int = 3) -> list[dict]:
    """Elo scores of the judgments of a; standard errors 0, 1, 2, ..."""
    keys = ("judgment_id", "response_id", "group", "elo", "standard_error")
    rows = [(f"a/j{i}", "a", i // group_size, score, i) for i, score in enumerate(scores)]
    return [dict(zip(keys, row, strict=True)) for row in rows]


def test_whom_the_meta_judge_prefers():
    """Scores of a: 4, 4, 2. Judgments 0 and 1 (equal): first wins twice. 0 and 2: the higher wins, shown first, then
    second. 1 and 2: the lower wins, shown first; then a tie. Of b the higher wins, shown second; then nothing."""
    judgments = [judgment("a", i, score, text="y" * n) for i, (score, n) in enumerate([(4, 3), (4, 1), (2, 2)])]
    judgments += [judgment("b", 0, 1), judgment("b", 1, 5)]
    wins = [(0, 1, "first"), (1, 0, "first"), (0, 2, "first"), (2, 0, "second"), (2, 1, "first"), (1, 2, "tie")]
    rows = [("a", *win, None) for win in wins] + [("b", 0, 1, "second", None), ("b", 1, 0, None, "missing")]
    comparisons = [dict(zip(("response_id", "first", "second", "winner", "failure"), row, strict=True)) for row in rows]
    panel = metajudge_panel(comparisons, judgments, elos(3.0, 1.0, 2.0))
    assert panel["comparisons"] == 8 and panel["failures"] == {"missing": 1} and panel["ties"] == 1 / 8
    names = ("first_wins", "first_wins_at_equal_scores", "higher_score_wins", "both_orders_agree")
    expected = [(round(4 / 6, 4), 6), (1.0, 2), (0.75, 4), (0.5, 2)]
    assert [(panel[name]["value"], panel[name]["count"]) for name in names] == expected
    assert panel["elo_length_spearman"]["value"] == 1.0 and panel["elo_standard_error_mean"] == 1
    # In each group the longer has the higher Elo; over both groups it would be the other way round.
    judgments = [judgment("a", i, 3, text="y" * n) for i, n in enumerate((3, 4, 1, 2))]
    ranks = metajudge_panel([], judgments, elos(-2.0, -1.0, 1.0, 2.0, group_size=2))["elo_length_spearman"]
    assert (ranks["value"], ranks["count"]) == (1.0, 2)


def test_pairs(tmp_path):
    row = {"chosen": [{"content": "12345"}], "rejected": [{"content": "123"}]}
    write_jsonl(tmp_path / "actor.jsonl", [row, row | {"chosen": [{"content": "1"}]}])
    counts = {"prompts": 4, "actor": 2, "actor.equal_scores": 2, "actor.not_better": 0}
    write_manifest(tmp_path, "pairs", "key", [], counts=counts)
    means = {"chosen_characters_mean": 3.0, "rejected_characters_mean": 3.0}
    assert pairs_panel(tmp_path) == {"actor": {"pairs": 2, "yield": 0.5, "reasons": {"equal_scores": 2}} | means}


JUDGED = {"parse_rate": {"value": 0.6}, "saturation": 0.7}
PAIRS = {"actor": {"pairs": 4, "yield": 0.4}, "judge": {"pairs": 0, "yield": 0.0}}


@pytest.mark.parametrize(
    ("judge", "pairs", "limits", "complaints"),
    [
        (JUDGED, PAIRS, {"parse_rate": 0.6, "max_top_score_share": 0.7, "actor_yield": 0.4}, []),
        (JUDGED, PAIRS, {"parse_rate": 0.61}, ["60.0% of the judgments hold a score, limits.parse_rate is 0.61"]),
        (JUDGED, PAIRS, {"max_top_score_share": 0.69}, ["70.0% of the scores are 5, limits.max_top_score_share is"]),
        (JUDGED, PAIRS, {"actor_yield": 0.5, "judge_yield": 0.1}, ["limits.actor_yield is 0.5", "limits.judge_yield"]),
        (None, {"actor": PAIRS["actor"]}, {"parse_rate": 1.0, "judge_yield": 1.0, "max_top_score_share": 0.0}, []),
        (None, {"actor": {"pairs": 0, "yield": None}}, {}, ["no prompt gives a pair"]),
    ],
)
def test_limits(judge, pairs, limits, complaints):
    broken = broken_limits({"judge": judge, "pairs": pairs}, Limits(**limits))
    assert all(complaint in clause for complaint, clause in zip(complaints, broken, strict=True))
