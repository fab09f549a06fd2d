"""Files of prompts {id, prompt}: the pool, and seeds for a new one: `python -m prepare.pool --config C --count 3200`.

The command writes `prompts.seeds`: first questions of `eft.sources` with at least two ranked answers, as Self-Rewarding
(arXiv 2401.10020) took 3,200 from OpenAssistant.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from judging.rules import rules_of
from prepare.eft import read_sources
from stages.command import UserError, arguments, command
from stages.files import write_jsonl
from stages.records import Record
from stages.rows import PROMPT, rows_by_id
from stages.settings import Settings, load_settings


def draw_prompts(paths: Sequence[Path], settings: Settings) -> list[list[Record]]:
    """The prompts of each iteration, drawn from the files in an order that the seed decides; none comes twice. Raises
    `UserError` for a wrong prompt or rule."""
    rows = rows_by_id(*paths, prompt=PROMPT).values()
    for row in rows:
        rules_of(row.content, row.where)  # which are needed once all is generated
    pool = [row.content for row in rows]
    random.Random(settings.seed).shuffle(pool)
    size, iterations = settings.respond.prompts_per_iteration, len(settings.iteration)
    if len(pool) < iterations * size:
        listed = ", ".join(map(str, paths))
        raise UserError(f"{listed}: {len(pool)} prompts, but the iterations need {iterations * size}; add prompts")
    return [pool[t * size : (t + 1) * size] for t in range(iterations)]


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
    given = arguments(__doc__, "config", count={"type": int, "help": "how many; default: all"})
    settings = load_settings(given.config)
    if not settings.eft.sources or not settings.prompts.seeds:
        raise UserError(f"{given.config}: eft.sources and prompts.seeds must both name files")
    path = Path(settings.prompts.seeds)
    if path.exists():
        raise UserError(f"{path}: exists already; remove it, or keep it and leave this command out")
    write_jsonl(path, rows := seed_prompts(settings, given.count))
    print(f"{path}: {len(rows)} prompts")


if __name__ == "__main__":
    command(main)
