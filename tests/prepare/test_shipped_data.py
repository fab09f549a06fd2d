"""The prompts in data/prompts and the judged ones in data/judged: fields, balance, no cue to a score."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from evaluation.statistics import spearman
from prepare.construct import prompt_file
from stages.files import read_jsonl

DATA = Path(__file__).parents[2] / "data"
COUNTS = {"train": 400, "evaluation": 96, "families": 2200, "families_tuning": 200, "families_evaluation": 240}
TRAINING, EVALUATION = ("train", "families"), ("evaluation", "families_evaluation")
FIELDS = ("id", "prompt", "category", "topic")
PROMPTS = {name: list(read_jsonl(DATA / prompt_file(name), FIELDS)) for name in COUNTS}
SIZES = {"train": 150, "held_out": 40}
JUDGED = {name: list(read_jsonl(DATA / f"judged/{name}.jsonl")) for name in SIZES}
RESPONSES = {name: [response for row in rows for response in row["responses"]] for name, rows in JUDGED.items()}
FLAWS = """none minor wrong_fact wrong_tone ignored_constraint off_topic partial vague rambling refusal repetition
cut_off wrong_task incoherent"""


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def repeated(values) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_fields(name):
    assert len(PROMPTS[name]) == COUNTS[name]
    for row in PROMPTS[name]:
        assert set(row) == ({*FIELDS, "family"} if name.startswith("families") else set(FIELDS))
        assert all(isinstance(value, str) and value and value == value.strip() for value in row.values())
        assert 5 <= len(row["prompt"].split()) <= 90
        assert not re.search(r"\{\w+\}", row["prompt"]), "a placeholder was left unfilled"


def test_nothing_is_shared():
    for field in ("id", "prompt"):
        assert repeated(row[field] for rows in PROMPTS.values() for row in rows) == []
        assert repeated(row[field].casefold() for rows in JUDGED.values() for row in rows) == []
    assert repeated(response["text"] for own in RESPONSES.values() for response in own) == []
    hand_written = PROMPTS["train"] + PROMPTS["evaluation"]
    assert repeated(row["topic"] for row in hand_written) == []
    bags = [set(words(row["prompt"])) for row in hand_written]
    assert not any(len(x & y) >= 0.7 * len(x | y) for x, y in combinations(bags, 2)), "nearly alike"


def test_evaluation_topics_do_not_occur_in_training():
    """Not as a topic, and not as a phrase anywhere in a training prompt."""
    rows = [row for name in TRAINING for row in PROMPTS[name]]
    training = "\n".join(f" {' '.join(words(row[key]))} " for row in rows for key in ("topic", "prompt"))
    topics = {re.sub("^(a|an|the) ", "", row["topic"].lower()) for name in EVALUATION for row in PROMPTS[name]}
    assert [topic for topic in topics if f" {' '.join(words(topic))} " in training] == []


def test_four_evaluation_categories_and_all_evaluation_families_do_not_occur_in_training():
    training = {row["category"] for name in TRAINING for row in PROMPTS[name]}
    unseen = Counter(row["category"] for row in PROMPTS["evaluation"] if row["category"] not in training)
    assert len(unseen) == 4 and unseen.total() == 32
    families = [{row["family"] for row in PROMPTS[f"families{n}"]} for n in ("", "_tuning", "_evaluation")]
    assert list(map(len, families)) == [44, 4, 8] and len(set.union(*families)) == 56
    rows = PROMPTS["families"] + PROMPTS["families_tuning"]
    for own, field in ((PROMPTS["train"], "category"), (rows, "family"), (rows, "topic")):
        uses = Counter(row[field] for row in own).values()
        assert max(uses) <= 1.25 * min(uses), field


@pytest.mark.parametrize("name", SIZES)
def test_judged_records(name):
    assert len(JUDGED[name]) == SIZES[name]
    for record in JUDGED[name]:
        assert set(record) == {"id", "prompt", "category", "responses"}
        assert record["prompt"].strip() == record["prompt"] != ""
        scores = [response["score"] for response in record["responses"]]
        assert 4 <= len(scores) == len(set(scores)) <= 5, record["id"]
    for response in RESPONSES[name]:
        text, evidence, score = response["text"], response["evidence"], response["score"]
        assert set(response) == {"text", "score", "flaw", "evidence"}
        assert type(score) is int and 0 <= score <= 5
        assert response["flaw"] in FLAWS.split() and (response["flaw"] == "none") == (score == 5)
        assert text.strip() == text and 10 <= len(text.split()) <= 90, text
        assert not re.search(r"^\W*(score|winner)\b", text, re.IGNORECASE | re.MULTILINE), "a verdict within the data"
        assert set(evidence) == {"asked", "given", "missing"}
        for part, phrase in evidence.items():
            empty = part == "missing" and score == 5
            assert phrase == "" if empty else 3 <= len(phrase.split()) <= 10, (part, phrase)
            assert phrase == phrase.strip().rstrip(".;") and "\n" not in phrase


@pytest.mark.parametrize("name", SIZES)
def test_scores_are_balanced_and_neither_length_nor_opening_says_anything(name):
    texts, scores = zip(*((response["text"], response["score"]) for response in RESPONSES[name]), strict=True)
    counts = np.bincount(scores, minlength=6)
    assert len(counts) == 6 and counts.min() >= 0.12 * counts.sum()
    for length in (len, lambda text: len(text.split())):
        assert abs(spearman([*map(length, texts)], scores)) < 0.1
    for opening in ("Sure", r"(?:[-*]|1[.)]) "):
        begins = np.array([bool(re.match(opening, text)) for text in texts])
        low, high = begins[np.array(scores) <= 2].mean(), begins[np.array(scores) >= 3].mean()
        assert min(low, high) > 0.05 and abs(low - high) < 0.06
