"""Measures of answers to held-out prompts; every value worked by hand."""

from dataclasses import replace

import pytest

from evaluation.held_out import distinct, held_out_items, read_prompts, report, text_report
from evaluation.rules import Rule
from evaluation.verifiable import Instruction
from stages.files import UserError, write_jsonl
from stages.settings import Iteration, Model, Respond, Settings


class Chat:
    stop_ids = (0,)


@pytest.fixture
def settings():
    return Settings(name="t", model=Model("m"), respond=Respond(1, max_new_tokens=7), iteration=[Iteration()])


INSTRUCTIONS = [
    Instruction("v1", "Shout.", (Rule("upper_case"),)),
    Instruction("v2", "Whisper.", (Rule("lower_case"),)),
]


def test_each_prompt_is_asked_once_with_noise_of_its_own(settings):
    items = list(held_out_items(INSTRUCTIONS, {"v1": "Hello?"}, Chat(), settings))
    assert [item.name for item in items] == ["instruction/v1", "instruction/v2", "prompt/v1"]
    assert [item.messages() for item in items] == [
        [{"role": "user", "content": x}] for x in ("Shout.", "Whisper.", "Hello?")
    ]
    assert len({item.seed for item in items}) == 3
    assert {item.sampling.max_new_tokens for item in items} == {7}
    again = list(held_out_items(INSTRUCTIONS, {}, Chat(), replace(settings, name="another")))
    assert [item.seed for item in again] == [item.seed for item in items[:2]]


def row(name, text, kind="prompt", finish_reason="stop"):
    return {"name": name, "kind": kind, "text": text, "finish_reason": finish_reason}


def test_length_variety_repetition_and_cuts():
    rows = [row("a", "one two three one two three"), row("b", "four", finish_reason="length")]
    result = text_report(rows)
    assert result["by_id"]["a"] == {"characters": 27.0, "cut_off": 0.0, "repetition": 0.25}  # of 4 triples, 1 repeats
    assert result["by_id"]["b"] == {"characters": 4.0, "cut_off": 1.0, "repetition": 0.0}
    assert (result["characters"]["value"], result["cut_off"]["value"]) == (15.5, 0.5)
    assert result["distinct_1"] == round(4 / 7, 4)  # one two three four
    assert result["distinct_2"] == round(3 / 5, 4)  # one-two two-three three-one
    assert result["distinct_3"] == round(3 / 4, 4)


def test_an_empty_answer_has_no_variety():
    assert distinct(["", "word"], 2) is None
    result = text_report([row("a", "")])
    assert result["characters"]["value"] == 0 and result["distinct_1"] is None


def test_instructions_and_open_prompts_are_measured_apart():
    rows = [row("v1", "YES", "instruction"), row("v2", "NO", "instruction"), row("p", "Well.")]
    result = report(INSTRUCTIONS, rows)
    assert result["verifiable"]["strict"]["value"] == 0.5
    assert result["verifiable"]["followed"] == {"v1": [True], "v2": [False]}
    assert result["answers"]["characters"]["value"] == 5
    assert report([], [row("p", "Well.")])["verifiable"] is None
    assert report(INSTRUCTIONS, rows[:2])["answers"] is None


def test_repeated_ids_and_bad_prompts_are_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [{"id": "p1", "prompt": "a"}, {"id": "p1", "prompt": "b"}])
    with pytest.raises(UserError, match=r"line 2: id 'p1' comes twice"):
        read_prompts(str(path))
    write_jsonl(path, [{"id": 1, "prompt": "a"}])
    with pytest.raises(UserError, match="line 1: id and prompt must be texts"):
        read_prompts(str(path))
    path.write_text("\n")
    with pytest.raises(UserError, match="no prompts; name a file"):
        read_prompts(str(path))
