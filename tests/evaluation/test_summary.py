"""The table of models: paired differences, and how it is printed."""

from made_runs import MODELS

from evaluation.statistics import columns
from evaluation.summary import cells, differences, notes


def test_a_paired_difference_is_of_what_both_have():
    own = {
        "verifiable": {("v1", ""): 1.0, ("v2", ""): 1.0, ("v3", ""): 0.0},
        "agreement": {("g", "x"): 1.0, ("g", "y"): 0.5},
    }
    base = {"verifiable": {("v1", ""): 0.0, ("v2", ""): 1.0}, "agreement": {("g", "y"): 1.0}, "characters": {}}
    paired = differences(own, base)
    assert set(paired) == {"verifiable", "agreement"}
    assert (paired["verifiable"]["value"], paired["verifiable"]["count"]) == (0.5, 2)
    assert (paired["agreement"]["value"], paired["agreement"]["count"]) == (-0.5, 1)


def test_a_constant_difference_has_no_interval():
    """Two models differ by one on every prompt, and the prompts differ much."""
    base = {(f"{i}", ""): float(7 * i % 1000) for i in range(50)}
    own = {"characters": {item: value + 1 for item, value in base.items()}}
    difference = differences(own, {"characters": base})["characters"]
    assert difference == {"value": 1.0, "low": 1.0, "high": 1.0, "count": 50}


def test_the_table_says_who_judged():
    assert [*columns(cells(MODELS)), *notes(MODELS)] == [
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
    bare = {"name": "M0", "win_rate_by": None, "differences": {}}
    rows = [bare, MODELS[2] | {"verifiable": None, "win_rate_by": "models/large", "differences": {}}]
    assert cells(rows) == [["model", "wins*"], ["M0", "-"], ["M1", "-"]]
    assert next(notes(rows)) == "* against the seed, judged, by mean scores, by models/large; a tie counts half"
    assert cells([bare]) == [["model"], ["M0"]] and list(notes([bare])) == []
