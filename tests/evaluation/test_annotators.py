"""Cohen's kappa, held to scikit-learn, and its degenerate cases; votes, held to a plain count as MT-Bench makes it."""

import random

import pytest
from sklearn.metrics import cohen_kappa_score

from evaluation.annotators import annotator_report, cohen_kappa
from evaluation.labelled import Case, Pair, majority

CLASSES = ("first", "second", "tie")


def pair(name: str, **labels: str) -> Pair:
    """A pair with its labels by annotator."""
    qualities = {"first": (1, 0), "second": (0, 1), "tie": (0.5, 0.5)}[majority(labels.values())]
    first, second = (Case(name, f"{name}/{i}", "q", "x" * (i + 1), quality) for i, quality in enumerate(qualities))
    return Pair(name, first, second, labels)


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:2]])
def test_kappa_equals_scikit_learn(classes):
    draw = random.Random(0)
    for _ in range(20):
        a = draw.choices(classes, k=30)
        b = [label if draw.random() < 0.5 else draw.choice(classes) for label in a]
        kappa = cohen_kappa(list(zip(a, b, strict=True)))
        assert kappa["value"] == pytest.approx(cohen_kappa_score(a, b), abs=1e-4)
        assert kappa["low"] <= kappa["value"] <= kappa["high"] and kappa["count"] == 30


def test_kappa_worked_by_hand():
    """Of 50 things 20 and 15 have both labels equal; a says first 25 times, b 30: p_o 0.7, p_e 0.5, kappa 0.4."""
    both = [("first", "first")] * 20 + [("first", "second")] * 5
    both += [("second", "first")] * 10 + [("second", "second")] * 15
    assert cohen_kappa(both)["value"] == 0.4


def test_kappas_interval_is_that_of_its_large_sample_error():
    """Kappa 0.5 of two balanced classes: standard error sqrt(p_o (1 - p_o) / n) / (1 - p_e), p_e about constant."""
    both = [("first", "first")] * 150 + [("second", "second")] * 150
    both += [("first", "second")] * 50 + [("second", "first")] * 50
    kappa = cohen_kappa(both)
    error = (0.75 * 0.25 / 400) ** 0.5 / 0.5
    assert kappa["value"] == 0.5
    assert kappa["high"] - kappa["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_without_a_kappa_there_is_a_reason():
    assert cohen_kappa([])["reason"] == "no pair has both labels"
    same = cohen_kappa([("tie", "tie")] * 5)
    assert same["value"] is None and same["count"] == 5 and "one label" in same["reason"]
    assert cohen_kappa([("tie", "tie"), ("tie", "first")])["value"] == 0  # one of them is constant: chance
    assert cohen_kappa([("first", "second")])["value"] == 0


def test_several_annotators_by_hand():
    """x and y share three pairs, y and z one; the judge has no verdict of d."""
    pairs = [
        pair("a", x="first", y="first"),
        pair("b", x="second", y="first"),
        pair("c", x="second", y="second", z="tie"),
        pair("d", x="tie"),
    ]
    said = {"a": "first", "b": "second", "c": "tie", "d": None}
    people = annotator_report(pairs, said)
    assert (people["annotators"], people["labels"]) == (3, 8)
    # Votes of a: yes, yes; b: yes, no; c: no, no, yes. Without ties a and b alone.
    assert people["votes"]["with_ties"]["value"] == round(4 / 7, 4)
    assert (people["votes"]["without_ties"]["value"], people["votes"]["without_ties"]["count"]) == (0.75, 4)
    of_x = people["by_annotator"]["x"]
    expected = cohen_kappa_score(["first", "second", "tie"], ["first", "second", "second"])
    assert of_x["kappa"]["value"] == pytest.approx(expected, abs=1e-4)
    assert (of_x["with_ties"]["value"], of_x["with_ties"]["count"]) == (round(2 / 3, 4), 3)
    # Among them: x and y agree on a and c, and z with neither on c. Kappas: x with y; with z both have 0.
    among = people["among"]
    x_y = cohen_kappa_score(["first", "second", "second"], ["first", "first", "second"])
    assert among["kappa"] == pytest.approx((x_y + 0 + 0) / 3, abs=1e-4) and among["twos"] == 3
    assert (among["with_ties"]["value"], among["with_ties"]["count"]) == (0.4, 5)
    assert (among["without_ties"]["value"], among["without_ties"]["count"]) == (round(2 / 3, 4), 3)


def test_one_annotator_has_nobody_to_agree_with():
    people = annotator_report([pair("a", **{"": "first"})], {"a": "first"})
    assert people["annotators"] == 1 and people["among"]["kappa"] is None and "no two" in people["among"]["reason"]
    assert people["by_annotator"][""]["kappa"]["value"] is None
    assert annotator_report([], {}) is None


def test_votes_are_counted_as_mt_bench_does():
    draw = random.Random(1)
    pairs = [pair(str(i), **{name: draw.choice(CLASSES) for name in "xyz"[: draw.randint(1, 3)]}) for i in range(40)]
    said = {p.name: draw.choice(CLASSES) for p in pairs}
    equal = total = equal_decided = total_decided = 0
    for p in pairs:
        for vote in p.labels.values():
            total += 1
            equal += vote == said[p.name]
            if vote != "tie" and said[p.name] != "tie":
                total_decided += 1
                equal_decided += vote == said[p.name]
    people = annotator_report(pairs, said)["votes"]
    assert (people["with_ties"]["value"], people["with_ties"]["count"]) == (round(equal / total, 4), total)
    expected = (round(equal_decided / total_decided, 4), total_decided)
    assert (people["without_ties"]["value"], people["without_ties"]["count"]) == expected
