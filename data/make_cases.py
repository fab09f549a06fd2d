"""Makes data/evaluation/groups.jsonl and comparisons.jsonl: held-out cases for the judge and the meta-judge.

Run from the repository's root: `python data/make_cases.py`. Prompts, topics and answers are those of
prompts/evaluation.jsonl, which no training example comes from.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from files import read_jsonl, write_jsonl
from judging.construct import Constructor, load_sources

SEED = 2024
GROUPS, COMPARISONS = 40, 96


def main() -> None:
    folder = Path("data/evaluation")
    prompts = read_jsonl("data/prompts/evaluation.jsonl", ("id", "prompt", "category", "topic"))
    constructor = Constructor(load_sources(prompts, read_jsonl(folder / "answers.jsonl")), SEED)
    groups = list(constructor.groups())
    write_jsonl(folder / "groups.jsonl", groups[:: max(1, len(groups) // GROUPS)][:GROUPS])
    write_jsonl(folder / "comparisons.jsonl", constructor.metajudge_examples(COMPARISONS))


if __name__ == "__main__":
    main()
