"""Seed prompts from people's conversations: `python -m prepare.seed_prompts --config C --count 3200`.

Writes `prompts.seeds`: the first questions of `eft.sources` with at least two ranked answers. Self-Rewarding (arXiv
2401.10020) took 3,200 first turns in English from OpenAssistant.
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

from prepare.eft import read_sources
from stages.files import UserError, command, write_jsonl
from stages.settings import Settings, load_settings


def seed_prompts(settings: Settings, count: int | None = None) -> list[dict[str, str]]:
    """{id, prompt} of each different first question, in the files' order; or `count` of them, drawn by seed."""
    questions: dict[str, str] = {}
    for group in read_sources(replace(settings.eft, max_turns=1))[0]:
        questions.setdefault(group.prompt.strip(), group.id)
    rows = [{"id": name, "prompt": text} for text, name in questions.items()]
    if count is not None and count > len(rows):
        raise UserError(f"eft.sources: only {len(rows)} first questions, but {count} are wanted; lower --count")
    chosen = random.Random(settings.seed).sample(range(len(rows)), len(rows) if count is None else count)
    return [rows[i] for i in sorted(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write prompts.seeds: first questions of the conversations in [eft].")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--count", type=int, help="how many; default: all")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    if not settings.eft.sources or not settings.prompts.seeds:
        raise UserError(f"{arguments.config}: eft.sources and prompts.seeds must both name files")
    path = Path(settings.prompts.seeds)
    if path.exists():
        raise UserError(f"{path}: exists already; remove it, or keep it and leave this command out")
    write_jsonl(path, rows := seed_prompts(settings, arguments.count))
    print(f"{path}: {len(rows)} prompts")


if __name__ == "__main__":
    command(main)
