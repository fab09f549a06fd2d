"""Verifiable instructions: the report on worked answers, what is refused, and the project's prompts."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from evaluation.rules import RULES, Rule, followed
from evaluation.verifiable import Instruction, read_instructions, read_texts, table, verifiable_report
from prepare.novelty import Novelty, Sequences
from stages.files import UserError, read_jsonl, write_jsonl

ROOT = Path(__file__).parents[2]
PATH = ROOT / "data" / "evaluation" / "verifiable.jsonl"
ANSWERS = ROOT / "tests" / "fixtures" / "verifiable.jsonl"
"""An answer to each prompt that follows it, written by hand."""
INSTRUCTIONS = read_instructions(PATH)

TWO = (
    Instruction("x", "One word in capitals.", (Rule("one_word"), Rule("upper_case"))),
    Instruction("y", "One word.", (Rule("one_word"),)),
    Instruction("z", "No commas, and no more.", (Rule("no_commas"),)),
)


def test_a_worked_report():
    """x: one word, not in capitals; y: two words; z: no comma. One of three prompts, two of four rules."""
    report = verifiable_report(TWO, {"z": "fine", "x": "Yes", "y": "Oh no"})
    assert report["prompts"] == 3 and report["followed"] == {"x": [True, False], "y": [False], "z": [True]}
    assert (report["strict"]["value"], report["strict"]["count"]) == (0.3333, 3)
    assert (report["strict"]["low"], report["strict"]["high"]) == (0.0, 1.0)
    assert (report["rules"]["value"], report["rules"]["count"]) == (0.5, 4)
    assert list(report["by_rule"]) == ["one_word", "upper_case", "no_commas"]
    by_rule = {name: (row["followed"], row["count"], row["value"]) for name, row in report["by_rule"].items()}
    assert by_rule == {"one_word": (1, 2, 0.5), "upper_case": (0, 1, 0.0), "no_commas": (1, 1, 1.0)}
    assert [line.split()[:4] for line in table(report)] == [
        ["prompts", "1", "of", "3"],
        ["rules", "2", "of", "4"],
        ["one_word", "1", "of", "2"],
        ["upper_case", "0", "of", "1"],
        ["no_commas", "1", "of", "1"],
    ]


def test_one_prompt_and_none():
    report = verifiable_report(TWO[:1], {"x": "YES"})
    assert report["strict"] == {"value": 1.0, "low": 1.0, "high": 1.0, "count": 1}
    assert report["by_rule"]["one_word"] == {"followed": 1} | report["strict"]
    nothing = verifiable_report([], {})
    assert nothing["prompts"] == 0 and nothing["strict"]["value"] is None and nothing["by_rule"] == {}


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ({"x": "a"}, "no answer to 2 of 3 instructions: 'y', 'z'; answer them all"),
        ({"x": "a", "y": "b", "z": "c", "v": "d", "u": "e"}, "2 answers to unknown instructions: 'u', 'v'"),
    ],
)
def test_ids_must_be_those_of_the_instructions(texts, complaint):
    with pytest.raises(UserError, match=complaint):
        verifiable_report(TWO, texts)


GOOD = {"id": "a", "prompt": "Say it.", "rules": [{"rule": "one_word"}]}


def ruled(*rules) -> dict:
    return GOOD | {"id": "b", "rules": list(rules)}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (GOOD, "id 'a' came before"),
        ({"id": "b", "prompt": "p"}, "key 'rules' is missing"),
        (GOOD | {"id": "b", "note": 1}, "key 'note' is not known"),
        (GOOD | {"id": 3}, "key 'id' must be a text"),
        (GOOD | {"id": "b", "prompt": " "}, "key 'prompt' must be a text"),
        (ruled(), "key 'rules' must be a list"),
        (ruled("one_word"), r"rules\[0\]: expected a JSON object"),
        (ruled({"rule": "one_word"}, {"count": 1}), r"rules\[1\]: key 'rule' is missing"),
        (ruled({"rule": "rhymes"}), "rule 'rhymes' is not known; take one of words_at_most, "),
        (ruled({"rule": ["one_word"]}), r"rule \['one_word'\] is not known"),
        (ruled({"rule": "one_word", "count": 1}), "key 'count' is not known, one_word takes no parameter"),
        (ruled({"rule": "bullets", "count": 1, "n": 1}), "key 'n' is not known, bullets takes only 'count'"),
        (ruled({"rule": "bullets"}), "key 'count' of bullets is missing"),
        (ruled({"rule": "bullets", "count": "3"}), "key 'count' is '3'; it must be a whole number"),
        (ruled({"rule": "bullets", "count": True}), "key 'count' is True"),
        (ruled({"rule": "bullets", "count": 0}), "key 'count' is 0"),
        (ruled({"rule": "bullets", "count": 3.0}), "key 'count' is 3.0"),
        (ruled({"rule": "alphabet", "alphabet": "Greek"}), "key 'alphabet' is 'Greek'; take one of ARABIC, "),
        (ruled({"rule": "alphabet", "alphabet": 1}), "key 'alphabet' is 1"),
        (ruled({"rule": "ends_with", "text": " a"}), "key 'text' is ' a'"),
        (ruled({"rule": "ends_with", "text": ["a"]}), "key 'text' is "),
        (ruled({"rule": "lacks", "words": "a"}), "key 'words' must be a list of different texts"),
        (ruled({"rule": "lacks", "words": []}), "key 'words' must be a list"),
        (ruled({"rule": "lacks", "words": ["a", 1]}), "key 'words' must be a list"),
        (ruled({"rule": "json", "keys": ["a", "a"]}), "key 'keys' must be a list of different"),
    ],
)
def test_bad_instructions_are_one_line(tmp_path, row, complaint):
    write_jsonl(tmp_path / "i.jsonl", [GOOD, row])
    with pytest.raises(UserError, match=r"i\.jsonl, line 2.*" + complaint) as error:
        read_instructions(tmp_path / "i.jsonl")
    assert "\n" not in str(error.value)


def test_no_instructions(tmp_path):
    (tmp_path / "i.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"i\.jsonl: no instructions"):
        read_instructions(tmp_path / "i.jsonl")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "a"}, "key 'text' is missing"),
        ({"id": "b", "text": None}, "key 'text' must be a text"),
        ({"id": 1, "text": ""}, "key 'id' must be a text"),
        ({"id": "a", "text": "again"}, "id 'a' came before; keep one answer"),
    ],
)
def test_bad_answers_are_one_line(tmp_path, row, complaint):
    write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "", "model": "any"}, row])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: " + complaint):
        read_texts(tmp_path / "a.jsonl")


def run(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evaluation.verifiable", "--instructions", PATH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command(tmp_path):
    done = run("--answers", ANSWERS)
    assert done.returncode == 0 and done.stdout.splitlines()[0].split()[:4] == ["prompts", "175", "of", "175"]
    report = json.loads(run("--answers", ANSWERS, "--json").stdout)
    assert report == verifiable_report(INSTRUCTIONS, read_texts(ANSWERS))
    write_jsonl(tmp_path / "a.jsonl", list(read_jsonl(ANSWERS))[1:])
    done = run("--answers", tmp_path / "a.jsonl")
    assert done.returncode == 2 and done.stderr == (
        f"error: {tmp_path / 'a.jsonl'}: no answer to 1 of 175 instructions: 'v000'; answer them all\n"
    )


def test_counts_of_prompts_and_rules():
    assert [instruction.id for instruction in INSTRUCTIONS] == [f"v{number:03}" for number in range(175)]
    rules = Counter(rule.name for instruction in INSTRUCTIONS for rule in instruction.rules)
    assert set(rules) == set(RULES) and min(rules.values()) >= 12
    two = sum(len(instruction.rules) == 2 for instruction in INSTRUCTIONS)
    assert two == 46 and all(len(instruction.rules) <= 2 for instruction in INSTRUCTIONS)


NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "twelve", 20: "twenty"}


def test_prompts_name_what_their_rules_ask_for():
    """Words, keys and texts stand in quotation marks; a count in figures or words, or after the next one's "fewer"."""
    for instruction in INSTRUCTIONS:
        prompt = instruction.prompt
        for rule in instruction.rules:
            if isinstance(rule.value, int):
                ways = {str(rule.value), NUMBERS.get(rule.value, str(rule.value)), f"fewer than {rule.value + 1}"}
                ways |= {f"more than {rule.value - 1}"}
                ways |= {"one sentence", "one single sentence"} if rule == Rule("sentences", 1) else set()
                assert any(protocol in prompt.lower() for protocol in ways), instruction
            elif rule.name != "alphabet" and rule.value:
                texts = [rule.value] if isinstance(rule.value, str) else rule.value
                assert all(f'"{t}"'.lower() in prompt.lower() or t == "1848" or f'"{t}."' in prompt for t in texts), (
                    prompt
                )


def test_each_prompt_can_be_followed_and_is_not_by_any_answer():
    """All rules by its own reference answer; each rule is broken by another prompt's, or by the word it forbids."""
    texts = read_texts(ANSWERS)
    report = verifiable_report(INSTRUCTIONS, texts)
    assert [name for name, verdicts in report["followed"].items() if not all(verdicts)] == []
    assert max(len(text.split()) for text in texts.values()) <= 50
    for instruction in INSTRUCTIONS:
        for rule in instruction.rules:
            if rule.name == "lacks":
                own = texts[instruction.id]
                assert not any(followed(rule, f"{own} {word}") for word in rule.value), instruction
            else:
                assert not all(followed(rule, text) for text in texts.values()), instruction


def test_no_prompt_resembles_another_or_one_of_the_training_sets():
    """ROUGE-L below 0.7, and no eight words in a row that a training prompt or answer has."""
    data = ROOT / "data"
    names = ("train", "families", "families_tuning", "evaluation", "families_evaluation")
    known = [row["prompt"] for name in names for row in read_jsonl(data / "prompts" / f"{name}.jsonl")]
    texts = [row["text"] for row in read_jsonl(data / "answers" / "train.jsonl")]
    for name in ("train", "held_out"):
        for row in read_jsonl(data / "judged" / f"{name}.jsonl"):
            known.append(row["prompt"])
            texts += [response["text"] for response in row["responses"]]
    novelty, sequences = Novelty(0.7, known), Sequences(known + [t for t in texts if len(t.split()) >= 8], 8)
    assert novelty.similar(known[0]) and sequences.shares(texts[0])
    own = Novelty(0.7)
    for instruction in INSTRUCTIONS:
        assert not novelty.similar(instruction.prompt), instruction
        assert not sequences.shares(instruction.prompt), instruction
        assert not own.similar(instruction.prompt), instruction
        own.add(instruction.prompt)
