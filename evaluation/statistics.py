"""Means with bootstrap intervals and rank correlation; tables and lists of names as text."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


def bootstrap(groups: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Mean of all values, with a 95% percentile interval from resampling whole groups; None without values."""
    filled = [group for group in groups if len(group)]
    if not filled:
        return {"value": None, "low": None, "high": None, "count": 0}
    sums, counts = np.array([sum(g) for g in filled]), np.array([len(g) for g in filled])
    chosen = np.random.default_rng(seed).integers(len(filled), size=(RESAMPLES, len(filled)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "value": round(float(sums.sum() / counts.sum()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "count": int(counts.sum()),
    }


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None if one side is constant."""
    x, y = ranks(a), ranks(b)
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else None


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """The values' ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def entropy(counts: Sequence[float]) -> float:
    """Entropy of a histogram, in bits."""
    shares = np.array([count for count in counts if count], dtype=float)
    shares /= shares.sum() or 1.0
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # not -0.0


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of rows of equal length as lines of text, the columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def shortened(names: Iterable[str]) -> str:
    """The first names of a list, each cut to 60 characters."""
    listed = list(names)
    return ", ".join(repr(name[:60]) for name in listed[:5]) + (", ..." if len(listed) > 5 else "")
