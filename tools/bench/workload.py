"""The workloads: texts and lengths. Another file that defines the same names may take the place of this one.

`FLAT`: one response to each prompt. `LOOP`, as in an iteration: K responses to each prompt, then N judgments of each
response. End tokens are ignored, so that every program does the same work. `pairs`: for training.
"""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

from judging.rubric import judge_prompt
from stages.files import UserError, read_jsonl

WORKLOAD = Path(__file__)
SAMPLING = {"temperature": 0.8, "top_p": 0.95}
FLAT = {"prompts": 64, "new_tokens": 64}
LOOP = {"prompts": 8, "responses": 4, "response_tokens": 64, "judgments": 4, "judgment_tokens": 96}
JUDGE = judge_prompt("{prompt}", "{response}", "full", "last")[0]["content"]
"""The judge's message; {prompt} and {response} are replaced, in this order."""


def load_module(path: Path) -> ModuleType:
    """A Python file as a module. Raises `UserError` where it is missing or not Python."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: not a Python file; name one that defines what tools/bench/workload.py does")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prompts(count: int) -> list[str]:
    """The first `count` prompts of at most 400 characters."""
    rows = read_jsonl(WORKLOAD.parents[2] / "data" / "prompts" / "evaluation.jsonl")
    return [row["prompt"] for row in rows if len(row["prompt"]) <= 400][:count]


def pairs(count: int = 32, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 20 to 60 words as prompts, of 40 to 200 words as chosen and rejected; words drawn from the prompts."""
    draw, words = random.Random(seed), " ".join(prompts(200)).split()
    sizes = {"prompt": (20, 60), "chosen": (40, 200), "rejected": (40, 200)}
    return [
        {name: " ".join(draw.choices(words, k=draw.randint(*size))) for name, size in sizes.items()}
        for _ in range(count)
    ]
