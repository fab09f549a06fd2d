"""Judging data by construction: scores evenly spread, flaws as named, and lengths that say nothing about scores."""

import gzip
import lzma
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.statistics import spearman
from prepare import construct
from prepare.flaws import FLAWS, Constructor, load_sources
from stages.command import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker() -> Constructor:
    """On everything that the default's training examples come from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return construct.constructor(["train", "families"], 3)


@pytest.fixture(scope="module")
def rows(maker):
    return list(maker.judge_examples(4200))


def test_the_command_writes_what_data_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = (*construct.prompt_files(), *construct.sft_files(), *construct.case_files())
    files = {name: list(rows) for name, rows in made}
    monkeypatch.setattr(construct, "DATA", tmp_path)
    construct.write(iter(files.items()))
    assert len(files) == 16
    for name in files:
        committed, written = ((folder / name).read_bytes() for folder in (ROOT / "data", tmp_path))
        if unpack := {".gz": gzip.decompress, ".xz": lzma.decompress}.get(Path(name).suffix):
            committed, written = unpack(committed), unpack(written)  # versions of the libraries compress differently
        assert committed == written, name


def test_scores_are_even_and_lengths_say_nothing(rows):
    assert set(Counter(row["score"] for row in rows).values()) == {700}
    assert {row["flaw"] for row in rows} == set(FLAWS)
    for length in (len, lambda text: len(text.split())):
        assert abs(spearman([length(row["response"]) for row in rows], [row["score"] for row in rows])) < 0.1
    for row in rows:
        assert row["response"].strip() and FLAWS[row["flaw"]]["score"] == row["score"]
        assert "{" not in row["justification"] and row["justification"].startswith("Asked: ")


def test_openings_formats_and_cuts_say_nothing(rows):
    """Words in disorder have no form; that is the flaw."""
    flaws, scores = np.array([row["flaw"] for row in rows]), np.array([row["score"] for row in rows])
    orderly, low = flaws != "gibberish", scores <= 2
    for form in (r"\W*(Sure|Here)", r"(\d\.|[-*]) ", r'"', r"(?s).*\n(\d\.|[-*]) ", r"(?s).*\*\*"):
        has = np.array([bool(re.match(form, row["response"])) for row in rows])
        shares = has[orderly & low].mean(), has[orderly & ~low].mean()
        assert min(shares) > 0.02 and abs(shares[0] - shares[1]) < 0.06
    ends = np.array([row["response"][-1].isalnum() for row in rows])
    cut = [ends[scores == score].mean() for score in range(6)]
    assert cut[3] > 0.95 and all(0.4 < cut[score] < 0.75 for score in (1, 2)) and cut[4] < 0.25 and cut[5] < 0.25


def test_prompts_that_construction_cannot_use():
    prompt = {"id": 0, "prompt": "q", "category": "songs", "topic": "t"}
    answer = {"prompt_id": 0, "text": "A.", "temperature": 0.2, "finish_reason": "stop"}
    with pytest.raises(UserError, match="prompt 0: unknown category 'songs'"):
        load_sources([prompt], [answer])


def test_a_wrong_judgment_is_further_off_and_positions_are_even(maker):
    rows = list(maker.metajudge_examples(600))
    assert Counter(row["winner"] for row in rows) == {"first": 300, "second": 300}
    lengths, offs = [], Counter()
    for row in rows:
        right, wrong = row["judgments"] if row["winner"] == "first" else reversed(row["judgments"])
        assert row["score"] == FLAWS[row["flaw"]]["score"]
        off = tuple(abs(judgment["score"] - row["score"]) for judgment in (right, wrong))
        assert off == (0, 0) or off[1] - off[0] >= 2
        offs[off == (0, 0)] += 1
        lengths.append(len(right["justification"]) - len(wrong["justification"]))
    assert abs(np.mean(np.sign(lengths))) < 0.15
    assert 0.05 < offs[True] / 600 < 0.25
