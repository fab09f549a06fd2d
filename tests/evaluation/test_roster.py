"""The table of models: paired differences, and how it is printed."""

import numpy as np
from pytest import approx

from evaluation.roster import differences, table


def test_a_paired_difference_is_of_what_both_have():
    own = {"verifiable": {"v1": {"": 1.0}, "v2": {"": 1.0}, "v3": {"": 0.0}}, "agreement": {"g": {"x": 1.0, "y": 0.5}}}
    others = {"verifiable": {"v1": {"": 0.0}, "v2": {"": 1.0}}, "agreement": {"g": {"y": 1.0}}, "characters": {}}
    paired = differences(own, others)
    assert set(paired) == {"verifiable", "agreement"}
    assert (paired["verifiable"]["value"], paired["verifiable"]["count"]) == (0.5, 2)
    assert (paired["agreement"]["value"], paired["agreement"]["count"]) == (-0.5, 1)


def test_a_constant_difference_has_no_interval():
    """Two models differ by one on every prompt, and the prompts differ much."""
    draw = np.random.default_rng(0)
    lengths = {str(i): float(x) for i, x in enumerate(draw.integers(10, 1000, 50))}
    own = {"characters": {name: {"": value + 1} for name, value in lengths.items()}}
    other = {"characters": {name: {"": value} for name, value in lengths.items()}}
    assert differences(own, other)["characters"] == {"value": 1.0, "low": 1.0, "high": 1.0, "count": 50}


def test_the_interval_is_the_bootstraps():
    """Of 400 differences that are 0 or 1 with equal probability: a standard error of 0.5 / 20."""
    draw = np.random.default_rng(1)
    own = {"verifiable": {str(i): {"": float(x)} for i, x in enumerate(draw.integers(0, 2, 400))}}
    other = {"verifiable": {str(i): {"": 0.0} for i in range(400)}}
    difference = differences(own, other)["verifiable"]
    assert difference["high"] - difference["low"] == approx(2 * 1.96 * 0.025, rel=0.1)


def share(value, low, high):
    return {"value": value, "low": low, "high": high, "count": 0 if value is None else 9}


def row(name, **measures):
    empty = dict.fromkeys(("win_rate", "win_rate_by", "win_rate_way", "win_rate_undecided"))
    return {"name": name, "differences": {}} | empty | measures


def test_the_table_says_who_judged():
    rows = [
        row("seed", verifiable=share(0.25, 0.2, 0.3)),
        row(
            "M0",
            verifiable=share(0.5, 0.4, 0.6),
            win_rate=share(0.6, 0.5, 0.7),
            win_rate_by="M0",
            win_rate_way="by mean scores",
            win_rate_undecided=0,
        ),
        row(
            "M1",
            verifiable=share(0.75, 0.7, 0.8),
            win_rate=share(None, None, None),
            win_rate_by="M1",
            win_rate_way="by mean scores",
            win_rate_undecided=9,
            differences={"verifiable": share(0.25, 0.1, 0.4)},
        ),
    ]
    assert list(table(rows)) == [
        "model  wins*             verifiable",
        "seed   -                 25.0% [20%, 30%]",
        "M0     60.0% [50%, 70%]  50.0% [40%, 60%]",
        "M1     -                 75.0% [70%, 80%]",
        "M1 against M0, paired: verifiable +25.0% [+10.0%, +40.0%]",
        "* against the seed, self-judged, by mean scores, by M0, M1; a tie counts half",
        "  prompts without a verdict, which are left out: M1 9 of 9",
    ]


def test_a_foreign_judge_is_not_called_self_judged():
    """And a judge who gave no verdict is named too."""
    measures = {"win_rate": share(None, None, None), "win_rate_way": "in both orders", "win_rate_undecided": 4}
    assert list(table([row("M0"), row("M1", win_rate_by="models/large", **measures)])) == [
        "model  wins*",
        "M0     -",
        "M1     -",
        "* against the seed, judged, in both orders, by models/large; a tie counts half",
        "  prompts without a verdict, which are left out: M1 4 of 4",
    ]


def test_a_run_without_an_evaluation_has_no_table():
    assert list(table([row("M0"), row("M1")])) == []
