"""Measures of answers, two responses compared, wins against the seed, and the table of models; worked by hand."""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
from made_runs import MODELS
from questions import refused

from evaluation.measure import answers_report, duels_of, held_out_items, labelled_by_rules, wins_report
from evaluation.pairwise import Duel, decide, duel_items, read_duel
from evaluation.statistics import columns
from evaluation.summary import cells, differences, notes, selection_lines
from evaluation.verifiable import Instruction
from judging.rules import Rule
from judging.verdict import Failure, parse_winner
from stages.settings import Evaluation, Iteration, Model, Respond, Settings

SETTINGS = Settings(name="t", model=Model("m"), respond=Respond(1, max_new_tokens=7), iteration=[Iteration()])
PAIRWISE = replace(SETTINGS, evaluation=Evaluation(protocol="pairwise"))
CHAT = SimpleNamespace(stop_ids=(0,))
DUEL = Duel("d", "What is {x}?", "It is 100% {y}.", "No idea.")
HALF = Fraction(1, 2)


def content(item):
    return "\n".join(message["content"] for message in item.messages())


@pytest.mark.parametrize("form", ["full", "compact"])
def test_both_orders_are_asked_with_the_same_rest(form):
    settings = replace(SETTINGS, judge=replace(SETTINGS.judge, prompt_style=form))
    items = list(duel_items([DUEL], "pairwise", 2, CHAT, settings))
    assert [(item.record["shown"], item.record["index"]) for item in items] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({item.seed for item in items}) == 4
    first, second = content(items[0]), content(items[2])
    assert first.index(DUEL.first) < first.index(DUEL.second) and sorted(first) == sorted(second)
    assert second.index(DUEL.second) < second.index(DUEL.first)


def test_scores_are_asked_of_each_response_alone():
    items = list(duel_items([DUEL], "scores", 3, CHAT, SETTINGS))
    named = [(DUEL.first in content(item), DUEL.second in content(item)) for item in items]
    assert named == [(True, False)] * 3 + [(False, True)] * 3


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("B rambles.\nWinner: Response A", "first"),
        ("Winner: B", "second"),
        ("Winner: Judgment A", Failure.MALFORMED),
    ],
)
def test_a_winner_among_responses(text, winner):
    assert parse_winner(text, "stop", compared="responses") == winner
    named, failure = (None, str(winner)) if isinstance(winner, Failure) else (winner, None)
    read = read_duel({"text": text, "finish_reason": "stop"}, "pairwise", SETTINGS.judge)
    assert read == {"winner": named, "failure": failure}


@pytest.mark.parametrize(
    ("key", "first", "second", "share", "preference", "consistent"),
    [
        ("score", [4, 5], [4, 4], 1, "first", None),
        ("score", [4, 5], [4.5, 4.5], HALF, "tie", None),
        ("score", [None, 3], [4], 0, "second", None),
        ("winner", ["first"], ["second"], 1, "first", True),  # the first response won in both orders
        ("winner", ["first"], ["first"], HALF, "tie", False),  # the first place wins, both times
        ("winner", ["tie"], ["second"], Fraction(3, 4), "first", False),
        ("winner", [None], [None], None, None, None),
        ("winner", ["first", "first", "second"], ["first"], Fraction(1, 3), "second", False),
    ],
)
def test_the_higher_mean_wins_and_orders_are_averaged(key, first, second, share, preference, consistent):
    rows = [{"shown": shown, key: value} for shown, given in enumerate((first, second)) for value in given]
    decision = decide(DUEL, rows, "scores" if key == "score" else "pairwise")
    assert (decision.first, decision.preference, decision.consistent) == (share, preference, consistent)


INSTRUCTIONS = [
    Instruction("v1", "Shout.", (Rule("upper_case"),)),
    Instruction("v2", "Whisper.", (Rule("lower_case"),)),
]


def test_each_prompt_is_asked_once_with_noise_of_its_own():
    items = list(held_out_items(INSTRUCTIONS, {"v1": "Hello?"}, CHAT, SETTINGS))
    assert [item.name for item in items] == ["instruction/v1", "instruction/v2", "prompt/v1"]
    contents = [[message["content"] for message in item.messages()] for item in items]
    assert contents == [["Shout."], ["Whisper."], ["Hello?"]] and len({item.seed for item in items}) == 3
    assert {item.sampling.max_new_tokens for item in items} == {7}
    twice = replace(SETTINGS, evaluation=replace(SETTINGS.evaluation, samples=2))
    again = list(held_out_items(INSTRUCTIONS[:1], {"v1": "Hello?"}, CHAT, twice))
    assert [item.name for item in again] == ["instruction/v1", "instruction/v1/1", "prompt/v1"]
    assert (again[0].seed, again[2].seed) == (items[0].seed, items[2].seed) and len({item.seed for item in again}) == 3


def test_instructions_and_open_prompts_are_measured_apart():
    rows = [
        ("instruction", "v1", "YES", "stop"),
        ("instruction", "v2", "NO", "stop"),
        ("prompt", "a", "one two three one two three", "stop"),
        ("prompt", "b", "four", "length"),
    ]
    rows = [dict(zip(("kind", "name", "text", "finish_reason"), row, strict=True)) for row in rows]
    result = answers_report(INSTRUCTIONS, rows)
    assert result["verifiable"]["followed"] == {"v1": [[True]], "v2": [[False]]}
    answers = result["answers"]
    assert answers["by_id"]["a"] == {"characters": 27.0, "cut_off": 0.0, "repetition": 0.25}  # of 4 triples, 1 repeats
    assert answers["by_id"]["b"] == {"characters": 4.0, "cut_off": 1.0, "repetition": 0.0}
    assert (answers["characters"]["value"], answers["cut_off"]["value"]) == (15.5, 0.5)
    assert answers["distinct_1"] == round(4 / 7, 4)  # one two three four
    assert answers["distinct_2"] == round(3 / 5, 4)  # one-two two-three three-one
    assert result["role_leakage"]["value"] == 0
    leaks = answers_report([], [rows[2] | {"text": "Winner: Judgment A"}, *rows[3:]])
    assert (leaks["role_leakage"]["value"], leaks["role_leakage"]["count"]) == (0.5, 2)
    short = answers_report([], rows[3:])
    assert short["verifiable"] is None and short["answers"]["distinct_2"] is None


def answers(**texts):
    return {name: {"prompt": f"{name}?", "text": text} for name, text in texts.items()}


DUELS = duels_of(answers(a="A1", b="B1", c="same", d="D1"), answers(a="A2", b="B2", c="same", d="D2"))


def wins(key, duels=DUELS, **sides):
    """The report on rows of both sides of each duel."""
    rows = [
        {"duel": name, "shown": shown, key: value, "failure": None if value is not None else "missing"}
        for name, both in sides.items() for shown, values in enumerate(both) for value in values
    ]  # fmt: skip
    return wins_report(duels, rows, SETTINGS if key == "score" else PAIRWISE)


def test_own_answers_are_labelled_by_their_rules():
    asked = [
        Instruction("a", "Who?", (Rule("one_word"), Rule("lower_case"))),
        Instruction("b", "Why?", (Rule("one_word"),)),
    ]
    texts = {"a": ["me", "You", "me", "all of us"], "b": ["so", "because"]}
    labelled = labelled_by_rules(asked, [{"name": name, "text": text} for name in texts for text in texts[name]])
    assert [(case.name, case.quality) for case in labelled.cases] == [
        ("a/0", 1), ("a/1", 0), ("a/2", 0), ("b/0", 1), ("b/1", 1)
    ]  # fmt: skip
    assert [(pair.name, pair.label) for pair in labelled.pairs] == [("a/0-a/1", "first"), ("a/0-a/2", "first")]
    assert len(labelled.subset("one_word and lower_case").pairs) == 2 and labelled.cases[3].prompt == "Why?"


def test_wins_by_scores():
    result = wins("score", a=([4], [3]), b=([2], [2]), d=([None], [5]))
    assert result["by_id"] == {"a": 1.0, "b": 0.5, "c": 0.5, "d": None}  # c: equal texts tie unasked
    assert result["win_rate"]["value"] == round(2 / 3, 4) and result["win_rate"]["count"] == 3
    assert result["scores"] == {"a": 4.0, "b": 2.0, "d": None} and result["score"]["value"] == 3
    assert result["ties"]["value"] == round(2 / 3, 4) and result["parse_rate"]["value"] == round(5 / 6, 4)
    assert result["consistency"]["count"] == 0 and result["first_position"]["count"] == 0
    with refused("prompt 'b': answered by only one of the two"):
        duels_of(answers(a="A1", b="B1"), answers(a="A2"))


def test_wins_in_both_orders():
    """The model's answer in either place; the first place both times; and one order alone."""
    result = wins("winner", a=(["first"], ["second"]), b=(["first"], ["first"]), d=(["second"], [None]))
    assert result["by_id"] == {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0} and result["win_rate"]["value"] == 0.5
    assert result["consistency"]["value"] == 0.5  # a, not b; c was not asked
    assert result["first_position"]["value"] == 0.6  # of five that name a place
    # A prompt's verdicts are drawn together: here are two prompts, not eight.
    for other, key in ((None, "parse_rate"), ("second", "first_position")):
        result = wins("winner", DUELS[:2], a=(["first"] * 2, ["first"] * 2), b=([other] * 2, [other] * 2))
        assert result[key] == {"value": 0.5, "low": 0.0, "high": 1.0, "count": 8}


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
        "* wins are against the seed; self-judged, by mean scores, by M0, M1; a tie counts half",
        "  prompts without a verdict, which are left out: M1 9 of 9",
    ]
    # A foreign judge is named and not called self-judged, also where there is no verdict.
    bare = {"name": "M0", "win_rate_by": None, "differences": {}}
    rows = [bare, MODELS[2] | {"verifiable": None, "win_rate_by": "models/large", "differences": {}}]
    assert (
        next(notes(rows)) == "* wins are against the seed; judged, by mean scores, by models/large; a tie counts half"
    )


def test_the_lines_of_the_selection_gain():
    score = {name: {"value": value} for name, value in (("random", 2.5), ("best", 3.75))}
    line = "  selection    mean score of a random response 2.50, of the best 3.75"
    assert list(selection_lines({"score": score, "rules": None})) == [line]
    values = {"random": 0.25, "best": 0.5, "worst": 0.125, "oracle": 0.75, "ordered": 0.8}
    rules = {name: {"value": value, "low": 0.1, "high": 0.9} for name, value in values.items()}
    first, second, third = selection_lines({"score": score, "rules": rules})
    shares = "a random one 25.0% [10%, 90%], the best 50.0% [10%, 90%], the worst 12.5% [10%, 90%], an oracle's 75.0%"
    assert (first, second.strip()) == (line, f"follows the rules: {shares} [10%, 90%]")
    assert third.strip() == "of pairs of which one does, 80.0% [10%, 90%] are ordered rightly"
