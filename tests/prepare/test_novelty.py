"""ROUGE-L against the package rouge-score and a plain table, novelty against brute force, and cases by hand."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from prepare.novelty import Novelty, lcs_length, repetition, words

SCORER = RougeScorer(["rougeL"])
ASCII = st.text(st.characters(max_codepoint=127))
FEW_WORDS = st.lists(st.sampled_from(["the", "The", "a", "cat", "cat,", "42", "isn't", "on_it", "--"])).map(" ".join)


def table_lcs(a, b) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def test_words_of_other_scripts():
    assert words("Ça va? ЁЛКА—это 3 straße") == ["ça", "va", "ёлка", "это", "3", "straße"]
    assert words("¿?! … 🙂 _") == []


@settings(max_examples=60)
@given(a=st.one_of(FEW_WORDS, ASCII), b=st.one_of(FEW_WORDS, ASCII))
def test_words_and_rouge_l_are_those_of_rouge_score(a: str, b: str):
    x, y = words(a), words(b)
    assert x == tokenize(a, None)
    measure = 2 * lcs_length(x, y) / (len(x) + len(y)) if x and y else 0
    assert measure == pytest.approx(SCORER.score(a, b)["rougeL"].fmeasure, abs=1e-12)


@settings(max_examples=60)
@given(
    st.lists(st.text("abcdefgh", max_size=12).map(" ".join), max_size=12), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
)
def test_novelty_is_that_of_brute_force(texts: list[str], threshold: float):
    novelty, before = Novelty(threshold, texts[:2]), [words(text) for text in texts[:2]]
    for text in texts[2:]:
        found = words(text)
        limit = Fraction(str(threshold))
        expected = any(2 * table_lcs(found, other) >= limit * (len(found) + len(other)) for other in before)
        assert novelty.similar(text) == expected
        if not expected:
            novelty.add(text)
            before.append(found)


@pytest.mark.parametrize("threshold", ["0.1", "0.7"])
def test_the_threshold_itself_is_similar_whatever_floats_make_of_it(threshold):
    met = 0
    for m, n in product(range(1, 25), repeat=2):
        common = Fraction(threshold) * (m + n) / 2
        if common.denominator == 1 and common <= min(m, n):
            met += 1
            a, b = ([f"s{i}" if i < common else f"{side}{i}" for i in range(k)] for side, k in (("a", m), ("b", n)))
            novelty = Novelty(float(threshold), [" ".join(a)])
            assert novelty.similar(" ".join(b)) and not novelty.similar(" ".join([*b, "b"]))
    assert met > 5 and not Novelty(float(threshold)).similar("a text without others")


def test_repetition_by_hand():
    assert repetition("one two") == repetition("") == 0
    assert repetition("a b c d e") == 0
    assert repetition("Ha ha, ha HA ha!") == Fraction(2, 3)  # "ha ha ha" three times
    assert repetition("a b c A b c") == Fraction(1, 4)  # abc, bca, cab, and abc again
