"""The workloads: texts and lengths. Another file that defines the same names may take the place of this one.

`FLAT`: a response to each prompt. `LOOP`: also judgments of each response. End tokens are ignored, so that every
program does the same work. `pairs`: for training.
"""

import random
from pathlib import Path

from judging.rubric import judge_prompt
from stages.files import read_jsonl

SAMPLING = {"temperature": 0.8, "top_p": 0.95}
FLAT = {"prompts": 64, "new_tokens": 64}
LOOP = {"prompts": 8, "responses": 4, "response_tokens": 64, "judgments": 4, "judgment_tokens": 96}
JUDGE = judge_prompt("{prompt}", "{response}", "full", "last")[0]["content"]
"""The judge's message; {prompt} and {response} are replaced, in this order."""


def prompts(count: int) -> list[str]:
    """The first `count` prompts of at most 400 characters."""
    rows = read_jsonl(Path(__file__).parents[2] / "data" / "prompts" / "evaluation.jsonl")
    return [row["prompt"] for row in rows if len(row["prompt"]) <= 400][:count]


def pairs(count: int = 32, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 20 to 60 words as prompts, of 40 to 200 words as chosen and rejected; words drawn from the prompts."""
    draw, words = random.Random(seed), " ".join(prompts(200)).split()
    sizes = {"prompt": (20, 60), "chosen": (40, 200), "rejected": (40, 200)}
    return [
        {name: " ".join(draw.choices(words, k=draw.randint(*size))) for name, size in sizes.items()}
        for _ in range(count)
    ]
