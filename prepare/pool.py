"""The pool of prompts, and each iteration's share."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from stages.files import UserError, read_jsonl
from stages.settings import Settings


def draw_prompts(path: Path, settings: Settings) -> list[list[dict[str, Any]]]:
    """The prompts {id, prompt} of each iteration, drawn from the file `path`; no two iterations share one.

    The seed decides the order. Raises `UserError` for an id or prompt that is not a text, a repeated id, and too small
    a pool.
    """
    pool = list(read_jsonl(path, ("id", "prompt")))
    for row in pool:
        if not isinstance(row["id"], str) or not isinstance(row["prompt"], str):
            raise UserError(f"{path}: id {row['id']!r}: id and prompt must be texts; put quotes around them")
    repeated = [name for name, count in Counter(row["id"] for row in pool).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: id {repeated[0]!r} comes twice; give each prompt its own")
    random.Random(settings.seed).shuffle(pool)
    size, iterations = settings.respond.prompts_per_iteration, len(settings.iteration)
    if len(pool) < iterations * size:
        raise UserError(f"{path}: {len(pool)} prompts, but the iterations need {iterations * size}; add prompts")
    return [pool[t * size : (t + 1) * size] for t in range(iterations)]
