"""Means with bootstrap intervals, Cohen's kappa and rank correlation; tables and lists of names as text."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
CROSSED_RESAMPLES = 10_000
SHARE = "{:.1%} [{:.1%}, {:.1%}]"  # the format of a share in per cent with its interval


def bootstrap(groups: Iterable[Sequence[float]]) -> dict[str, Any]:
    """Mean of all values, with a 95% percentile interval from resampling whole groups; None without values."""
    if not (filled := [group for group in groups if len(group)]):
        return {"value": None, "low": None, "high": None, "count": 0}
    sums, counts = np.array([float(sum(group)) for group in filled]), np.array(list(map(len, filled)))
    chosen = np.random.default_rng(0).integers(len(filled), size=(RESAMPLES, len(filled)))
    return _measure(sums.sum() / counts.sum(), sums[chosen].sum(1) / counts[chosen].sum(1), int(counts.sum()))


def by_group(values: Iterable[tuple[Any, float | None]]) -> dict[str, Any]:
    """The mean of (group, value), without values of None, from resampling groups."""
    groups: dict[Any, list[float]] = {}
    for group, value in values:
        groups.setdefault(group, []).extend([] if value is None else [value])
    return bootstrap(groups.values())


def each(values: Iterable[float | None]) -> dict[str, Any]:
    """The mean of single values, without values of None, from resampling them."""
    return by_group(enumerate(values))


def crossed(values: Any) -> dict[str, Any]:
    """Mean of values [run, item], without NaN, with a 95% percentile interval from resampling both runs and items: all
    runs of a resample have the same items, since the items are the runs' own (Owen's pigeonhole bootstrap, 2007)."""
    present = ~np.isnan(values)
    if not present.any():
        return bootstrap([])
    runs, items = _draws(*values.shape)
    sums, counts = ((runs * (items @ side.T)).sum(1) for side in (np.nan_to_num(values), present.astype(float)))
    return _measure(np.nanmean(values), sums / np.where(counts, counts, np.nan), int(present.sum()))


@cache
def _draws(*sizes: int) -> list[Any]:
    """For each size, how often each resample has each of so many things."""
    draw = np.random.default_rng(0)
    return [draw.multinomial(size, np.full(size, 1 / size), CROSSED_RESAMPLES).astype(float) for size in sizes]


def mean(values: Sequence[float]) -> float | None:
    """To four digits; None without values."""
    return round(float(np.mean(values)), 4) if len(values) else None


def share(part: float, whole: float) -> float | None:
    """Part of a whole to four digits; None where the whole is 0."""
    return round(part / whole, 4) if whole else None


def _measure(value: float, resampled: Any, count: int) -> dict[str, Any]:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {name: round(float(x), 4) for name, x in (("value", value), ("low", low), ("high", high))} | {"count": count}


def cohen_kappa(labels: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Cohen's kappa (1960) of two labels, "first", "second" or "tie", of each item; without a kappa, the "reason".

    The 95% interval is over resampled items, without resamples that lack a kappa.
    """
    classes = ("first", "second", "tie")
    table = np.array([[labels.count((a, b)) for b in classes] for a in classes])
    value = _kappas(table[None])[0] if labels else np.nan
    if np.isnan(value):
        reason = "both give all pairs one label" if labels else "no pair has both labels"
        return bootstrap([]) | {"count": len(labels), "reason": reason}
    drawn = np.random.default_rng(0).multinomial(len(labels), (table / len(labels)).ravel(), size=RESAMPLES)
    return _measure(value, _kappas(drawn.reshape(-1, 3, 3)), len(labels)) | {"reason": None}


def _kappas(tables: Any) -> Any:
    """(p_o - p_e) / (1 - p_e) [n] of contingency tables [n, 3, 3]; NaN where chance alone always agrees."""
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed, expected = shares.trace(axis1=1, axis2=2), (shares.sum(1) * shares.sum(2)).sum(1)
    certain = expected > 1 - 1e-12
    return np.where(certain, np.nan, (observed - expected) / np.where(certain, 1, 1 - expected))


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None if one side is constant."""
    counted = [np.unique(np.asarray(side), return_inverse=True, return_counts=True) for side in (a, b)]
    x, y = ((np.cumsum(counts) - (counts - 1) / 2)[inverse] for _, inverse, counts in counted)
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else None


def shown(measured: Any, form: str = SHARE) -> str:
    """A number, or a mean with value, low, high and count, in a format that names as many as it needs; "-" for None."""
    if isinstance(measured, dict):
        return "-" if measured["value"] is None else form.format(*map(measured.get, ("value", "low", "high", "count")))
    return "-" if measured is None else form.format(measured)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines of text, the columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def shortened(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(repr(name[:60]) for name in listed[:5]) + (", ..." if len(listed) > 5 else "")
