"""Prompts with rules, and responses to them that code has labelled."""

import random
from collections import Counter
from pathlib import Path

import pytest

from judging.rules import RULES, Rule, obeys, rules_of
from prepare.near_misses import EDITS, edited, judge_row, near_miss_pairs, ruled_rows
from prepare.ruled import TOGETHER
from stages.files import read_jsonl

PROMPTS = {name: list(read_jsonl(Path("data/prompts") / f"{name}.jsonl")) for name in ("ruled", "ruled_tuning")}
TEXT = """A compass has a small needle, and it shows where north is. People use it on ships, in deserts and in forests.
Because the needle is a magnet, it turns until it points north! A friend of mine has one today."""
UNTRAINED = {"numbered", "ends_with", "upper_case", "lacks", "alphabet"}
VALUES = {"words_at_most": 14, "words_at_least": 30, "sentences": 2, "bullets": 3, "contains": ("window",)}
VALUES |= {"starts_with": "In short", "json": ("name", "text")}


def test_rules_and_wordings_are_kept_apart():
    assert {entry["rule"] for rows in PROMPTS.values() for row in rows for entry in row["rules"]} == set(EDITS)
    assert set(RULES) - set(EDITS) == UNTRAINED
    train, tuning = PROMPTS.values()
    assert (len(train), len(tuning)) == (1600, 200) and not {r["topic"] for r in train} & {r["topic"] for r in tuning}
    for rows in PROMPTS.values():
        rules = [tuple(entry["rule"] for entry in row["rules"]) for row in rows]
        singles = Counter(own for own in rules if len(own) == 1)
        assert len(singles) == 10 and min(singles.values()) > 0.7 * max(singles.values())
        assert {own for own in rules if len(own) == 2} == set(TOGETHER)
        assert len({row["prompt"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", EDITS)
def test_edits_reach_both_verdicts(name):
    """An edited text follows its rule, or breaks it, as was asked; the edits seldom fail, and texts vary."""
    rule = Rule(name, VALUES.get(name))
    for obey in (True, False):
        texts = [edited([rule], TEXT, obey, random.Random(seed)) for seed in range(40)]
        made = [text for text in texts if text]
        assert len(made) >= 20 and all(obeys([rule], text) is obey for text in made)


def test_rows_reveal_no_score():
    """For each rule as many follow as not, as many edited as not, and a share of them with evidence."""
    prompts = PROMPTS["ruled"][:200]
    answers = [{"prompt_id": row["id"], "text": TEXT} for row in prompts] * 2
    answers += [{"prompt_id": row["id"], "text": TEXT.lower().replace(",", "")} for row in prompts]
    rows = list(ruled_rows(near_miss_pairs(prompts, answers, 390, 0), 0.5, 0))
    flaws, by_prompt = Counter(row["flaw"] for row in rows), {row["prompt"]: row for row in prompts}
    assert min(flaws.values()) > 60
    scores = Counter((tuple(r.name for r in rules_of(by_prompt[row["prompt"]])), row["score"]) for row in rows)
    assert len(scores) == 2 * 19 and all(scores[name, 5] == scores[name, 1] for name, _ in scores)
    assert all((row["score"] == 5) is obeys(rules_of(by_prompt[row["prompt"]]), row["response"]) for row in rows)
    assert 0.4 < sum(bool(row["justification"]) for row in rows) / len(rows) < 0.6
    assert (
        rows
        == list(ruled_rows(near_miss_pairs(prompts, answers, 390, 0), 0.5, 0))
        != list(ruled_rows(near_miss_pairs(prompts, answers, 390, 1), 0.5, 1))
    )


def test_a_row_says_what_was_asked_and_given():
    prompt = {"id": "a", "prompt": "Describe rain.", "topic": "rain"}
    prompt["rules"] = [{"rule": "sentences", "count": 2}, {"rule": "contains", "words": ["sea"]}]
    row = judge_row(prompt, "It rains.", "own", evidence=True)
    reason = 'Asked: 2 sentences and the word "sea", on rain; given: 1 sentences and "It rains."; '
    assert row["justification"] == reason + 'missing: 2 sentences and the word "sea".'
    assert (row["score"], row["flaw"]) == (1, "broken.own")
    kept = judge_row(prompt, "It rains. The sea is grey.", "edited", evidence=False)
    assert (kept["score"], kept["flaw"], kept["justification"]) == (5, "kept.edited", "")
