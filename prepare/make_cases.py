"""Makes groups.jsonl and comparisons.jsonl in data/evaluation and data/tuning: cases for the judge and the meta-judge.

Run from the repository's root: `python -m prepare.make_cases`. No training example comes from these prompts and
answers; a recipe is chosen on the tuning cases and measured on the evaluation cases.
"""

from pathlib import Path

from prepare.construct import Constructor, load_sources
from stages.files import read_jsonl, write_jsonl

SEED = 2024
FOLDER = Path("data")
SETS = {"evaluation": (("evaluation", "families_evaluation"), 72, 120), "tuning": (("families_tuning",), 48, 60)}
"""For each folder below data/: its sets of prompts and answers, and how many groups and comparisons to make."""


def main() -> None:
    for folder, (names, groups, comparisons) in SETS.items():
        prompts = [row for name in names for row in read_jsonl(FOLDER / "prompts" / f"{name}.jsonl")]
        answers = [row for name in names for row in read_jsonl(FOLDER / "answers" / f"{name}.jsonl")]
        constructor = Constructor(load_sources(prompts, answers), SEED)
        rows = list(constructor.groups())
        constructor.random.shuffle(rows)
        write_jsonl(FOLDER / folder / "groups.jsonl", rows[:groups])
        write_jsonl(FOLDER / folder / "comparisons.jsonl", constructor.metajudge_examples(comparisons))


if __name__ == "__main__":
    main()
