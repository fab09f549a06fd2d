"""Verifiable instructions: the report on worked answers, what is refused, and the project's prompts."""

from collections import Counter
from pathlib import Path

import pytest
from questions import refused, written

from evaluation.verifiable import (
    RULES,
    Instruction,
    Rule,
    followed,
    main,
    read_instructions,
    read_rows,
    table,
    verifiable_report,
)
from prepare.novelty import Novelty, Sequences
from stages.files import read_jsonl

DATA = Path(__file__).parents[2] / "data"
PATH = DATA / "evaluation" / "verifiable.jsonl"
ANSWERS = Path(__file__).parents[1] / "fixtures" / "verifiable.jsonl"
"""An answer to each prompt that follows it, written by hand."""
INSTRUCTIONS = read_instructions(PATH)
TEXTS = {row["id"]: row["text"] for row in read_jsonl(ANSWERS)}
THREE = (
    Instruction("x", "One word in capitals.", (Rule("one_word"), Rule("upper_case"))),
    Instruction("y", "One word.", (Rule("one_word"),)),
    Instruction("z", "No commas, and no more.", (Rule("no_commas"),)),
)


def test_a_worked_report():
    """x: one word, not in capitals; y: two words; z: no comma. One of three prompts, two of four rules."""
    report = verifiable_report(THREE, {"z": "fine", "x": "Yes", "y": "Oh no"})
    assert report["prompts"] == 3 and report["followed"] == {"x": [True, False], "y": [False], "z": [True]}
    assert report["strict"] == {"value": 0.3333, "low": 0.0, "high": 1.0, "count": 3}
    assert (report["rules"]["value"], report["rules"]["count"]) == (0.5, 4)
    words = ("prompts 1 of 3 33.3%", "rules 2 of 4 50.0%", "one_word 1 of 2 50.0%", "upper_case 0 of 1 0.0%")
    assert [" ".join(line.split()[:5]) for line in table(report)] == [*words, "no_commas 1 of 1 100.0%"]
    for texts, complaint in (
        ({"x": "a"}, "no answer to 2 of 3 instructions: 'y', 'z'; answer all"),
        (dict.fromkeys("xyzvu", "a"), "2 answers to unknown instructions: 'u', 'v'"),
    ):
        with refused(complaint):
            verifiable_report(THREE, texts)


GOOD = {"id": "a", "prompt": "Say it.", "rules": [{"rule": "one_word"}]}


def ruled(*rules) -> dict:
    return GOOD | {"id": "b", "rules": list(rules)}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (GOOD, "id 'a' came before"),
        ({"id": "b", "prompt": "p"}, "key 'rules' is missing"),
        (GOOD | {"id": "b", "note": 1}, "the keys are id, prompt, rules, note; they must be id, prompt,"),
        (GOOD | {"id": 3}, "key 'id' must be a text"),
        (GOOD | {"id": "b", "prompt": " "}, "key 'prompt' must be a text"),
        (ruled(), "a list of rules"),
        (ruled("one_word"), r"rules\[0\]: rule None is not known; take one of words_at_most, "),
        (ruled({"rule": "one_word"}, {"rule": ["rhymes"]}), r"rules\[1\]: rule \['rhymes'\] is not known"),
        *(
            (ruled(rule), r"rules\[0\] is {'rule': .*; docs/evaluation\.md describes " + rule["rule"])
            for rule in (
                {"rule": "one_word", "count": 1},
                {"rule": "bullets"},
                *({"rule": "bullets", "count": n} for n in ("3", True, 0, 3.0)),
                {"rule": "alphabet", "alphabet": "Greek"},
                *({"rule": "ends_with", "text": text} for text in (" a", ["a"])),
                *({"rule": "lacks", "words": words} for words in ("a", [], ["a", 1])),
                {"rule": "json", "keys": ["a", "a"]},
            )
        ),
    ],
)
def test_bad_instructions_are_one_line(tmp_path, row, complaint):
    with refused(r"i\.jsonl, line 2.*" + complaint):
        read_instructions(written(tmp_path / "i.jsonl", [GOOD, row]))


def test_bad_answers_are_one_line(tmp_path):
    for rows, complaint in (
        ([{"id": "a"}], "line 1: key 'text' is missing"),
        ([{"id": "b", "text": None}], "line 1: key 'text' must be a text"),
        ([{"id": "a", "text": ""}, {"id": "a", "text": "again"}], "line 2: id 'a' came before"),
        ([], "no rows; name a file of rows with id, text"),
    ):
        with refused(r"a\.jsonl.*" + complaint):
            read_rows(written(tmp_path / "a.jsonl", rows), "text")


def test_the_command(tmp_path, call):
    words = ("--instructions", PATH, "--answers")
    assert call(main, *words, ANSWERS).out.splitlines() == list(table(verifiable_report(INSTRUCTIONS, TEXTS)))
    with refused(r"a\.jsonl: no answer to 1 of 175 instructions: 'v000'; answer all"):
        call(main, *words, written(tmp_path / "a.jsonl", list(read_jsonl(ANSWERS))[1:]))


def test_each_prompt_can_be_followed_and_is_not_by_any_answer():
    """All rules by its own reference answer; each rule is broken by another prompt's, or by the word it forbids."""
    rules = Counter(rule.name for instruction in INSTRUCTIONS for rule in instruction.rules)
    assert set(rules) == set(RULES) and min(rules.values()) >= 12
    assert all(all(verdicts) for verdicts in verifiable_report(INSTRUCTIONS, TEXTS)["followed"].values())
    assert max(len(text.split()) for text in TEXTS.values()) <= 50
    for instruction, rule in [(item, rule) for item in INSTRUCTIONS for rule in item.rules]:
        if rule.name == "lacks":
            assert not any(followed(rule, f"{TEXTS[instruction.id]} {word}") for word in rule.value), instruction
        else:
            assert not all(followed(rule, text) for text in TEXTS.values()), instruction


def test_no_prompt_resembles_another_or_one_of_the_training_sets():
    """ROUGE-L below 0.7, and no eight words in a row that a training prompt or answer has."""
    names = ("train", "families", "families_tuning", "evaluation", "families_evaluation")
    known = [row["prompt"] for name in names for row in read_jsonl(DATA / "prompts" / f"{name}.jsonl")]
    texts = [row["text"] for row in read_jsonl(DATA / "answers" / "train.jsonl.gz")]
    for row in (row for name in ("train", "held_out") for row in read_jsonl(DATA / "judged" / f"{name}.jsonl")):
        known.append(row["prompt"])
        texts += [response["text"] for response in row["responses"]]
    novelty, sequences = Novelty(0.7, known), Sequences(known + [t for t in texts if len(t.split()) >= 8], 8)
    assert novelty.similar(known[0]) and sequences.shares(texts[0])
    own = Novelty(0.7)
    for prompt in (instruction.prompt for instruction in INSTRUCTIONS):
        assert not novelty.similar(prompt) and not sequences.shares(prompt) and not own.similar(prompt), prompt
        own.add(prompt)
