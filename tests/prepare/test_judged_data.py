"""The judged prompts in data/judged: schema, balance of scores, and no cue to a score in length or opening."""

import re
from pathlib import Path

import numpy as np
import pytest

from evaluation.statistics import spearman
from stages.files import read_jsonl

FOLDER = Path(__file__).parents[2] / "data" / "judged"
SIZES = {"train": 150, "held_out": 40}
FLAWS = (
    "none minor wrong_fact wrong_tone ignored_constraint off_topic partial vague rambling refusal repetition cut_off"
)
FLAWS = {*FLAWS.split(), "wrong_task", "incoherent"}
LIST_START = re.compile(r"(?:[-*]|1[.)]) ")


def load(name: str) -> list[dict]:
    return list(read_jsonl(FOLDER / f"{name}.jsonl"))


def responses(name: str) -> list[dict]:
    return [response for record in load(name) for response in record["responses"]]


@pytest.mark.parametrize("name", SIZES)
def test_records(name):
    records = load(name)
    assert len(records) == SIZES[name]
    for record in records:
        assert set(record) == {"id", "prompt", "category", "responses"}
        assert record["prompt"].strip() == record["prompt"] != ""
        scores = [response["score"] for response in record["responses"]]
        assert 4 <= len(scores) == len(set(scores)) <= 5, record["id"]


@pytest.mark.parametrize("name", SIZES)
def test_responses(name):
    for response in responses(name):
        text, evidence = response["text"], response["evidence"]
        assert set(response) == {"text", "score", "flaw", "evidence"}
        assert type(response["score"]) is int and 0 <= response["score"] <= 5
        assert response["flaw"] in FLAWS and (response["flaw"] == "none") == (response["score"] == 5)
        assert text.strip() == text and 10 <= len(text.split()) <= 90, text
        assert not re.search(r"^\W*(score|winner)\b", text, re.IGNORECASE | re.MULTILINE), "a verdict within the data"
        assert set(evidence) == {"asked", "given", "missing"}
        for part, phrase in evidence.items():
            empty = part == "missing" and response["score"] == 5
            assert phrase == "" if empty else 3 <= len(phrase.split()) <= 10, (part, phrase)
            assert phrase == phrase.strip().rstrip(".;") and "\n" not in phrase


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("length", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_scores_are_balanced_and_length_says_nothing(name, length):
    scores = [response["score"] for response in responses(name)]
    counts = np.bincount(scores, minlength=6)
    assert len(counts) == 6 and counts.min() >= 0.12 * counts.sum()
    assert abs(spearman([length(response["text"]) for response in responses(name)], scores)) < 0.1


@pytest.mark.parametrize("name", SIZES)
def test_best_response_is_often_short(name):
    def short(record: dict) -> bool:
        by_length = sorted(record["responses"], key=lambda response: len(response["text"]))
        return max(r["score"] for r in by_length[:2]) == max(r["score"] for r in by_length)

    assert 0.4 <= np.mean([short(record) for record in load(name)]) <= 0.6


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("opening", [lambda text: text.startswith("Sure"), LIST_START.match], ids=["sure", "list"])
def test_openings_say_nothing(name, opening):
    def share(scores: set[int]) -> float:
        return float(np.mean([bool(opening(r["text"])) for r in responses(name) if r["score"] in scores]))

    assert share({0, 1, 2}) > 0.05 and share({3, 4, 5}) > 0.05
    assert abs(share({0, 1, 2}) - share({3, 4, 5})) < 0.06


def test_nothing_is_shared():
    records = [record for name in SIZES for record in load(name)]
    for values in (
        [record["id"] for record in records],
        [record["prompt"].casefold() for record in records],
        [response["text"] for record in records for response in record["responses"]],
    ):
        assert len(values) == len(set(values))
