"""The prompts in data/prompts: counts, fields, no repetition, nothing of the evaluation sets in the training sets."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from stages.files import read_jsonl

FOLDER = Path(__file__).parents[2] / "data" / "prompts"
COUNTS = {"train": 400, "evaluation": 96, "families": 2200, "families_tuning": 200, "families_evaluation": 240}
TRAINING = ("train", "families")
EVALUATION = ("evaluation", "families_evaluation")
FIELDS = ("id", "prompt", "category", "topic")
PROMPTS = {name: list(read_jsonl(FOLDER / f"{name}.jsonl", FIELDS)) for name in COUNTS}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_fields(name):
    rows = PROMPTS[name]
    assert len(rows) == COUNTS[name]
    fields = {*FIELDS, "family"} if name.startswith("families") else set(FIELDS)
    for row in rows:
        assert set(row) == fields
        assert all(isinstance(value, str) and value and value == value.strip() for value in row.values())
        assert 5 <= len(row["prompt"].split()) <= 90
        assert not re.search(r"\{\w+\}", row["prompt"]), "a placeholder was left unfilled"
    assert (FOLDER / f"{name}.jsonl").stat().st_size < 1_000_000


def test_ids_prompts_and_hand_written_topics_are_unique():
    for field in ("id", "prompt"):
        values = Counter(row[field] for rows in PROMPTS.values() for row in rows)
        assert [value for value, count in values.items() if count > 1] == []
    topics = Counter(row["topic"] for name in ("train", "evaluation") for row in PROMPTS[name])
    assert [topic for topic, count in topics.items() if count > 1] == []


def test_hand_written_prompts_are_not_nearly_alike():
    rows = [(row["id"], set(words(row["prompt"]))) for name in ("train", "evaluation") for row in PROMPTS[name]]
    alike = [(a, b) for (a, x), (b, y) in combinations(rows, 2) if len(x & y) >= 0.7 * len(x | y)]
    assert alike == []


def test_evaluation_topics_do_not_occur_in_training():
    """Not as a topic, and not as a phrase anywhere in a training prompt."""
    training = [f" {' '.join(words(row[k]))} " for n in TRAINING for row in PROMPTS[n] for k in ("topic", "prompt")]
    topics = {re.sub("^(a|an|the) ", "", row["topic"].lower()) for name in EVALUATION for row in PROMPTS[name]}
    assert [topic for topic in topics if any(f" {' '.join(words(topic))} " in text for text in training)] == []


def test_four_evaluation_categories_and_all_evaluation_families_do_not_occur_in_training():
    training = {row["category"] for name in TRAINING for row in PROMPTS[name]}
    unseen = Counter(row["category"] for row in PROMPTS["evaluation"] if row["category"] not in training)
    assert len(unseen) == 4
    assert unseen.total() == 32
    training, tuning, evaluation = (
        {row["family"] for row in PROMPTS[f"families{n}"]} for n in ("", "_tuning", "_evaluation")
    )
    assert (len(training), len(tuning), len(evaluation)) == (44, 4, 8)
    assert len(training | tuning | evaluation) == 56


def test_categories_topics_and_families_come_up_about_evenly():
    families = PROMPTS["families"] + PROMPTS["families_tuning"]
    for rows, field in ((PROMPTS["train"], "category"), (families, "family"), (families, "topic")):
        uses = Counter(row[field] for row in rows).values()
        assert max(uses) <= 1.25 * min(uses), field
