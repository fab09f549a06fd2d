"""Measures of answers to held-out prompts, and win rates against the seed; every value worked by hand."""

from dataclasses import replace

import pytest

from evaluation.measure import answers_report, duels_of, held_out_items, wins_report
from evaluation.verifiable import Instruction, Rule
from stages.files import UserError
from stages.settings import Evaluation, Iteration, Model, Respond, Settings

SETTINGS = Settings(name="t", model=Model("m"), respond=Respond(1, max_new_tokens=7), iteration=[Iteration()])
PAIRWISE = replace(SETTINGS, evaluation=Evaluation(protocol="pairwise"))
INSTRUCTIONS = [
    Instruction("v1", "Shout.", (Rule("upper_case"),)),
    Instruction("v2", "Whisper.", (Rule("lower_case"),)),
]


class Chat:
    stop_ids = (0,)


def test_each_prompt_is_asked_once_with_noise_of_its_own():
    items = list(held_out_items(INSTRUCTIONS, {"v1": "Hello?"}, Chat(), SETTINGS))
    assert [item.name for item in items] == ["instruction/v1", "instruction/v2", "prompt/v1"]
    contents = [[message["content"] for message in item.messages()] for item in items]
    assert contents == [["Shout."], ["Whisper."], ["Hello?"]] and len({item.seed for item in items}) == 3
    assert {item.sampling.max_new_tokens for item in items} == {7}
    again = list(held_out_items(INSTRUCTIONS, {}, Chat(), replace(SETTINGS, name="another")))
    assert [item.seed for item in again] == [item.seed for item in items[:2]]


def test_instructions_and_open_prompts_are_measured_apart():
    rows = [
        ("instruction", "v1", "YES", "stop"),
        ("instruction", "v2", "NO", "stop"),
        ("prompt", "a", "one two three one two three", "stop"),
        ("prompt", "b", "four", "length"),
    ]
    rows = [dict(zip(("kind", "name", "text", "finish_reason"), row, strict=True)) for row in rows]
    result = answers_report(INSTRUCTIONS, rows)
    assert result["verifiable"]["followed"] == {"v1": [True], "v2": [False]}
    answers = result["answers"]
    assert answers["by_id"]["a"] == {"characters": 27.0, "cut_off": 0.0, "repetition": 0.25}  # of 4 triples, 1 repeats
    assert answers["by_id"]["b"] == {"characters": 4.0, "cut_off": 1.0, "repetition": 0.0}
    assert (answers["characters"]["value"], answers["cut_off"]["value"]) == (15.5, 0.5)
    assert answers["distinct_1"] == round(4 / 7, 4)  # one two three four
    assert answers["distinct_2"] == round(3 / 5, 4)  # one-two two-three three-one
    short = answers_report([], rows[3:])
    assert short["verifiable"] is None and short["answers"]["distinct_2"] is None
    assert answers_report(INSTRUCTIONS, rows[:2])["answers"] is None


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


def test_wins_by_scores():
    result = wins("score", a=([4], [3]), b=([2], [2]), d=([None], [5]))
    assert result["by_id"] == {"a": 1.0, "b": 0.5, "c": 0.5, "d": None}  # c: equal texts tie unasked
    assert result["win_rate"]["value"] == round(2 / 3, 4) and result["win_rate"]["count"] == 3
    assert result["ties"]["value"] == round(2 / 3, 4) and result["parse_rate"]["value"] == round(5 / 6, 4)
    assert result["consistency"]["count"] == 0 and result["first_position"]["count"] == 0
    nothing = wins("score", DUELS[:1], a=([None], [None]))
    assert nothing["win_rate"] == {"value": None, "low": None, "high": None, "count": 0}


def test_wins_in_both_orders():
    """The model's answer in either place; the first place both times; and one order alone."""
    result = wins("winner", a=(["first"], ["second"]), b=(["first"], ["first"]), d=(["second"], [None]))
    assert result["by_id"] == {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0} and result["win_rate"]["value"] == 0.5
    assert result["consistency"]["value"] == round(2 / 3, 4)  # a and c, not b
    assert result["first_position"]["value"] == 0.6  # of five that name a place
    # A prompt's verdicts are drawn together: here are two prompts, not eight.
    for other, key in ((None, "parse_rate"), ("second", "first_position")):
        result = wins("winner", DUELS[:2], a=(["first"] * 2, ["first"] * 2), b=([other] * 2, [other] * 2))
        assert result[key] == {"value": 0.5, "low": 0.0, "high": 1.0, "count": 8}


def test_both_models_must_answer_the_same_prompts():
    with pytest.raises(UserError, match="prompt 'b': answered by only one of the two"):
        duels_of(answers(a="A1", b="B1"), answers(a="A2"))
