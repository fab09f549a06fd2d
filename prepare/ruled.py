"""Prompts with rules that code checks: data/prompts/ruled.toml's requests, topics and wordings, put together by seed.

The `UNTRAINED` rules are for evaluation alone.
"""

import random
from itertools import cycle
from typing import Any

from judging.rules import RULES
from stages.records import Record

UNTRAINED = {"numbered", "ends_with", "upper_case", "lacks", "alphabet"}
NUMBERS = {word: number for number, word in enumerate(("one", "two", "three", "four", "five"), 1)}
PAIRS = """contains words_at_most; starts_with sentences; lower_case words_at_most; no_commas words_at_least;
bullets lower_case; contains sentences; no_commas starts_with; contains lower_case; bullets no_commas"""
TOGETHER = [tuple(pair.split()) for pair in PAIRS.split(";")]  # rules that can stand in one prompt


def ruled_prompts(source: Record, topics: dict[str, list[str]], letter: str, count: int, tuning: bool) -> list[Record]:
    """`count` prompts {id, prompt, category, topic, rules: [{rule, PARAMETER: value}]}, a fifth of them with two rules.

    `source` is the parsed TOML file. `tuning` prompts have each group's last request and last three topics, and each
    rule's last wording, which the others do without.
    """
    draw = random.Random(f"ruled {letter}")
    rows: dict[str, Record] = {}
    names, pairs = cycle(source["rules"]), cycle(TOGETHER)

    def one_of(items: list[Any], last: int) -> Any:
        return draw.choice(items[-last:] if tuning else items[:-last])

    while len(rows) < count:
        chosen = next(pairs) if len(rows) % 5 == 4 else (next(names),)
        group = draw.choice(list(source["requests"]))
        requests = source["one_word"]["requests"] if chosen == ("one_word",) else source["requests"][group]
        topic = one_of(topics[group], 3)
        prompt, rules = one_of(requests, 1).replace("{topic}", topic), []
        for name in chosen:
            rule = source["rules"][name]
            prompt, entry = _with_rule(prompt, name, one_of(rule["wordings"], 1), draw.choice(rule["values"]))
            rules.append(entry)
        row = {"id": f"{letter}{len(rows) + 1:04d}", "prompt": prompt, "category": "ruled", "topic": topic}
        rows.setdefault(prompt, row | {"rules": rules})
    return list(rows.values())


def _with_rule(prompt: str, name: str, wording: str, value: Any) -> tuple[str, Record]:
    """The prompt with a rule in words, and the rule's entry."""
    shown = " and ".join(f'"{key}"' for key in value) if isinstance(value, list) else str(value)
    text = wording.replace("{value}", shown).replace("{s}", "" if value == "one" else "s")
    if name == "json" and len(value) == 1:
        text = text.replace("keys", "key")
    prompt = f"{text} {prompt}" if text.endswith(":") else f"{prompt} {text}"
    parameter = RULES[name][0]
    given = {"words": [value], "count": NUMBERS.get(value, value) if isinstance(value, str) else value}
    return prompt, {"rule": name} | ({parameter: given.get(parameter, value)} if parameter else {})
