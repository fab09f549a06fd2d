"""The table of models: paired differences, and how it is printed."""

from made_runs import MODELS

from evaluation.statistics import columns
from evaluation.summary import cells, differences, notes


def test_paired_differences_are_of_what_both_have():
    """Of the characters, two models differ by one on every prompt: no interval, though the prompts differ much."""
    base = {"verifiable": {("v1", ""): 0.0, ("v2", ""): 1.0}, "agreement": {("g", "y"): 1.0}, "repetition": {}}
    base["characters"] = {(f"{i}", ""): float(7 * i % 1000) for i in range(50)}
    own = {
        "verifiable": {("v1", ""): 1.0, ("v2", ""): 1.0, ("v3", ""): 0.0},
        "agreement": {("g", "x"): 1.0, ("g", "y"): 0.5},
        "characters": {item: value + 1 for item, value in base["characters"].items()},
    }
    paired = differences(own, base)
    assert set(paired) == {"verifiable", "agreement", "characters"}
    assert (paired["verifiable"]["value"], paired["verifiable"]["count"]) == (0.5, 2)
    assert (paired["agreement"]["value"], paired["agreement"]["count"]) == (-0.5, 1)
    assert paired["characters"] == {"value": 1.0, "low": 1.0, "high": 1.0, "count": 50}


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
    # A foreign judge is named and not called self-judged, also where there is no verdict.
    bare = {"name": "M0", "win_rate_by": None, "differences": {}}
    rows = [bare, MODELS[2] | {"verifiable": None, "win_rate_by": "models/large", "differences": {}}]
    assert cells(rows) == [["model", "wins*"], ["M0", "-"], ["M1", "-"]]
    assert next(notes(rows)) == "* against the seed, judged, by mean scores, by models/large; a tie counts half"
    assert cells([bare]) == [["model"], ["M0"]] and list(notes([bare])) == []
