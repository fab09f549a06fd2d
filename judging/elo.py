"""Elo scores of a response's judgments, from the meta-judge's position-weighted battles (section 2.3 of the paper)."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Battle = tuple[int, int, str | None]
"""(m, n, winner): judgment m was shown first, n second; any winner but "first" and "second" means neither."""

Array = NDArray[np.float64]


def position_weights(wins_first: int, wins_second: int) -> tuple[float, float]:
    """The weights of a win shown first, w1 = win_2nd / (win_1st + win_2nd), and of one shown second, w2 = 1 - w1. A win
    in the position that usually loses counts for more. Without any win both weights are 1/2."""
    total = wins_first + wins_second
    return (wins_second / total, wins_first / total) if total else (0.5, 0.5)


def battle_matrix(size: int, battles: Iterable[Battle], w1: float, w2: float) -> Array:
    """B [size, size]: B_mn = w1 [r_mn = 1] + w2 [r_nm = -1], the weight of m's wins over n. Repeated battles add up."""
    B = np.zeros((size, size))
    for m, n, winner in battles:
        if winner == "first":
            B[m, n] += w1
        elif winner == "second":
            B[n, m] += w2
    return B


def elo(B: Array, regularization: float = 0.01) -> tuple[Array, Array]:
    """Scores eps [size] and their standard errors [size], in natural-log units: m beats n with odds exp(eps_m - eps_n).
    eps maximises sum_{m != n} B_mn log sigmoid(eps_m - eps_n) - (regularization / 2) sum_m eps_m^2, by Newton's method,
    which halves a step that does not climb enough. Standard errors are from the inverse negative Hessian, restricted to
    sum-zero scores. They count a battle as its weight, about half: scores of repeated battles would scatter less."""
    size, eps = len(B), np.zeros(len(B))
    value = _objective(B, eps, regularization)
    for _ in range(100):
        gradient, laplacian = _derivatives(B, eps, regularization)
        if np.abs(gradient).max() <= 1e-12 * (regularization + B.sum()):
            break
        step = np.linalg.solve(laplacian + regularization * np.eye(size), gradient)
        length, rounding = 1.0, 1e-14 * (1 + abs(value))
        while (trial := _objective(B, eps + length * step, regularization)) < (
            value + 1e-4 * length * float(gradient @ step) - rounding
        ):
            length /= 2
        eps, value = eps + length * step, trial
    # A shift common to all scores changes no battle: it gets eigenvalue 1 before the inversion and is removed after.
    shift = np.full((size, size), 1 / size)
    covariance = np.linalg.inv(laplacian + regularization * (np.eye(size) - shift) + shift) - shift
    return eps - eps.mean(), np.sqrt(np.diag(covariance).clip(min=0.0))


def _objective(B: Array, eps: Array, regularization: float) -> float:
    return float((B * _log_win(eps)).sum() - regularization / 2 * (eps @ eps))


def _derivatives(B: Array, eps: Array, regularization: float) -> tuple[Array, Array]:
    """The objective's gradient [size], and the negative Hessian of its first term [size, size]: a graph's Laplacian."""
    win = np.exp(_log_win(eps))
    surprise = B * win.T  # 1 - win[m, n] is win[n, m]
    curvature = (B + B.T) * win * win.T
    return surprise.sum(1) - surprise.sum(0) - regularization * eps, np.diag(curvature.sum(1)) - curvature


def _log_win(eps: Array) -> Array:
    """log sigmoid(eps_m - eps_n) [m, n]: the log-probability that m beats n."""
    return -np.logaddexp(0.0, eps[None, :] - eps[:, None])
