"""Prompts with rules that code checks: data/prompts/ruled.toml's requests, topics and wordings, put together by seed.

The `UNTRAINED` rules are for evaluation alone.
"""

import random
from collections.abc import Iterable
from itertools import cycle
from typing import Any

from judging.rules import RULES, Rule
from stages.records import Record

UNTRAINED = {"numbered", "ends_with", "upper_case", "lacks", "alphabet"}
NUMBERS = {word: number for number, word in enumerate(("one", "two", "three", "four", "five"), 1)}
PAIRS = """contains words_at_most; starts_with sentences; lower_case words_at_most; no_commas words_at_least;
bullets lower_case; contains sentences; no_commas starts_with; contains lower_case; bullets no_commas"""
TOGETHER = [tuple(pair.split()) for pair in PAIRS.split(";")]  # rules that can stand in one prompt


def ruled_prompts(
    source: Record, topics: dict[str, list[str]], letter: str, count: int, tuning: bool, wordings: Iterable[str]
) -> list[Record]:
    """`count` prompts {id, prompt, category, topic, request, rules: [{rule, PARAMETER: value}]}, a fifth of them with
    two rules; `request` is the prompt without its rules.

    `source` is the parsed TOML file, `wordings` which of its lists put a rule into words. `tuning` prompts have each
    group's last request and last three topics, which the others do without.
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
        prompt = request = one_of(requests, 1).replace("{topic}", topic)
        rules = []
        for name in chosen:
            rule = source["rules"][name]
            wording = draw.choice([wording for kind in wordings for wording in rule[kind]])
            value = draw.choice(rule["values"])
            prompt = _with_rule(prompt, wording, value)
            parameter, given = RULES[name][0], {"words": [value], "count": NUMBERS.get(str(value), value)}
            rules.append({"rule": name} | ({parameter: given.get(parameter, value)} if parameter else {}))
        row = {"id": f"{letter}{len(rows) + 1:04d}", "prompt": prompt, "category": "ruled", "topic": topic}
        rows.setdefault(prompt, row | {"request": request, "rules": rules})
    return list(rows.values())


def reworded(request: str, rules: Iterable[Rule], source: Record, draw: random.Random) -> str:
    """The request with these rules in other words, none of them for tuning."""
    for rule in rules:
        name, words = rule.name, source["rules"][rule.name]
        value: Any = rule.value
        if name in ("sentences", "bullets"):
            value = {number: word for word, number in NUMBERS.items()}.get(value, value)
        elif name == "contains":
            (value,) = value
        request = _with_rule(request, draw.choice(words["wordings"] + words["rewordings"]), value or "")
    return request


def _with_rule(prompt: str, wording: str, value: Any) -> str:
    """The prompt with a rule in words."""
    keys = [f'"{key}"' for key in value] if isinstance(value, list | tuple) else [str(value)]
    text = wording.replace("{value}", " and ".join(keys)).replace("{s}", "" if value == "one" else "s")
    if "JSON" in text and len(keys) == 1:
        text = text.replace("keys", "key")
    return f"{text} {prompt}" if text.endswith(":") else f"{prompt} {text}"
