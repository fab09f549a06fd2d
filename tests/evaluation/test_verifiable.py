"""Every rule on texts that follow it and texts that nearly do; the report, and the prompts."""

# ruff: noqa: RUF001

import time
from collections import Counter
from pathlib import Path

import pytest
from questions import refused, written

from evaluation.verifiable import Instruction, main, read_instructions, table, verifiable_report
from judging.rules import RULES, Rule, followed, sentence_count, word_count
from prepare.construct import prompt_file
from prepare.novelty import Novelty, Sequences
from stages.files import read_jsonl

CASES = [
    # rule, texts that follow it, texts that do not
    (Rule("words_at_most", 3), ["one two three", "one - two — three!", "well-known don't 3.5", "word", "..."],
     ["one two three four", "one two—three four", "one two--three four", "1. one two three", "", " \n"]),
    (Rule("words_at_least", 3), ["one two three", "one—two--three", "a b c d"], ["one two", "one - two", "a-b c", ""]),
    (Rule("one_word"), ["Paris", "Paris.", "**Paris**\n", "ice-cream", "да!", "42"],
     ["New York", "Paris - yes", "Answer: Paris", "Paris—yes", "!", ""]),
    (Rule("sentences", 2),
     ["It rains. We stay.", "It rains! We stay", "Is it 3.5? So says example.com today.",
      "Dr. Lee met Mrs. May at St. Ives. They talked.", "Take fruit, e.g. pears. Eat it at 5 p.m. on Monday.",
      "It opens at 9 a.m. Come early.", 'He said: "It rains." "So it does!" she said.', "Well... perhaps. Or not…",
      "**It rains.** _We stay._", "1. It rains.\n2. We stay.", "- milk\n- bread", "Weather\n\nIt rains.",
      "It rains . . . We stay"],
     ["It rains.", "It rains. We stay. So what?", "It rains, we stay", "It rains.We stay.", "It rains\nwe stay",
      "Take fruit, e.g. pears.", 'He asked: "Does it rain?" and left.', "Dear Ann\n\nIt rains. We stay.", "...", ""]),
    (Rule("bullets", 2),
     ["- a\n- b", "Here they are:\n\n  * a\n\n\t+ b\nThat is all.", "•a\n• b", "– a\n– b\n1. c",
      "- a\n---\n- b\n- \n* * *", "- a\r\n- b\r\n"],
     ["- a", "- a\n- b\n- c", "- a\n  - b\n  - c", "-a\n-b", "1. a\n2. b", "**a**\n**b**", "a - b - c", "- a - b", ""]),
    (Rule("numbered", 3),
     ["1. a\n2. b\n3. c", "So:\n\n 1) a\n\n 2) b\n   - b2\n 3) c\nDone.", "1. **a**\n2. b\n3. c 4. d"],
     ["1. a\n2. b", "1. a\n2. b\n3. c\n4. d", "1. a\n1. b\n1. c", "0. a\n1. b\n2. c", "1. a\n3. b\n2. c",
      "1.a\n2.b\n3.c", "1. a 2. b 3. c", "1 a\n2 b\n3 c", "1. a\n2. b\n3.", "01. a\n02. b\n03. c", "- a\n- b\n- c",
      ""]),
    *((Rule(name, 10**30), [], ["1. a\n2. b"]) for name in ("numbered", "bullets", "sentences", "words_at_least")),
    (Rule("contains", ("sea", "thank you")),
     ["The sea! Thank you.", "SEA-salt, thank\nyou", "the sea's blue, thank  you", "_sea_ (thank you)",
      "seas sea thank you"],
     ["The seas, thank you", "the sea, thank your", "sea", "thank you", "undersea thank you", "sea thank-you", ""]),
    (Rule("contains", ("don't", "50%")), ["I don’t pay 50%.", "Don't! 50%"],
     ["I do not pay 50%", "don't 150%", "don't 50", "don't\u0323 50%"]),
    (Rule("lacks", ("I", "very good")), ["It is good, very.", "In time", "AI", "very well, good", "é"],
     ["So did I.", "I'm here", "i", "Very\ngood", "it is VERY GOOD!", ""]),
    (Rule("starts_with", "Dear Tom"),
     ["Dear Tom,\nhello", "dear tom", "DEAR TOM!", '"Dear Tom" is how it starts', "**Dear  Tom**", "  Dear\nTom"],
     ["Dear Tommy", "My Dear Tom", "Dear, Tom", "Dea", "1. Dear Tom", ""]),
    (Rule("starts_with", "-"), ["- a", " -a"], ["a - b", "*- a"]),
    (Rule("ends_with", "Good night"),
     ["He said good night.", "GOOD NIGHT!!", 'so: "Good  night."', "good\nnight", "**Good night** 🙂"],
     ["good nights", "Good night, Tom", "A good evening", "agood night", "night", ""]),
    (Rule("ends_with", "Any questions?"), ["That is it. Any questions?", "any questions?\n"],
     ["Any questions", "Any questions??", 'He asked: "Any questions?"', "Many questions?"]),
    (Rule("json", ("name", "age")),
     ['{"name": "Ann", "age": 4}', ' {"age": null,\n"name": [1, {"x": 1e400}]}\n',
      '```json\n{"name": "A", "age": 1}\n```', '```\n{"name": "A",\n "age": 1}\n```\n'],
     ['{"name": "Ann"}', '{"name": "Ann", "age": 4, "x": 1}', '{"Name": "Ann", "age": 4}',
      '{"name": 1, "name": 2, "age": 4}', '{"name": "Ann", "age": NaN}', "{'name': 'Ann', 'age': 4}",
      '{"name": "Ann", "age": 4,}', '[{"name": "Ann", "age": 4}]', '["name", "age"]', 'Here: {"name": "Ann", "age": 4}',
      '{"name": "Ann", "age": 4} as you asked', '```json\n{"name": "A", "age": 1}\n```\nDone',
      '```json\n{"name": "A", "age": 1}', '```json\n{"name": "A", "age": 1}\nDone',
      '```python\n{"name": "A", "age": 1}\n```', '{"name": "Ann", "age": ' + "[" * 100_000, ""]),
    (Rule("upper_case"), ["ABC", "WET FLOOR! 3 M", "ÄÖ Я Ω 日本"], ["ABc", "STRAßE", "123", "日本", "Wet", ""]),
    (Rule("lower_case"), ["abc", "wet floor! 3 m", "straße я 日本"], ["abC", "I am", "123", "日本", ""]),
    (Rule("alphabet", "CYRILLIC"), ["Привет, мир! 1 🙂", "ёлка", "п\u02bcять"],
     ["Привет Tom", "Пpивет", "123", "Hello", "Γεια", ""]),
    (Rule("alphabet", "GREEK"), ["Γεια σου", "Χρόνια", "Χρο\u0301νια"], ["Γεια, ok", "Гея", "µ", "?"]),
    (Rule("alphabet", "LATIN"), ["arigatō", "Ça va", "e\u0301"], ["arigatō (ありがとう)", "dom дом", "5"]),
    (Rule("alphabet", "HANGUL"), ["안녕하세요, 1"], ["안녕 hi", "こんにちは"]),
    (Rule("alphabet", "ARABIC"), ["القاهرة.", "پنج"], ["שלום", "Kairo القاهرة"]),
    (Rule("no_commas"), ["One; two. Three's 3.5", "a ' b"], ["One, two", "1,000", "一、二", "一，二", "، ", ""]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "good", "bad"), CASES)
def test_what_follows_a_rule(rule, good, bad):
    assert [text for text in good if not followed(rule, text)] == []
    assert [text for text in bad if followed(rule, text)] == []


def test_words_and_sentences_of_a_text():
    assert {rule.name for rule, *_ in CASES} == set(RULES)
    text = "Mr. Poe lives in the U.S. He writes (a lot!). “Nevermore…” he says — at 5 p.m. too.\n\n- Ravens: 3.5 a day."
    assert (word_count(text), sentence_count(text)) == (21, 4)
    assert (word_count(""), sentence_count("")) == (word_count("- ! …"), sentence_count("- ! …")) == (0, 0)


PIECES = ("a", "aa ", "- ", "1", "1. ", "- a\n", ".", '."', "a. ", "A ... b", "\n", "—", "--", "(", '{"a":',
          "\u0301\u0316")  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_long_texts_take_no_time(piece):
    """60,000 characters; whatever is quadratic takes several seconds."""
    text, rules = "a" + piece * (60_000 // len(piece)) + "b", {rule.name: rule for rule, *_ in CASES}
    asked = [(rule, text) for rule in (*rules.values(), Rule("contains", ("aa aa", "a" * 50)))]
    for rule, long in [*asked, (Rule("json", ("a",)), '{"a": ' + "1" * 150_000 + "}")]:
        started = time.process_time()
        followed(rule, long)
        assert time.process_time() - started < 1, rule


DATA = Path(__file__).parents[2] / "data"
PATH = DATA / "evaluation" / "verifiable.jsonl"
ANSWERS = Path(__file__).parents[1] / "fixtures" / "verifiable.jsonl"
"""An answer to each prompt that follows it, written by hand."""
INSTRUCTIONS = read_instructions(PATH)
TEXTS = {row["id"]: row["text"] for row in read_jsonl(ANSWERS)}
LISTED = {name: [text] for name, text in TEXTS.items()}
THREE = (
    Instruction("x", "One word in capitals.", (Rule("one_word"), Rule("upper_case"))),
    Instruction("y", "One word.", (Rule("one_word"),)),
    Instruction("z", "No commas, and no more.", (Rule("no_commas"),)),
)


def test_a_worked_report():
    """x: one word, not in capitals; y: two words; z: no comma. One of three prompts, two of four rules."""
    report = verifiable_report(THREE, {"z": ["fine"], "x": ["Yes"], "y": ["Oh no"]})
    assert report["prompts"] == 3 and report["followed"] == {"x": [[True, False]], "y": [[False]], "z": [[True]]}
    assert report["strict"] == {"value": 0.3333, "low": 0.0, "high": 1.0, "count": 3}
    assert (report["rules"]["value"], report["rules"]["count"]) == (0.5, 4)
    words = ("prompts 1 of 3 33.3%", "rules 2 of 4 50.0%", "one_word 1 of 2 50.0%", "upper_case 0 of 1 0.0%")
    assert [" ".join(line.split()[:5]) for line in table(report)] == [*words, "no_commas 1 of 1 100.0%"]
    twice = verifiable_report(THREE[1:], {"y": ["Oh no", "Oh"], "z": ["fine", "a, b"]})
    assert twice["strict"] == {"value": 0.5, "low": 0.5, "high": 0.5, "count": 4}  # one of each prompt's two
    assert twice["by_rule"]["one_word"]["followed"] == 1 and twice["by_rule"]["one_word"]["count"] == 2
    with refused("2 answers to unknown instructions: 'u', 'v'"):
        verifiable_report(THREE, dict.fromkeys("xyzvu", "a"))


GOOD = {"id": "a", "prompt": "Say it.", "rules": [{"rule": "one_word"}]}


def ruled(*rules) -> dict:
    return GOOD | {"id": "b", "rules": list(rules)}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (GOOD, "id 'a' came before"),
        (ruled({"rule": "one_word"}, {"rule": ["rhymes"]}), r"rules\[1\]: rule \['rhymes'\] is not known"),
        *(
            (ruled(rule), r"rules\[0\] is {'rule': .*; docs/evaluation\.md describes " + rule["rule"])
            for rule in (
                {"rule": "one_word", "count": 1},
                *({"rule": "bullets", "count": n} for n in ("3", True, 0, 3.0)),
                *({"rule": "lacks", "words": words} for words in ("a", [])),
                {"rule": "json", "keys": ["a", "a"]},
            )
        ),
    ],
)
def test_bad_instructions_are_one_line(tmp_path, row, complaint):
    with refused(r"i\.jsonl, line 2.*" + complaint):
        read_instructions(written(tmp_path / "i.jsonl", [GOOD, row]))


def test_the_command(tmp_path, call):
    words = ("--instructions", PATH, "--answers")
    assert call(main, *words, ANSWERS).out.splitlines() == list(table(verifiable_report(INSTRUCTIONS, LISTED)))
    with refused(r"a\.jsonl: no answer to 1 of 175 instructions: 'v000'; answer all"):
        call(main, *words, written(tmp_path / "a.jsonl", list(read_jsonl(ANSWERS))[1:]))


def test_each_prompt_can_be_followed_and_is_not_by_any_answer():
    """All rules by its own reference answer; each rule is broken by another prompt's, or by the word it forbids."""
    rules = Counter(rule.name for instruction in INSTRUCTIONS for rule in instruction.rules)
    assert set(rules) == set(RULES) and min(rules.values()) >= 12
    assert all(all(verdicts) for [verdicts] in verifiable_report(INSTRUCTIONS, LISTED)["followed"].values())
    assert max(len(text.split()) for text in TEXTS.values()) <= 50
    for instruction, rule in [(item, rule) for item in INSTRUCTIONS for rule in item.rules]:
        if rule.name == "lacks":
            assert not any(followed(rule, f"{TEXTS[instruction.id]} {word}") for word in rule.value), instruction
        else:
            assert not all(followed(rule, text) for text in TEXTS.values()), instruction


def test_no_prompt_resembles_another_or_one_of_the_training_sets():
    """ROUGE-L below 0.7, and no eight words in a row that a training prompt or answer has."""
    names = ("train", "families", "families_tuning", "ruled", "ruled_tuning", "evaluation", "families_evaluation")
    known = [row["prompt"] for name in names for row in read_jsonl(DATA / prompt_file(name))]
    texts = [row["text"] for row in read_jsonl(DATA / "answers" / "train.jsonl.gz")]
    for path in (DATA / "sft").glob("smollm2-135m-2*"):  # with rules in more words
        texts += {row["prompt"] for row in read_jsonl(path)}
    for row in (row for name in ("train", "held_out") for row in read_jsonl(DATA / "judged" / f"{name}.jsonl")):
        known.append(row["prompt"])
        texts += [response["text"] for response in row["responses"]]
    novelty, sequences = Novelty(0.7, known), Sequences(known + [t for t in texts if len(t.split()) >= 8], 8)
    assert novelty.similar(known[0]) and sequences.shares(texts[0])
    own = Novelty(0.7)
    for prompt in (instruction.prompt for instruction in INSTRUCTIONS):
        assert not novelty.similar(prompt) and not sequences.shares(prompt) and not own.similar(prompt), prompt
        own.add(prompt)
