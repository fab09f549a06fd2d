"""Scheduled comparisons: all, a balanced share, near scores; and pairs from near scores by hand."""

import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import CHAT, EVEN, decided, judgments, make_settings, response, take_first

from judging.judge_pairs import Contest, choose_judgments, elo_rows, position_wins
from judging.pairs import judge_pairs
from judging.schedule import balanced_edges, comparable_groups, schedule_seed, scheduled
from judging.scores import Reason
from stages.records import group_by
from stages.settings import Iteration, Metajudge


def rows(*scores) -> list[dict]:
    return judgments("p1/r0", scores)


def places(pairs) -> list[tuple[int, int]]:
    return [(a["index"], b["index"]) for a, b in pairs]


def connected(size: int, edges) -> bool:
    reached, border = {0}, [0]
    while border:
        node = border.pop()
        for m, n in edges:
            for neighbour in {m, n} - reached if node in (m, n) else ():
                reached.add(neighbour)
                border.append(neighbour)
    return len(reached) == size


@given(st.integers(2, 24), st.integers(1, 12), st.integers(0, 10**9))
def test_a_balanced_share(size: int, half: int, seed: int):
    degree = 2 * half
    edges = balanced_edges(size, degree, random.Random(seed))
    met = Counter(frozenset(edge) for edge in edges)
    assert all(len(edge) == 2 for edge in met) and max(met.values()) == 1
    assert Counter(m for edge in edges for m in edge) == {m: min(degree, size - 1) for m in range(size)}
    assert connected(size, edges)
    assert edges == balanced_edges(size, degree, random.Random(seed))


def test_the_share_depends_on_the_seed():
    shares = [frozenset(map(frozenset, balanced_edges(11, 4, random.Random(seed)))) for seed in range(20)]
    assert len(set(shares)) > 15
    seeds = {schedule_seed(seed, t, name) for seed in (0, 1) for t in (1, 2) for name in ("p1/r0", "p1/r1")}
    assert len(seeds) == 8


def test_all_ordered_pairs_are_the_papers():
    everything = places(scheduled(rows(1, 2, 3), Metajudge(), 0))
    assert everything == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert places(scheduled(rows(1, 2, 3), Metajudge(opponents=2), 0)) == everything


@pytest.mark.parametrize("opponents", [2, 4, 8])
def test_each_judgment_is_shown_first_and_second_equally_often(opponents: int):
    pairs = places(scheduled(rows(*[3] * 11), Metajudge(opponents=opponents), 7))
    assert len(pairs) == len(set(pairs)) == 11 * opponents
    assert set(pairs) == {(n, m) for m, n in pairs}
    assert Counter(m for m, _ in pairs) == Counter(n for _, n in pairs) == {m: opponents for m in range(11)}
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


@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.integers(0, 8))
def test_nothing_is_compared_across_comparable_groups(quarters, gap):
    scores = rows(*[quarter / 4 for quarter in quarters])
    meta = Metajudge(max_score_gap=gap / 4)
    pairs, groups = places(scheduled(scores, meta, 0)), comparable_groups(scores, meta)
    group_of = {place: number for number, group in enumerate(groups) for place in group}
    assert sorted(group_of) == list(range(len(scores))) and sum(map(len, groups)) == len(scores)
    assert all(group_of[m] == group_of[n] for m, n in pairs)
    for group in groups:
        number = {place: i for i, place in enumerate(group)}
        assert connected(len(group), [(number[m], number[n]) for m, n in pairs if m in number])
    expected = {
        (m, n) for m, a in enumerate(quarters) for n, b in enumerate(quarters) if m != n and Fraction(abs(a - b)) <= gap
    }
    assert set(pairs) == expected


def test_the_pair_comes_from_the_widest_group():
    """Scores 3 3 5 5: 0 beats 1 once, 2 beats 3 in both orders. The paper's rule would choose 2 and 3 as well, but with
    groups a pair of 2 and 1 is impossible."""
    meta = Metajudge(max_score_gap=0)
    battles = [(0, 1, "first"), (2, 3, "first"), (3, 2, "second")]
    contest = Contest({"id": "p1/r0"}, rows(3, 3, 5, 5), battles)
    choice = choose_judgments(contest, EVEN, meta, Iteration(), take_first)
    assert [row["index"] for row, _ in choice] == [2, 3]
    # 1 loses to 0 as clearly as 3 to 2: one of the two groups is drawn, never one judgment of each.
    contest = Contest({"id": "p1/r0"}, rows(3, 3, 5, 5), [(0, 1, "first"), (2, 3, "first")])
    for draw, pair in ((take_first, (0, 1)), (lambda options, what: options[-1], (2, 3))):
        choice = choose_judgments(contest, EVEN, meta, Iteration(), draw)
        assert tuple(row["index"] for row, _ in choice) == pair
    # Within each group all are equal, and differences between groups do not count.
    contest = Contest({"id": "p1/r0"}, rows(3, 3, 5, 5), [(0, 1, "first"), (1, 0, "first")])
    assert choose_judgments(contest, EVEN, meta, Iteration(), take_first) is Reason.EQUAL_ELO


def test_no_near_scores_is_a_reason():
    rated = group_by(rows(1, 3, 5), "response_id")
    settings = make_settings(max_score_gap=1)
    contests = decided([response(1, 0, "answer")], rated, {}, settings)
    assert judge_pairs(contests, {"first": 1, "second": 1}, settings, 1, CHAT) == ([], {"p1": Reason.NO_NEAR_SCORES})


def test_elo_rows_by_hand():
    """0 beats 1 in both orders, 2 ties with both: B_01 = w1 + w2 = 1, so e (1 + exp(2 e)) = 100 and Elo is e, -e
    and 0 (tests/judging/test_pairs.py has the same equation)."""
    battles = {"p1/r0": [(0, 1, "first"), (1, 0, "second"), (0, 2, "tie"), (2, 1, None)]}
    settings = make_settings()
    contests = decided([response(1, 0, "answer")], group_by(rows(1, 2, 3), "response_id"), battles, settings)
    elos = list(elo_rows(contests, position_wins(battles), Metajudge()))
    assert [(row["judgment_id"], row["won"], row["lost"]) for row in elos] == [
        ("p1/r0/j0", 2, 0),
        ("p1/r0/j1", 0, 2),
        ("p1/r0/j2", 0, 0),
    ]
    e = elos[0]["elo"]
    assert e * (1 + math.exp(2 * e)) == pytest.approx(100, abs=0.01)
    assert elos[1]["elo"] == -e and elos[2]["elo"] == 0
    # Without battles the penalty alone decides: its variance is 1 / lambda = 100, less the common shift.
    assert elos[2]["standard_error"] == pytest.approx((100 * 2 / 3) ** 0.5, rel=1e-3)
    assert {row["group"] for row in elos} == {0}
    assert list(elo_rows({"p1": Reason.TOO_FEW_JUDGMENTS}, {"first": 1, "second": 1}, Metajudge())) == []


def test_a_judgment_without_comparisons_has_no_elo():
    """Scores 3 3 0 1 1 with a gap of 0: two groups, and judgment 2 alone."""
    battles = {"p1/r0": [(0, 1, "first"), (1, 0, "second"), (3, 4, "second"), (4, 3, None)]}
    settings = make_settings(max_score_gap=0)
    rated = group_by(rows(3, 3, 0, 1, 1), "response_id")
    contests = decided([response(1, 0, "answer")], rated, battles, settings)
    elos = list(elo_rows(contests, position_wins(battles), settings.metajudge))
    assert [row["judgment_id"][-2:] for row in elos] == ["j0", "j1", "j3", "j4"]
    groups = [row["group"] for row in elos]
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_the_penalty_is_a_setting():
    contest = Contest({"id": "p1/r0"}, rows(1, 2), [(0, 1, "first")])
    loose, tight = (contest.elo(EVEN, penalty)[0][0] for penalty in (0.01, 1.0))
    # e: 1/2 sigmoid(-2 e) = penalty e
    for e, penalty in ((loose, 0.01), (tight, 1.0)):
        assert 0.5 / (1 + math.exp(2 * e)) == pytest.approx(penalty * e, rel=1e-9)
    assert loose > 5 * tight
    for penalty in (0.01, 1.0):
        choice = choose_judgments(contest, EVEN, Metajudge(elo_penalty=penalty), Iteration(), take_first)
        assert choice[0][1] == contest.elo(EVEN, penalty)[0][0]
