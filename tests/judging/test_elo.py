"""Elo against scipy's optimizer, closed forms for two judgments, and the symmetries of the method."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq, minimize

from judging.elo import battle_matrix, elo, position_weights


@pytest.mark.parametrize(("seed", "size"), [(0, 2), (2, 4), (4, 7), (5, 11), (7, 11)])
@pytest.mark.parametrize("regularization", [0.01, 1.0])
def test_the_optimum_is_scipys(seed: int, size: int, regularization: float):
    """The objective as the method states it, in loops, climbed by scipy. Battles are such as a meta-judge leaves: both
    orders asked, some unparsable, the first shown wins more often."""
    draw = np.random.default_rng(seed)
    skill, battles = draw.normal(0, 1.5, size), []
    for m, n in ((m, n) for m in range(size) for n in range(size) if m != n):
        first_wins = draw.random() < 1 / (1 + math.exp(skill[n] - skill[m] - 0.5))
        battles.append((m, n, ("first" if first_wins else "second") if draw.random() < 0.3 + 0.08 * seed else None))
    wins = [winner for _, _, winner in battles]
    B = battle_matrix(size, battles, *position_weights(wins.count("first"), wins.count("second")))

    def loss(eps):
        total = 0.5 * regularization * sum(e * e for e in eps)
        for m in range(size):
            for n in range(size):
                if m != n:
                    total += B[m][n] * math.log1p(math.exp(eps[n] - eps[m]))
        return total

    best = minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-7})
    eps, _ = elo(B, regularization)
    np.testing.assert_allclose(eps, best.x, atol=2e-5)
    assert loss(eps) <= best.fun + 1e-12


def test_two_judgments_by_hand():
    # eps = (x, -x): 3 (1 - s) - 1 s = 0.01 x with s = sigmoid(2 x), so nearly 2 x = log 3.
    eps, errors = elo(np.array([[0.0, 3.0], [1.0, 0.0]]))
    x = brentq(lambda x: 3 - 4 / (1 + math.exp(-2 * x)) - 0.01 * x, 0, 5, xtol=1e-14)
    np.testing.assert_allclose(eps, [x, -x], atol=1e-9)
    assert 2 * x == pytest.approx(math.log(3), abs=0.01)
    # Along (1, -1) / sqrt 2 the curvature is 2 * 4 s (1 - s) + 0.01; each score has half of that variance.
    s = 1 / (1 + math.exp(-2 * x))
    np.testing.assert_allclose(errors, math.sqrt(0.5 / (8 * s * (1 - s) + 0.01)), rtol=1e-9)


def test_more_battles_fix_the_scores_better():
    B = np.array([[0, 2, 3], [1, 0, 2], [1, 1, 0.0]])  # no judgment wins, or loses, everything
    np.testing.assert_allclose(elo(100 * B, 1e-6)[1], elo(B, 1e-6)[1] / 10, rtol=1e-4)


WEIGHTS = st.sampled_from([0, 0, 0.1, 0.5, 0.9, 1, 3, 1000, 1e-8])


@settings(max_examples=30)
@given(
    st.integers(1, 8).flatmap(lambda size: arrays(float, (size, size), elements=WEIGHTS)),
    st.randoms(use_true_random=False),
    st.sampled_from([1e-6, 0.01, 10]),
)
def test_symmetries(B, random, regularization: float):
    np.fill_diagonal(B, 0)
    eps, errors = elo(B, regularization)
    tolerance = 1e-4 if regularization == 1e-6 else 1e-6
    assert abs(eps.sum()) < 1e-9
    # Relabelling the judgments permutes the scores.
    order = random.sample(range(len(B)), len(B))
    permuted, permuted_errors = elo(B[np.ix_(order, order)], regularization)
    np.testing.assert_allclose(permuted, eps[order], atol=tolerance, rtol=1e-6)
    np.testing.assert_allclose(permuted_errors, errors[order], atol=tolerance, rtol=1e-4)
    # Wins turned into losses negate them.
    np.testing.assert_allclose(elo(B.T, regularization)[0], -eps, atol=tolerance, rtol=1e-6)
    # At the optimum the derivative is zero.
    win = 1 / (1 + np.exp(eps[None, :] - eps[:, None]))
    gradient = (B * win.T).sum(1) - (B * win.T).sum(0) - regularization * eps
    assert np.abs(gradient).max() <= 1e-9 * (1 + B.sum())


def test_battles_and_weights_by_hand():
    # 0 beats 1 shown first and shown second, and 2 shown second; 2 beats 0 shown second.
    battles = [(0, 1, "first"), (1, 0, "second"), (0, 2, "second"), (2, 0, "second"), (1, 2, None), (2, 1, "tie")]
    np.testing.assert_allclose(battle_matrix(3, battles, 0.2, 0.8), [[0, 0.2 + 0.8, 0.8], [0, 0, 0], [0.8, 0, 0]])
    # 90 wins shown first, 10 shown second: a win shown first weighs 0.1, one shown second 0.9.
    assert position_weights(90, 10) == (0.1, 0.9)
    assert (position_weights(7, 0), position_weights(0, 0)) == ((0.0, 1.0), (0.5, 0.5))
