"""Cohen's kappa of a judge with the annotators of the same pairs, and of the annotators with each other.

The classes are first, second and tie. Kappa is (p_o - p_e) / (1 - p_e) (Cohen, 1960): p_o is the share of equal labels,
and p_e its expectation if both labelled at random with their own frequencies. Intervals are percentiles over resampled
pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from evaluation.labelled import Pair
from evaluation.pairwise import Preference
from evaluation.statistics import RESAMPLES, bootstrap

_CLASSES: tuple[Preference, ...] = ("first", "second", "tie")


def cohen_kappa(labels: Sequence[tuple[Preference, Preference]], seed: int = 0) -> dict[str, Any]:
    """Kappa of two labels for each pair, with a 95% interval and a count; without a kappa, the "reason".

    Resamples without a kappa, in which both give a single label, are left out.
    """
    table = np.zeros((3, 3))
    for a, b in labels:
        table[_CLASSES.index(a), _CLASSES.index(b)] += 1
    empty = {"value": None, "low": None, "high": None, "count": len(labels)}
    if not labels:
        return empty | {"reason": "no pair has both labels"}
    value = float(_kappas(table[None])[0])
    if np.isnan(value):
        return empty | {"reason": "both give all pairs one label"}
    shares = (table / len(labels)).ravel()
    drawn = np.random.default_rng(seed).multinomial(len(labels), shares, size=RESAMPLES)
    low, high = np.nanpercentile(_kappas(drawn.reshape(-1, 3, 3)), [2.5, 97.5])
    numbers = {"value": value, "low": float(low), "high": float(high)}
    return {key: round(number, 4) for key, number in numbers.items()} | {"count": len(labels), "reason": None}


def _kappas(tables: Any) -> Any:
    """The kappas [n] of contingency tables [n, 3, 3]; NaN where chance alone always agrees."""
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed = shares.trace(axis1=1, axis2=2)
    expected = (shares.sum(1) * shares.sum(2)).sum(1)
    certain = expected > 1 - 1e-12
    return np.where(certain, np.nan, (observed - expected) / np.where(certain, 1, 1 - expected))


def annotator_report(pairs: Iterable[Pair], preferences: Mapping[str, Preference | None]) -> dict[str, Any] | None:
    """Agreement of the judge with the annotators, with and without ties; None without annotators.

    "votes" counts each label by itself, as MT-Bench does. "among" is the agreement among annotators: its kappa is the
    mean over any two annotators who share pairs and have a kappa.
    """
    labelled = [pair for pair in pairs if pair.labels]
    if not labelled:
        return None
    decided = [(pair, own) for pair in labelled if (own := preferences[pair.name]) is not None]
    names = sorted({name for pair in labelled for name in pair.labels})
    by_name = {name: [(own, pair.labels[name]) for pair, own in decided if name in pair.labels] for name in names}
    return {
        "annotators": len(names),
        "labels": sum(len(pair.labels) for pair in labelled),
        "votes": _votes([[(own, label) for label in pair.labels.values()] for pair, own in decided]),
        "by_annotator": {
            name: _votes([[votes] for votes in both]) | {"kappa": cohen_kappa(both)} for name, both in by_name.items()
        },
        "among": _among(labelled, names),
    }


def _votes(votes: Sequence[Sequence[tuple[Preference, Preference]]]) -> dict[str, Any]:
    """How often two labels are equal: of all, and of those without a tie. `votes` are grouped by pair."""
    return {
        "with_ties": bootstrap([[float(a == b) for a, b in both] for both in votes]),
        "without_ties": bootstrap([[float(a == b) for a, b in both if "tie" not in (a, b)] for both in votes]),
    }


def _among(pairs: Sequence[Pair], names: Sequence[str]) -> dict[str, Any]:
    """The agreement of the annotators with each other."""
    kappas = []
    for a, b in combinations(names, 2):
        shared = [(pair.labels[a], pair.labels[b]) for pair in pairs if a in pair.labels and b in pair.labels]
        if shared and (kappa := cohen_kappa(shared)["value"]) is not None:
            kappas.append(kappa)
    reason = None if kappas else "no two annotators have labelled the same pairs, with more than one label"
    votes = _votes([list(combinations(pair.labels.values(), 2)) for pair in pairs])
    return votes | {
        "kappa": round(float(np.mean(kappas)), 4) if kappas else None,
        "twos": len(kappas),
        "reason": reason,
    }
