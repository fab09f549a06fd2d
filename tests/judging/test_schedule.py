"""Scheduled comparisons: all, a balanced share, near scores."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import judgments
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from judging.schedule import balanced_edges, comparable_groups, scheduled
from stages.settings import Metajudge


def rows(*scores) -> list[dict]:
    return judgments("p1/r0", scores)


def pairs(scores, meta: Metajudge, seed: int = 0) -> list[tuple[int, int]]:
    return [(a["index"], b["index"]) for a, b in scheduled(scores, meta, seed)]


def components(size: int, edges) -> tuple[int, list[int]]:
    """How many parts the graph has, and the part of each node."""
    graph = coo_array(([1] * len(edges), tuple(zip(*edges, strict=True)) or ([], [])), shape=(size, size))
    return connected_components(graph, directed=False)


@settings(max_examples=30)
@given(st.integers(2, 24), st.integers(1, 12), st.integers(0, 10**9))
def test_a_balanced_share(size: int, half: int, seed: int):
    degree = 2 * half
    edges = balanced_edges(size, degree, random.Random(seed))
    met = Counter(frozenset(edge) for edge in edges)
    assert all(len(edge) == 2 for edge in met) and max(met.values()) == 1
    assert Counter(m for edge in edges for m in edge) == {m: min(degree, size - 1) for m in range(size)}
    assert components(size, edges)[0] == 1


@pytest.mark.parametrize("opponents", [0, 2, 4, 8])
def test_each_judgment_is_shown_first_and_second_equally_often(opponents: int):
    ask = Metajudge(opponents=opponents)
    asked, count = pairs(rows(*[3] * 11), ask, 7), opponents or 10  # 0: all ordered pairs, as in the paper
    assert len(asked) == len(set(asked)) == 11 * count
    assert set(asked) == {(n, m) for m, n in asked}
    assert Counter(m for m, _ in asked) == Counter(n for _, n in asked) == {m: count for m in range(11)}
    assert asked == sorted(asked)  # pairs with the same first judgment are adjacent, so its prefix is computed once
    shares = {tuple(pairs(rows(*[3] * 11), ask, seed)) for seed in range(20)}
    assert len(shares) > 15 if opponents else len(shares) == 1


def test_near_scores_by_hand():
    scores = rows(5, 3, 4, 1, 3)
    assert pairs(scores, Metajudge(max_score_gap=0)) == [(1, 4), (4, 1)]
    near = {(0, 2), (1, 2), (1, 4), (2, 4)}
    assert set(pairs(scores, Metajudge(max_score_gap=1))) == near | {(n, m) for m, n in near}
    assert comparable_groups(scores, Metajudge()) == [[0, 1, 2, 3, 4]]
    assert comparable_groups(scores, Metajudge(max_score_gap=0)) == [[3], [1, 4], [2], [0]]
    assert comparable_groups(scores, Metajudge(max_score_gap=1)) == [[3], [0, 1, 2, 4]]
    # 4.1 and 4.3 are 1/5 apart, exactly: the difference of the nearest doubles is more.
    assert len(pairs(rows(4.1, 4.3), Metajudge(max_score_gap=0.2))) == 2 and 4.3 - 4.1 > 0.2


@settings(max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.integers(0, 8))
def test_comparable_groups_are_what_comparisons_connect(quarters, gap):
    scores, meta = rows(*[quarter / 4 for quarter in quarters]), Metajudge(max_score_gap=gap / 4)
    near = {(m, n) for m, a in enumerate(quarters) for n, b in enumerate(quarters) if abs(a - b) <= gap}
    asked = pairs(scores, meta)
    assert set(asked) == {(m, n) for m, n in near if m != n}
    _, part = components(len(scores), asked)
    expected = {frozenset(i for i in range(len(scores)) if part[i] == p) for p in part}
    assert {frozenset(group) for group in comparable_groups(scores, meta)} == expected
