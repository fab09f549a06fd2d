"""The report's sections, one for each topic: measures over the iterations, pictures, and what to look for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.report.browser import Evidence
from evaluation.report.parts import (
    FULL,
    Card,
    Measure,
    Numbers,
    ReportedIteration,
    ReportedRun,
    Section,
    interval,
    look_up,
    measure_card,
    written,
)
from evaluation.report.plots import Point, Series, bars, lines, stacked, thinned
from judging.verdict import MAXIMUM

LENGTH_BINS = 8

SCORES = (
    Measure("Judgments that hold a score", "bias.judge.parse_rate", "share"),
    Measure("Mean score of the judgments", "bias.judge.score_mean"),
    Measure("Entropy of the scores, bits", "bias.judge.score_entropy_bits"),
    Measure("Ties between two responses to a prompt", "bias.responses.ties", "share"),
    Measure("Scores that are 5", "bias.judge.saturation", "share"),
    Measure("Scores that are fractions", "bias.judge.fractions", "share"),
)
LENGTH = (
    Measure("Characters of a response", "bias.responses.characters_mean", "count"),
    Measure("Characters of a chosen response", "bias.pairs.actor.chosen_characters_mean", "count"),
    Measure("Characters of a rejected response", "bias.pairs.actor.rejected_characters_mean", "count"),
    Measure(
        "Score with length within a prompt, Spearman",
        "bias.responses.score_length_spearman_within_prompt",
        marks=((0.0, "no relation"),),
    ),
)
POSITIONS = (
    Measure("The first judgment wins", "bias.metajudge.first_wins", "share", ((0.5, "no bias"),)),
    Measure(
        "The first wins, at equal scores",
        "bias.metajudge.first_wins_at_equal_scores",
        "share",
        ((0.5, "no bias"), (0.878, "the paper's collapse")),
    ),
    Measure(
        "The higher score wins",
        "bias.metajudge.higher_score_wins",
        "share",
        ((0.5, "no bias"), (0.977, "the paper's collapse")),
    ),
    Measure("Both orders agree", "bias.metajudge.both_orders_agree", "share"),
)
LOOK_AT_POSITIONS = (
    "A meta-judge without a bias names the first judgment half of the time. The paper's meta-judge collapsed after one "
    "round of judge training: it named the higher score 97.7% of the time and, at equal scores, the first judgment "
    "87.8% of the time."
)
NOT_COMPARED = "No iteration compared judgments."
ELO = (
    Measure("Standard deviation of Elo within a response", "elo.spread"),
    Measure("Standard error of an Elo score, mean", "bias.metajudge.elo_standard_error_mean"),
    Measure("Elo with length, Spearman", "bias.metajudge.elo_length_spearman", marks=((0.0, "no relation"),)),
)
PAIRS = (
    Measure("Prompts that give an actor pair", "bias.pairs.actor.yield", "share"),
    Measure("Prompts that give a judge pair", "bias.pairs.judge.yield", "share"),
)
TRAINING = (
    Measure("Loss", "dpo.loss"),
    Measure("Accuracy", "dpo.accuracy", "share", ((0.5, "chance"),)),
    Measure("Margin of the rewards", "dpo.margin"),
)
CURVES = (
    ("Loss by step", ("loss",)),
    ("Margin of the rewards by step", ("margin",)),
    ("Rewards by step", ("reward_chosen", "reward_rejected")),
    ("Norm of the gradient by step", ("grad_norm",)),
)


def elo_spread(evidence: Evidence) -> float | None:
    """Standard deviation of the Elo scores within a response: the root of the mean variance."""
    ratings = _ratings(evidence)
    return float(np.sqrt(np.mean([np.var(rating) for rating in ratings]))) if ratings else None


def sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """The sections, in the order of an iteration's steps."""
    yield _scores(runs)
    yield _length(runs)
    yield _with_measures(Section("position", "Position bias", LOOK_AT_POSITIONS, empty=NOT_COMPARED), runs, POSITIONS)
    yield _elo(runs)
    yield _pairs(runs)
    yield _training(runs)


def _by_iteration(
    runs: Sequence[ReportedRun], value_of: Callable[[ReportedIteration], Any]
) -> dict[int, list[tuple[int, Any]]]:
    """(run's index, value) by the iteration's number; empty values are left out."""
    values: dict[int, list[tuple[int, Any]]] = {}
    for place, run in enumerate(runs):
        for iteration in run.iterations:
            if value := value_of(iteration):
                values.setdefault(iteration.number, []).append((place, value))
    return dict(sorted(values.items()))


def _scores(runs: Sequence[ReportedRun]) -> Section:
    look = (
        "Scores that drift to 5, lose entropy and tie leave fewer pairs. A judgment without a score counts as a "
        "failure; no score is guessed."
    )
    section = Section("scores", "Scores", look, empty="No iteration judged responses: the scores come from a file.")
    histograms = _by_iteration(runs, lambda iteration: _shares(look_up(iteration.row, "bias.judge.score_histogram")))
    for number, series in histograms.items():
        svg = bars(f"scores{number}", series, (0, MAXIMUM), _greatest(histograms))
        section.cards.append(Card(f"Scores in iteration {number}", svg))
    return _with_measures(section, runs, SCORES)


def _shares(histogram: dict[str, float] | None) -> dict[float, float]:
    total = sum((histogram or {}).values())
    return {float(score): count / total for score, count in histogram.items()} if histogram and total else {}


def _greatest(histograms: dict[int, list[tuple[int, dict[float, float]]]]) -> float:
    return max((share for group in histograms.values() for _, shares in group for share in shares.values()), default=1)


def _length(runs: Sequence[ReportedRun]) -> Section:
    look = (
        "A judge that scores long responses higher, or pairs whose chosen response is the longer one, teach the model "
        "to write longer. The shaded band holds the middle half of the responses."
    )
    section = Section("length", "Length and score", look)
    curves = _by_iteration(runs, lambda iteration: _by_length(iteration.evidence))
    every = [point for group in curves.values() for _, points in group for point in points]
    for number, group in curves.items():
        reach = (0.0, 1.03 * max(point.x for point in every))
        low, high = min(point.low or point.y for point in every), max(point.high or point.y for point in every)
        height = (low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
        series = [Series(place, points) for place, points in group]
        svg = lines(f"length{number}", series, label="characters", bands=True, reach=reach, height=height)
        section.cards.append(Card(f"Score by length, iteration {number}", svg))
    return _with_measures(section, runs, LENGTH)


def _by_length(evidence: Evidence) -> list[Point]:
    """Mean score and quartiles in bins of equally many responses, each bin at its mean length."""
    scored = [
        (row["characters"], float(row["score"]))
        for prompt in evidence.prompts.values()
        for row in prompt.responses.values()
        if row["score"] is not None
    ]
    if not scored:
        return []
    bins = np.array_split(np.array(sorted(scored)), min(LENGTH_BINS, max(len(scored) // 5, 1)))
    return [
        Point(float(part[:, 0].mean()), float(part[:, 1].mean()), *map(float, np.percentile(part[:, 1], [25, 75])))
        for part in bins
    ]


def _elo(runs: Sequence[ReportedRun]) -> Section:
    look = (
        "Comparisons give each judgment of a response an Elo score; the judge pair is the best judgment against the "
        "worst. A standard deviation no greater than the standard error is noise."
    )
    section = Section("elo", "Elo", look, empty=NOT_COMPARED)
    scores = _by_iteration(runs, lambda iteration: [elo for own in _ratings(iteration.evidence) for elo in own])
    highest = max((abs(value) for group in scores.values() for _, own in group for value in own), default=0.0)
    width = max(highest, 0.5) / 7.5
    histograms = {number: [(place, _histogram(own, width)) for place, own in group] for number, group in scores.items()}
    centres = [centre for group in histograms.values() for _, shares in group for centre in shares]
    reach = (min(centres, default=0.0), max(centres, default=0.0))
    for number, series in histograms.items():
        svg = bars(f"elo{number}", series, reach, _greatest(histograms), width, label="Elo score")
        section.cards.append(Card(f"Elo scores in iteration {number}", svg))
    return _with_measures(section, runs, ELO)


def _ratings(evidence: Evidence) -> list[list[float]]:
    """The Elo scores within each response whose judgments were compared."""
    return [[row[0] for row in prompt.elo.values()] for prompt in evidence.prompts.values() if prompt.elo]


def _histogram(values: Sequence[float], width: float) -> dict[float, float]:
    """The share of values around each multiple of `width`."""
    cells, counts = np.unique(np.round(np.array(values) / width), return_counts=True)
    return {float(cell) * width: float(count) / len(values) for cell, count in zip(cells, counts, strict=True)}


def _pairs(runs: Sequence[ReportedRun]) -> Section:
    look = "Each prompt gives a pair, or has a reason for giving none. Ties and position collapse show here first."
    section = _with_measures(Section("yield", "Pairs and reasons", look), runs, PAIRS)
    for kind in ("actor", "judge"):
        colours = {"pair": 0}
        pictures = []
        for place, run in enumerate(runs):
            bar_rows = []
            for iteration in run.iterations:
                panel = look_up(iteration.row, f"bias.pairs.{kind}")
                counts = {"pair": panel["pairs"]} | panel["reasons"] if panel else {}
                if not (total := sum(counts.values())):
                    continue
                parts = [(colours.setdefault(name, len(colours)), count / total) for name, count in counts.items()]
                bar_rows.append((f"{iteration.number}", parts))
            if bar_rows:
                svg = stacked(f"pairs-{kind}-{place}", bar_rows, percent=True)
                pictures.append(Card(f"Outcome of the prompts: {kind} pairs", svg, size=FULL, run=place))
        for card in pictures:
            card.legend = [(colour, _spaced(reason)) for reason, colour in colours.items()]
        section.cards += pictures
        for reason in colours if pictures else ():
            path = f"pairs.{kind}" if reason == "pair" else f"bias.pairs.{kind}.reasons.{reason}"
            title = f"{kind}: pairs" if reason == "pair" else f"{kind}: {_spaced(reason)}"
            section.numbers += _cells(runs, Measure(title, path, "count"))
    return section


def _spaced(reason: str) -> str:
    return reason.replace("_", " ").replace("elo", "Elo")


def _training(runs: Sequence[ReportedRun]) -> Section:
    held_out = {bool(look_up(i.row, "dpo.held_out")) for run in runs for i in run.iterations}
    where = " or ".join(text for text, flag in (("held-out pairs", True), ("the last step", False)) if flag in held_out)
    look = (
        "Margin and accuracy should rise. If the margin rises while the reward of the chosen falls, DPO makes both "
        f"answers less likely. Numbers of {where} are those of the epoch that was kept."
    )
    section = Section("training", "Training", look)
    numbers = _numbers(runs)
    for title, keys in CURVES:
        series = [
            Series(place, _curve(run, key), dashed=key == "reward_rejected")
            for place, run in enumerate(runs)
            for key in keys
        ]
        if any(item.points for item in series):
            svg = lines(
                f"curve-{keys[0]}",
                series,
                {number + 0.5: f"{number}" for number in numbers},
                label="iteration, from its first step to its last",
                dots=False,
                reach=(numbers[0], numbers[-1] + 1),
                borders=numbers[1:],
            )
            section.cards.append(Card(title, svg, note="Dashed: rejected." if len(keys) > 1 else ""))
    return _with_measures(section, runs, [replace(m, title=f"{m.title}, {where}") for m in TRAINING])


def _curve(run: ReportedRun, key: str) -> list[Point]:
    """A metric of all steps. Iteration t covers x from t to t + 1."""
    points = []
    for iteration in run.iterations:
        steps = [row for row in iteration.metrics if row["split"] == "train" and row.get(key) is not None]
        points += thinned([Point(iteration.number + (i + 0.5) / len(steps), row[key]) for i, row in enumerate(steps)])
    return points


def _with_measures(section: Section, runs: Sequence[ReportedRun], measures: Sequence[Measure]) -> Section:
    """The section with a card for each measure, before its pictures, and with the table of their values."""
    cards = []
    ticks = {float(number): f"{number}" for number in _numbers(runs)}
    for measure in measures:
        series = []
        for place, run in enumerate(runs):
            values = [
                (iteration.number, interval(look_up(iteration.row, measure.path))) for iteration in run.iterations
            ]
            series.append(Series(place, [Point(number, *value) for number, value in values if value]))
        if card := measure_card(f"{section.name}-{measure.path}", measure, series, ticks):
            cards.append(card)
            section.numbers += _cells(runs, measure)
    section.cards[:0] = cards
    return section


def _cells(runs: Sequence[ReportedRun], measure: Measure) -> Numbers:
    """A table row for each run that has the measure in some iteration."""
    rows = []
    for place, run in enumerate(runs):
        values = {iteration.number: look_up(iteration.row, measure.path) for iteration in run.iterations}
        if any(value is not None for value in values.values()):
            cells = [written(values.get(number), measure.form) for number in _numbers(runs)]
            rows.append((measure.title, place, cells))
    return rows


def _numbers(runs: Sequence[ReportedRun]) -> list[int]:
    return sorted({iteration.number for run in runs for iteration in run.iterations})
