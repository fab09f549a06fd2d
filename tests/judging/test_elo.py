"""Elo against scipy's optimizer, closed forms for two judgments, and the symmetries of the method."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from judging.elo import battle_matrix, elo, position_weights


def random_matrix(seed: int, size: int, density: float = 0.7) -> np.ndarray:
    """Battles such as a meta-judge leaves: both orders asked, some unparsable, first shown wins more often."""
    draw = np.random.default_rng(seed)
    skill = draw.normal(0, 1.5, size)
    pairs = [(m, n) for m in range(size) for n in range(size) if m != n]
    battles = []
    for m, n in pairs:
        first_wins = draw.random() < 1 / (1 + math.exp(skill[n] - skill[m] - 0.5))
        battles.append((m, n, ("first" if first_wins else "second") if draw.random() < density else None))
    wins = [winner for _, _, winner in battles]
    return battle_matrix(size, battles, *position_weights(wins.count("first"), wins.count("second")))


def reference(B: np.ndarray, regularization: float) -> np.ndarray:
    """The objective as METHOD writes it, in loops, climbed by scipy."""
    size = len(B)

    def loss(eps):
        total = 0.5 * regularization * sum(e * e for e in eps)
        for m in range(size):
            for n in range(size):
                if m != n:
                    total += B[m][n] * math.log1p(math.exp(eps[n] - eps[m]))
        return total

    best = minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-7})
    # BFGS on numerical derivatives stops at about 1e-6; roots of the exact derivative, score by score, finish.
    eps = best.x
    for _ in range(400):
        before = eps.copy()
        for k in range(size):

            def slope(value, k=k):
                rest = [i for i in range(size) if i != k]
                gain = sum(B[k][i] / (1 + math.exp(value - eps[i])) for i in rest)
                return gain - sum(B[i][k] / (1 + math.exp(eps[i] - value)) for i in rest) - regularization * value

            eps[k] = brentq(slope, -50, 50, xtol=1e-13)
        if np.abs(eps - before).max() < 1e-11:
            break
    return eps


@pytest.mark.parametrize(("seed", "size"), [(0, 2), (1, 3), (2, 4), (3, 5), (4, 7), (5, 11)])
def test_the_optimum_is_scipys(seed: int, size: int):
    B = random_matrix(seed, size)
    np.testing.assert_allclose(elo(B)[0], reference(B, 0.01), atol=1e-6)
    np.testing.assert_allclose(elo(B, 1.0)[0], reference(B, 1.0), atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_scipy_finds_nothing_higher(seed: int):
    B = random_matrix(100 + seed, 11, density=0.3 + 0.03 * seed)
    off = ~np.eye(11, dtype=bool)

    def loss(eps):
        return (B * np.logaddexp(0, eps[None, :] - eps[:, None]))[off].sum() + 0.005 * (eps**2).sum()

    best = minimize(loss, np.zeros(11), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9, "maxfun": 10**5})
    eps, _ = elo(B)
    np.testing.assert_allclose(eps, best.x, atol=2e-4)
    assert loss(eps) <= best.fun + 1e-12


def test_two_judgments_by_hand():
    # eps = (x, -x): 3 (1 - s) - 1 s = 0.01 x with s = sigmoid(2 x), so nearly 2 x = log 3.
    B = np.array([[0.0, 3.0], [1.0, 0.0]])
    eps, errors = elo(B)
    x = brentq(lambda x: 3 - 4 / (1 + math.exp(-2 * x)) - 0.01 * x, 0, 5, xtol=1e-14)
    np.testing.assert_allclose(eps, [x, -x], atol=1e-9)
    assert 2 * x == pytest.approx(math.log(3), abs=0.01)
    # Along (1, -1) / sqrt 2 the curvature is 2 * 4 s (1 - s) + 0.01; each score has half of that variance.
    s = 1 / (1 + math.exp(-2 * x))
    np.testing.assert_allclose(errors, math.sqrt(0.5 / (8 * s * (1 - s) + 0.01)), rtol=1e-9)


def test_one_judgment_wins_everything_and_stays_finite():
    B = np.zeros((4, 4))
    B[2, :] = 5.0
    eps, errors = elo(B)
    assert np.isfinite(eps).all() and np.isfinite(errors).all()
    assert eps.argmax() == 2 and eps[2] > 3
    np.testing.assert_allclose(np.delete(eps, 2), -eps[2] / 3, atol=1e-9)


def test_nothing_decided_and_everything_balanced_are_all_equal():
    for B in (np.zeros((5, 5)), np.ones((5, 5)), np.eye(5)):
        np.testing.assert_array_equal(elo(B)[0], np.zeros(5))
    cycle = np.array([[0, 0.3, 0], [0, 0, 0.3], [0.3, 0, 0]])
    np.testing.assert_allclose(elo(cycle)[0], 0, atol=1e-12)


def test_more_battles_fix_the_scores_better():
    B = np.array([[0, 2, 3], [1, 0, 2], [1, 1, 0.0]])  # no judgment wins, or loses, everything
    np.testing.assert_allclose(elo(100 * B, 1e-6)[1], elo(B, 1e-6)[1] / 10, rtol=1e-4)


matrices = st.integers(1, 8).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([0, 0, 0.1, 0.5, 0.9, 1, 3, 1000, 1e-8]), min_size=size, max_size=size),
        min_size=size,
        max_size=size,
    )
)


@settings(deadline=None, max_examples=60)
@given(matrices, st.randoms(use_true_random=False), st.sampled_from([1e-6, 0.01, 10]))
def test_symmetries(rows, random, regularization: float):
    B = np.array(rows, dtype=float)
    eps, errors = elo(B, regularization)
    tolerance = 1e-7 if regularization == 1e-6 else 1e-9
    assert abs(eps.sum()) < 1e-9
    # Relabelling the judgments permutes the scores.
    order = list(range(len(B)))
    random.shuffle(order)
    permuted, permuted_errors = elo(B[np.ix_(order, order)], regularization)
    np.testing.assert_allclose(permuted, eps[order], atol=1000 * tolerance, rtol=1e-6)
    np.testing.assert_allclose(permuted_errors, errors[order], atol=1000 * tolerance, rtol=1e-4)
    # Wins turned into losses negate them.
    swapped, _ = elo(B.T, regularization)
    np.testing.assert_allclose(swapped, -eps, atol=1000 * tolerance, rtol=1e-6)
    # At the optimum the derivative is zero.
    win = 1 / (1 + np.exp(eps[None, :] - eps[:, None]))
    off = B * (1 - np.eye(len(B)))
    gradient = (off * win.T).sum(1) - (off * win.T).sum(0) - regularization * eps
    assert np.abs(gradient).max() <= 1e-9 * (1 + B.sum())


def test_battles_by_hand():
    # Judgments 0 and 1 in both orders, 0 and 2 in both, 1 and 2 in one; w1 = 0.2, w2 = 0.8.
    battles = [(0, 1, "first"), (1, 0, "second"), (0, 2, "second"), (2, 0, "second"), (1, 2, None), (2, 1, "tie")]
    np.testing.assert_allclose(
        battle_matrix(3, battles, 0.2, 0.8),
        [
            [0, 0.2 + 0.8, 0.8],  # beats 1 shown first, beats 1 shown second, beats 2 shown second
            [0, 0, 0],
            [0.8, 0, 0],  # beats 0 shown second
        ],
    )


def test_position_weights_by_hand():
    # 90 wins shown first, 10 shown second: a win shown first weighs 0.1, one shown second 0.9.
    assert position_weights(90, 10) == (0.1, 0.9)
    assert position_weights(5, 5) == (0.5, 0.5)
    assert position_weights(7, 0) == (0.0, 1.0)
    assert position_weights(0, 0) == (0.5, 0.5)


def test_with_position_weights_a_blind_meta_judge_decides_nothing():
    # The meta-judge takes the first shown nine times in ten: every pair has 9 wins and 1, and 1 and 9.
    battles = []
    for m in range(4):
        for n in range(4):
            if m != n:
                battles += [(m, n, "first")] * 9 + [(m, n, "second")]
    w1, w2 = position_weights(108, 12)
    np.testing.assert_allclose(elo(battle_matrix(4, battles, w1, w2))[0], 0, atol=1e-12)


@pytest.mark.parametrize(
    "B", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0)), [[0, -1], [1, 0]], [[0, np.nan], [1, 0]]]
)
def test_bad_matrices_are_refused(B):
    with pytest.raises(ValueError, match="square matrix"):
        elo(np.array(B))


def test_regularization_must_be_positive():
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="regularization"):
            elo(np.ones((2, 2)), value)
