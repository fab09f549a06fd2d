"""Agreement of an opinion with the labels (`evaluation/agreement.py` defines the measures)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.annotators import annotator_report, cohen_kappa
from evaluation.decisions import Decisions, Opinion, longer_wins
from evaluation.labelled import Case, Labelled, Pair
from evaluation.pairwise import Preference
from evaluation.statistics import bootstrap, spearman


def _histogram(scores: Sequence[Any]) -> dict[str, int]:
    """Counts of scores, each rounded to the nearest half."""
    counts = Counter(round(2 * score) / 2 for score in scores)
    return {f"{score:g}": counts[score] for score in sorted(counts)}


def report(labelled: Labelled, decisions: Decisions) -> dict[str, Any]:
    """Parse rate, agreement (by N, gap, flaw, subset and annotator), rankings, calibration, and the baseline."""
    opinion, longer = decisions.opinion(labelled), longer_wins(labelled)
    pairs, verdicts = labelled.pairs, decisions.verdicts
    gaps = sorted({_gap(pair) for pair in pairs})
    scores = opinion.values if decisions.form == "scores" else {}
    parsed = [value for value in verdicts if value is not None]
    return {
        "form": decisions.form,
        "judgments": len(verdicts),
        "parse_rate": round(len(parsed) / len(verdicts), 4) if verdicts else None,
        "score_histogram": _histogram(parsed) if scores else {},
        "pairs": len(pairs),
        **measures(labelled, opinion),
        **order_measures(labelled, decisions),
        "pairwise_by_N": {
            str(n): agreement(pairs, decisions.first(n).opinion(labelled))
            for n in (1, 2, 4, 8, 16)
            if n <= decisions.most
        },
        "longer_wins": agreement(pairs, longer),
        "longer": measures(labelled, longer),
        "by_gap": {f"{gap:g}": agreement([pair for pair in pairs if _gap(pair) == gap], opinion) for gap in gaps},
        "by_flaw": {flaw: agreement(part, opinion) for flaw, part in _against_flawless(pairs).items()},
        "subsets": {
            name: {"pairs": len(part.pairs)}
            | measures(part, opinion)
            | order_measures(part, decisions)
            | {"longer": measures(part, longer)}
            for name, part in labelled.subsets.items()
        },
        "annotators": annotator_report(pairs, opinion.preferences),
        "mean_score_by_quality": _means(labelled.cases, scores, lambda case: f"{case.quality:g}"),
        "mean_score_by_flaw": _means(labelled.cases, scores, lambda case: case.flaw),
    }


def measures(labelled: Labelled, opinion: Opinion) -> dict[str, Any]:
    """The measures of an opinion, the judge's or the baseline's."""

    def equal(a: Preference, b: Preference) -> float:
        return float(a == b)

    def decided(a: Preference, b: Preference) -> float | None:
        return None if "tie" in (a, b) else float(a == b)

    by_people = [(opinion.preferences[pair.name], pair.label) for pair in labelled.pairs if pair.labels]
    labels = [(preference, label) for preference, label in by_people if preference is not None]
    return {
        "pairwise": agreement(labelled.pairs, opinion),
        "with_ties": agreement(labelled.pairs, opinion, equal),
        "without_ties": agreement(labelled.pairs, opinion, decided),
        "kappa": cohen_kappa(labels),
        "spearman": bootstrap([[rank] for members in labelled.rankings for rank in _spearman(members, opinion)]),
        "exact_order": bootstrap([[exact] for members in labelled.rankings for exact in _in_order(members, opinion)]),
    }


def half_credit(a: Preference, b: Preference) -> float:
    """1 for equal preferences, 1/2 if one of them is a tie, 0 for opposite ones."""
    return float(a == b) if "tie" not in (a, b) or a == b else 0.5


def agreement(
    pairs: Iterable[Pair], opinion: Opinion, credit: Callable[[Preference, Preference], float | None] = half_credit
) -> dict[str, Any]:
    """The mean credit over pairs. Pairs without a verdict, or with a credit of None, are left out."""
    groups: dict[str, list[float]] = {}
    for pair in pairs:
        preference, group = opinion.preferences[pair.name], groups.setdefault(pair.first.group, [])
        if preference is not None and (value := credit(preference, pair.label)) is not None:
            group.append(value)
    return bootstrap(list(groups.values()))


def order_measures(labelled: Labelled, decisions: Decisions) -> dict[str, Any]:
    """From comparisons: how often both orders agree, and how often the first position wins."""
    consistent: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    for pair in labelled.pairs if decisions.form == "comparisons" else ():
        rows, agree = decisions.rows[pair.name], decisions.of(pair).consistent
        if rows and agree is not None:
            consistent.setdefault(pair.first.group, []).append(float(agree))
        won = [float(row["winner"] == "first") for row in rows if row["winner"] in ("first", "second")]
        first.setdefault(pair.first.group, []).extend(won)
    return {
        "consistency": bootstrap(list(consistent.values())),
        "first_position": bootstrap(list(first.values())),
    }


def _spearman(members: Sequence[Case], opinion: Opinion) -> list[float]:
    """Spearman's correlation within one group; empty if too few members have a value."""
    valued = [(case.quality, float(value)) for case in members if (value := opinion.values[case.name]) is not None]
    if len({quality for quality, _ in valued}) < 2:
        return []
    qualities, values = zip(*valued, strict=True)
    return [spearman(qualities, values) or 0.0]  # equal values for all members count as 0


def _in_order(members: Sequence[Case], opinion: Opinion) -> list[float]:
    """Whether one group is in order; empty if a member has no value."""
    values = [opinion.values[case.name] for case in members]
    if None in values:
        return []
    return [float(all(a > b for a, b in _by_quality(members, values)))]


def _by_quality(members: Sequence[Case], values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The values of any two members of different quality, the better member's first."""
    valued = list(zip(members, values, strict=True))
    return ((a, b) for better, a in valued for worse, b in valued if better.quality > worse.quality)


def _gap(pair: Pair) -> float:
    return abs(pair.first.quality - pair.second.quality)


def _against_flawless(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """By flaw: the pairs of two responses that each have this flaw or none."""
    flaws = {case.flaw for pair in pairs for case in (pair.first, pair.second)} - {"", "none"}
    return {
        flaw: [pair for pair in pairs if {pair.first.flaw, pair.second.flaw} <= {flaw, "none"}]
        for flaw in sorted(flaws)
    }


def _means(cases: Sequence[Case], scores: Mapping[str, Any], label: Callable[[Case], str]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for case in cases:
        if scores.get(case.name) is not None:
            values.setdefault(label(case), []).append(float(scores[case.name]))
    return {name: round(float(np.mean(values[name])), 3) for name in sorted(values)}
