"""Scheduled comparisons: all, a balanced share, near scores."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import judgments
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from judging.schedule import balanced_edges, comparable_groups, schedule_seed, scheduled
from stages.settings import Metajudge


def rows(*scores) -> list[dict]:
    return judgments("p1/r0", scores)


def places(pairs) -> list[tuple[int, int]]:
    return [(a["index"], b["index"]) for a, b in pairs]


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
    assert edges == balanced_edges(size, degree, random.Random(seed))


def test_the_share_depends_on_the_seed():
    shares = [frozenset(map(frozenset, balanced_edges(11, 4, random.Random(seed)))) for seed in range(20)]
    assert len(set(shares)) > 15
    seeds = {schedule_seed(seed, t, name) for seed in (0, 1) for t in (1, 2) for name in ("p1/r0", "p1/r1")}
    assert len(seeds) == 8


@pytest.mark.parametrize("opponents", [0, 2, 4, 8])
def test_each_judgment_is_shown_first_and_second_equally_often(opponents: int):
    pairs = places(scheduled(rows(*[3] * 11), Metajudge(opponents=opponents), 7))
    count = opponents or 10  # 0: all ordered pairs, as in the paper
    assert len(pairs) == len(set(pairs)) == 11 * count
    assert set(pairs) == {(n, m) for m, n in pairs}
    assert Counter(m for m, _ in pairs) == Counter(n for _, n in pairs) == {m: count for m in range(11)}
    assert pairs == sorted(pairs)  # pairs with the same first judgment are adjacent, so its prefix is computed once


def test_near_scores_by_hand():
    scores = rows(5, 3, 4, 1, 3)
    assert places(scheduled(scores, Metajudge(max_score_gap=0), 0)) == [(1, 4), (4, 1)]
    near = {(0, 2), (1, 2), (1, 4), (2, 4)}
    assert set(places(scheduled(scores, Metajudge(max_score_gap=1), 0))) == near | {(n, m) for m, n in near}
    assert comparable_groups(scores, Metajudge()) == [[0, 1, 2, 3, 4]]
    assert comparable_groups(scores, Metajudge(max_score_gap=0)) == [[3], [1, 4], [2], [0]]
    assert comparable_groups(scores, Metajudge(max_score_gap=1)) == [[3], [0, 1, 2, 4]]
    # 4.1 and 4.3 are 1/5 apart, exactly: the difference of the nearest doubles is more.
    assert len(scheduled(rows(4.1, 4.3), Metajudge(max_score_gap=0.2), 0)) == 2 and 4.3 - 4.1 > 0.2


@settings(max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.integers(0, 8))
def test_comparable_groups_are_what_comparisons_connect(quarters, gap):
    scores, meta = rows(*[quarter / 4 for quarter in quarters]), Metajudge(max_score_gap=gap / 4)
    pairs = places(scheduled(scores, meta, 0))
    near = {(m, n) for m, a in enumerate(quarters) for n, b in enumerate(quarters) if Fraction(abs(a - b)) <= gap}
    assert set(pairs) == {(m, n) for m, n in near if m != n}
    _, part = components(len(scores), pairs)
    expected = {frozenset(i for i in range(len(scores)) if part[i] == p) for p in part}
    assert {frozenset(group) for group in comparable_groups(scores, meta)} == expected
