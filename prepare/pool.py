"""Files of prompts {id, prompt}: the pool, and each iteration's share of it."""

import random
from pathlib import Path

from stages.files import UserError, read_jsonl
from stages.records import Record
from stages.settings import Settings


def read_prompts(path: Path | str) -> list[Record]:
    """The rows of a file. Raises `UserError` for an id or prompt that is no text or blank, and for a repeated id."""
    rows: dict[str, Record] = {}
    for row in read_jsonl(path, ("id", "prompt")):
        if not all(isinstance(row[key], str) and row[key].strip() for key in ("id", "prompt")):
            raise UserError(f"{path}: id {row['id']!r}: id and prompt must be texts, not blank; mend the line")
        if row["id"] in rows:
            raise UserError(f"{path}: id {row['id']!r} comes twice; give each prompt its own")
        rows[row["id"]] = row
    return list(rows.values())


def draw_prompts(path: Path, settings: Settings) -> list[list[Record]]:
    """The prompts of each iteration, drawn from the file `path` in an order that the seed decides; none comes twice."""
    pool = read_prompts(path)
    random.Random(settings.seed).shuffle(pool)
    size, iterations = settings.respond.prompts_per_iteration, len(settings.iteration)
    if len(pool) < iterations * size:
        raise UserError(f"{path}: {len(pool)} prompts, but the iterations need {iterations * size}; add prompts")
    return [pool[t * size : (t + 1) * size] for t in range(iterations)]
