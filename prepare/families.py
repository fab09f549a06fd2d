"""Prompts from task families and topics: families.toml -> families.jsonl and families_tuning.jsonl,
families_evaluation.toml -> families_evaluation.jsonl.

Run as `python -m prepare.families`; the result depends only on the TOML files. A family has three wordings and names
the groups of topics that suit it. Families take turns; each takes the topic that it, and then all families, have used
least, so that families, topics and wordings are about equally frequent. The families of TUNING are set apart: a recipe
is chosen on prompts that it does not train on.
"""

import json
import random
import re
import tomllib
from collections import Counter
from pathlib import Path

FOLDER = Path("data/prompts")
SEED = 20240728
SETS = (("families", "f", 2400), ("families_evaluation", "g", 240))  # file name, first letter of the ids, prompts
TUNING = ("titles", "diary", "dos_and_donts", "soften")
WORDS = ("three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = {"few": WORDS, "digit": range(3, 10), "many": range(12, 61)}


def fill(template: str, topic: str, rng: random.Random) -> str:
    """The template with the topic, and a number drawn for each {few}, {digit} and {many}."""
    text = re.sub(r"\{(few|digit|many)\}", lambda match: str(rng.choice(NUMBERS[match[1]])), template)
    return text.replace("{topic}", topic)


def prompts(source: dict, letter: str, count: int) -> list[dict[str, str]]:
    """`count` different prompts {id, prompt, category, topic, family} from `source`, a parsed TOML file."""
    rng = random.Random(SEED)
    used: Counter[tuple[str, ...]] = Counter()
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        names = list(source["families"])
        rng.shuffle(names)
        for name in names[: count - len(rows)]:
            family = source["families"][name]
            topics = [topic for group in family["groups"] for topic in source["topics"][group]]
            choices = [(topic, template) for topic in topics for template in family["templates"]]
            rng.shuffle(choices)
            choices.sort(key=lambda c: (used[name, *c], used[name, c[0]], used[c[0],], used[name, "wording", c[1]]))
            filled = ((topic, template, fill(template, topic, rng)) for topic, template in choices)
            topic, template, prompt = next(candidate for candidate in filled if candidate[2] not in seen)
            seen.add(prompt)
            used.update([(topic,), (name, topic), (name, topic, template), (name, "wording", template)])
            row = {"id": f"{letter}{len(rows) + 1:04d}", "prompt": prompt}
            rows.append({**row, "category": family["category"], "topic": topic, "family": name})
    return rows


def texts(name: str, letter: str, count: int) -> dict[str, str]:
    """Name and content of each file made from `{name}.toml`."""
    source = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    files: dict[str, str] = {}
    for row in prompts(source, letter, count):
        file = "families_tuning.jsonl" if row["family"] in TUNING else f"{name}.jsonl"
        files[file] = files.get(file, "") + json.dumps(row, ensure_ascii=False) + "\n"
    return files


if __name__ == "__main__":
    for item in SETS:
        for file, content in texts(*item).items():
            (FOLDER / file).write_text(content, encoding="utf-8", newline="\n")
