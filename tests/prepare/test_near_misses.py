"""Near misses: edits reach the verdict that was asked for, and rows reveal no score but by what code has checked."""

import random
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from judging.rules import Rule, obeys, rules_of
from prepare.edits import EDITS, edited
from prepare.flaws import repetitive
from prepare.near_misses import DIRECTIONS, NearMisses, judge_row, two_rules
from prepare.ruled import NUMBERS
from stages.files import read_jsonl

SOURCE = tomllib.loads(Path("data/prompts/ruled.toml").read_text(encoding="utf-8"))
PROMPTS = {row["prompt"]: row for row in read_jsonl(Path("data/prompts/ruled.jsonl.gz"))}
TEXT = """A compass has a small needle, and it shows where north is. People use it on ships, in deserts and in forests.
Because the needle is a magnet, it turns until it points north! A friend of mine has one today."""
OTHER = "Long ago, sailors looked at stars. Nowadays most of them trust a satellite, which knows the way."
VALUES = {"words_at_most": 14, "words_at_least": 40, "sentences": 2, "bullets": 5, "contains": ("window",)}
VALUES |= {"starts_with": "In short", "json": ("name", "text")}


@pytest.fixture(scope="module")
def made() -> NearMisses:
    return NearMisses(PROMPTS.values(), read_jsonl(Path("data/answers/ruled.jsonl.gz")), 0, SOURCE)


@pytest.mark.parametrize("name", EDITS)
def test_edits_reach_both_verdicts(name):
    """An edited text follows its rule, or breaks it, as was asked, says nothing twice, and texts vary."""
    rule = Rule(name, VALUES.get(name))
    for obey in (True, False):
        texts = [edited([rule], TEXT, OTHER, obey, random.Random(seed)) for seed in range(40)]
        made = [text for text in texts if text]
        assert len(made) >= 20 and all(obeys([rule], text) is obey and not repetitive(text) for text in made)


def test_pairs_reveal_no_score(made, monkeypatch):
    """For each rule as many follow as not, about as many edited as not, and a share of them with evidence. Prompts are
    in other words, and the two rows of a pair have one prompt."""
    monkeypatch.setattr("prepare.near_misses.judge_row", lambda prompt, *rest: judge_row(prompt, *rest) | prompt)
    rows = list(made.pairs(780, 0.5))
    flaws = Counter(row["flaw"] for row in rows)
    assert abs(flaws["kept.own"] - flaws["broken.own"]) < 100 and min(flaws.values()) > 100
    scores = Counter((tuple(r.name for r in rules_of(row)), row["score"]) for row in rows)
    assert len(scores) == 2 * 19 and all(scores[name, 5] == scores[name, 1] for name, _ in scores)
    assert all((row["score"] == 5) is obeys(rules_of(row), row["response"]) for row in rows)
    assert 0.4 < sum(bool(row["justification"]) for row in rows) / len(rows) < 0.6
    assert sum(row["prompt"] in PROMPTS for row in rows) / len(rows) < 0.1
    assert all(first["prompt"] == second["prompt"] for first, second in zip(rows[::2], rows[1::2], strict=True))


def test_value_pairs_differ_in_the_rules_value_or_direction_alone(made, monkeypatch):
    def with_rules(prompt, rules, *rest):
        return judge_row(prompt, rules, *rest) | prompt | {"asked": rules}

    monkeypatch.setattr("prepare.near_misses.judge_row", with_rules)
    wanted, kinds = ("words_at_most", "direction", "sentences", "words_at_least", "contains", "bullets"), Counter()
    rows = list(made.value_pairs(120, 0.5, wanted))
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        (one,), (other,) = first["asked"], second["asked"]
        assert (one.name == other.name) is (one.value != other.value) and first["request"] == second["request"]
        kinds[one.name if one.name == other.name else "direction"] += 1
        assert first["response"] == second["response"] and {first["score"], second["score"]} == {1, 5}
    for row in rows:
        assert (row["score"] == 5) is obeys(row["asked"], row["response"])
        (rule,) = row["asked"]
        shown = rule.value[0] if rule.name == "contains" else str(rule.value)
        words = {number: word for word, number in NUMBERS.items()}
        assert any(one in row["prompt"] for one in (shown, words.get(rule.value, shown)))
    assert kinds == Counter(wanted * 20)


def test_values_worked_by_hand():
    """Three sentences with nine words; the other text gives what this one lacks."""
    text = "It always rains here. It pours. We stay inside."

    def found(name: str) -> set:
        drawn = [two_rules(name, text, "Cats sleep", random.Random(seed)) for seed in range(800)]
        return {(kept.value, broken.value) for kept, broken in filter(None, drawn) if kept.name == broken.name == name}

    assert found("sentences") == {(3, 1), (3, 2), (3, 4), (3, 5)}
    assert found("contains") == {
        ((word,), ("sleep",)) for word in ("always", "rains", "here", "pours", "stay", "inside")
    }
    assert found("starts_with") == {("It", "Cats"), ("It always", "Cats sleep"), ("It always rains", "Cats sleep")}
    assert found("words_at_most") == {(kept, broken) for kept in range(9, 19) for broken in range(3, 9)}
    assert {kept for kept, _ in found("words_at_least")} == set(range(3, 10)) and found("bullets") == set()
    turned = {two_rules("direction", text, "", random.Random(seed)) for seed in range(800)} - {None}
    most, least = DIRECTIONS
    right = {(Rule(most, count), Rule(least, count)) for count in range(10, 19)}
    assert turned == right | {(Rule(least, count), Rule(most, count)) for count in range(4, 9)}


def test_spoiled_responses_follow_the_rules_all_the_same(made):
    rows, texts = list(made.spoiled(60, 0.5)), defaultdict(list)
    for row in rows:
        assert obeys(rules_of(PROMPTS[row["prompt"]]), row["response"])
        texts[row["flaw"], row["score"]].append(row["response"])
    assert {key: len(own) for key, own in texts.items()} == {("repeated.edited", 2): 30, ("foreign.edited", 0): 30}
    assert all(map(repetitive, texts["repeated.edited", 2]))


def test_a_row_says_what_was_asked_and_given():
    prompt = {"id": "a", "prompt": "Describe rain.", "topic": "rain"}
    rules = [Rule("sentences", 2), Rule("contains", ("sea",))]
    row = judge_row(prompt, rules, "broken", "It rains.", "own", evidence=True)
    reason = 'Asked: 2 sentences and the word "sea", on rain; given: 1 sentences and "It rains."; '
    assert row["justification"] == reason + 'missing: 2 sentences and the word "sea".'
    assert (row["score"], row["flaw"]) == (1, "broken.own")
    kept = judge_row(prompt, rules, "kept", "It rains. The sea is grey.", "edited", evidence=False)
    assert (kept["score"], kept["flaw"], kept["justification"]) == (5, "kept.edited", "")
    foreign = judge_row(prompt, rules, "foreign", "I like cake. The sea too.", "edited", evidence=True)
    given = 'given: 2 sentences and the word "sea", on something else; missing: rain.'
    assert foreign["justification"] == f'Asked: 2 sentences and the word "sea", on rain; {given}'
