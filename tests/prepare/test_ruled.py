"""Training prompts with rules: five rules are never trained on, and tuning prompts have words of their own."""

from collections import Counter
from pathlib import Path

from judging.rules import RULES, rules_of
from prepare.construct import prompt_file
from prepare.ruled import TOGETHER
from stages.files import read_jsonl

PROMPTS = {name: list(read_jsonl(Path("data") / prompt_file(name))) for name in ("ruled", "ruled_tuning")}
UNTRAINED = {"numbered", "ends_with", "upper_case", "lacks", "alphabet"}


def test_rules_and_wordings_are_kept_apart():
    train, tuning = PROMPTS.values()
    assert (len(train), len(tuning)) == (2000, 200) and not {r["topic"] for r in train} & {r["topic"] for r in tuning}
    for rows in PROMPTS.values():
        rules = [tuple(rule.name for rule in rules_of(row)) for row in rows]
        assert {name for own in rules for name in own} == set(RULES) - UNTRAINED
        singles = Counter(own for own in rules if len(own) == 1)
        assert len(singles) == 10 and min(singles.values()) > 0.7 * max(singles.values())
        assert {own for own in rules if len(own) == 2} == set(TOGETHER)
        assert len({row["prompt"] for row in rows}) == len(rows)
