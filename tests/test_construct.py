"""Judging data by construction: scores evenly spread, flaws as named, and lengths that say nothing about scores."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.agreement import spearman
from files import read_jsonl
from judging.construct import FLAWS, Constructor, load_sources, sentences

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def sources():
    return load_sources(read_jsonl(DATA / "prompts" / "train.jsonl"), read_jsonl(DATA / "answers.jsonl"))


def test_sentences_keep_the_text():
    text = "One. Two lines\nhere! Version 1.5 stays.\n\n- a list\n- of two"
    assert "".join(sentences(text)) == text
    assert [s.strip() for s in sentences(text)] == [
        "One.",
        "Two lines",
        "here!",
        "Version 1.5 stays.",
        "- a list",
        "- of two",
    ]


def test_scores_are_even_and_lengths_say_nothing(sources):
    rows = list(Constructor(sources, 3).judge_examples(3000))
    assert set(Counter(row["score"] for row in rows).values()) == {500}
    assert abs(spearman([len(row["response"]) for row in rows], [row["score"] for row in rows])) < 0.1
    for row in rows:
        assert row["response"].strip() and FLAWS[row["flaw"]] == row["score"]
        assert "{" not in row["justification"]


def test_a_wrong_judgment_is_far_off_and_positions_are_even(sources):
    rows = list(Constructor(sources, 3).metajudge_examples(600))
    assert Counter(row["winner"] for row in rows) == {"first": 300, "second": 300}
    lengths = []
    for row in rows:
        right, wrong = row["judgments"] if row["winner"] == "first" else reversed(row["judgments"])
        assert right["score"] == FLAWS[row["flaw"]] and abs(right["score"] - wrong["score"]) >= 2
        lengths.append(len(right["justification"]) - len(wrong["justification"]))
    assert abs(np.mean(np.sign(lengths))) < 0.15


def test_a_seed_is_a_data_set(sources):
    assert list(Constructor(sources, 1).judge_examples(20)) == list(Constructor(sources, 1).judge_examples(20))
    assert list(Constructor(sources, 1).judge_examples(20)) != list(Constructor(sources, 2).judge_examples(20))
