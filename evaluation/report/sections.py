"""What the report shows, a topic a section: measures over iterations, pictures, and a sentence on what to look for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report.browser import Evidence
from evaluation.report.plots import Point, Series, bars, lines, stacked, thinned

Row = dict[str, Any]
MAXIMUM = 5
"""The highest score of the rubric."""
LENGTH_BINS = 8
FULL, HALF = "wide", ""
"""How much room a picture takes."""


@dataclass
class Iteration:
    """What is known of one iteration: its row of the summary, its training's metrics, what is behind its pairs."""

    number: int
    row: Row
    metrics: list[Row]
    evidence: Evidence


@dataclass
class Run:
    """A run of the report."""

    name: str
    folder: Path
    summary: Row
    iterations: list[Iteration] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """What is not there to be shown, and why."""


@dataclass(frozen=True)
class Measure:
    """A number of each iteration."""

    title: str
    path: str
    """Its keys in the iteration's row of the summary, with dots between; a number, or one with its interval."""
    form: str = "number"
    """share, number or count."""
    marks: tuple[tuple[float, str], ...] = ()
    """Levels to compare with."""


@dataclass
class Card:
    """A measure or a picture."""

    title: str
    svg: str = ""
    values: list[tuple[int, str, str]] = field(default_factory=list)
    """Of each run, by its number: the last value and its interval."""
    size: str = HALF
    note: str = ""
    under: str = ""
    """What the title does not say."""
    run: int | None = None
    """Whose picture it is, where it is not that of all runs."""
    legend: list[tuple[int, str]] = field(default_factory=list)
    """Colours that stand for something else than runs."""


@dataclass
class Section:
    """A topic."""

    name: str
    title: str
    look: str
    cards: list[Card] = field(default_factory=list)
    numbers: list[tuple[str, int, list[str]]] = field(default_factory=list)
    """The same as a table: what, of which run, a cell a head."""
    heads: list[str] = field(default_factory=list)
    empty: str = "Nothing is known of it."
    """What is said where there are no cards."""


SCORES = (
    Measure("Judgments that hold a score", "bias.judge.parse_rate", "share"),
    Measure("Mean score of the judgments", "bias.judge.score_mean"),
    Measure("Entropy of the scores, bits", "bias.judge.score_entropy_bits"),
    Measure("Two responses to a prompt tie", "bias.responses.ties", "share"),
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
    """Standard deviation of the Elo scores within a response, the root of the mean variance."""
    ratings = _ratings(evidence)
    return float(np.sqrt(np.mean([np.var(rating) for rating in ratings]))) if ratings else None


def sections(runs: Sequence[Run]) -> Iterator[Section]:
    """The topics, in the order in which an iteration comes to them."""
    yield _scores(runs)
    yield _length(runs)
    yield _positions(runs)
    yield _elo(runs)
    yield _pairs(runs)
    yield _training(runs)


def _scores(runs: Sequence[Run]) -> Section:
    look = (
        "Scores that drift to 5, lose entropy and tie leave fewer pairs. A judgment without a score is a failure that "
        "is counted, never a guess."
    )
    section = Section("scores", "Scores", look, empty="No iteration judged responses: the scores come from a file.")
    found: dict[int, list[tuple[int, dict[float, float]]]] = {}
    for place, run in enumerate(runs):
        for iteration in run.iterations:
            counts = look_up(iteration.row, "bias.judge.score_histogram") or {}
            total = sum(counts.values())
            if total:
                shares = {float(score): count / total for score, count in counts.items()}
                found.setdefault(iteration.number, []).append((place, shares))
    top = _greatest(found)
    for number, series in sorted(found.items()):
        svg = bars(f"scores{number}", series, (0, MAXIMUM), top)
        section.cards.append(Card(f"Scores in iteration {number}", svg))
    return _measured(section, runs, SCORES)


def _length(runs: Sequence[Run]) -> Section:
    look = (
        "A judge that scores long responses higher, or pairs whose chosen response is the longer one, teach length. "
        "Shades hold the middle half of the responses."
    )
    section = Section("length", "Length against score", look)
    found: dict[int, list[Series]] = {}
    for place, run in enumerate(runs):
        for iteration in run.iterations:
            if points := _by_length(iteration.evidence):
                found.setdefault(iteration.number, []).append(Series(place, points))
    every = [point for group in found.values() for series in group for point in series.points]
    for number, group in sorted(found.items()):
        reach = (0.0, 1.03 * max(point.x for point in every))
        low, high = min(point.low or point.y for point in every), max(point.high or point.y for point in every)
        height = (low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
        svg = lines(f"length{number}", group, label="characters", bands=True, reach=reach, height=height)
        section.cards.append(Card(f"Score by length, iteration {number}", svg))
    return _measured(section, runs, LENGTH)


def _by_length(evidence: Evidence) -> list[Point]:
    """Mean score, and its quartiles, in bins of equally many responses, each at its mean length."""
    known = [
        (row["characters"], float(row["score"]))
        for prompt in evidence.prompts.values()
        for row in prompt.responses.values()
        if row["score"] is not None
    ]
    if not known:
        return []
    parts = np.array_split(np.array(sorted(known)), min(LENGTH_BINS, max(len(known) // 5, 1)))
    return [
        Point(float(part[:, 0].mean()), float(part[:, 1].mean()), *map(float, np.percentile(part[:, 1], [25, 75])))
        for part in parts
    ]


def _positions(runs: Sequence[Run]) -> Section:
    look = (
        "A meta-judge without a bias names the first judgment half of the time. The paper's collapsed after one round "
        "of judge training: it named the higher score 97.7% of the time and, at equal scores, the first 87.8%."
    )
    section = Section("position", "Position bias", look, empty="No iteration compared judgments.")
    return _measured(section, runs, POSITIONS)


def _elo(runs: Sequence[Run]) -> Section:
    look = (
        "Judgments of one response are rated by their comparisons; its judge pair is the best against the worst. A "
        "spread that is no greater than the standard error is noise."
    )
    section = Section("elo", "Elo", look, empty="No iteration compared judgments.")
    found: dict[int, list[tuple[int, list[float]]]] = {}
    for place, run in enumerate(runs):
        for iteration in run.iterations:
            if ratings := _ratings(iteration.evidence):
                every = [value for rating in ratings for value in rating]
                found.setdefault(iteration.number, []).append((place, every))
    values = [value for group in found.values() for _, own in group for value in own]
    width = max(max(map(abs, values), default=0.0), 0.5) / 7.5
    cells = {number: [(place, _cells_of(own, width)) for place, own in group] for number, group in found.items()}
    centres = [centre for group in cells.values() for _, shares in group for centre in shares]
    reach = (min(centres, default=0.0), max(centres, default=0.0))
    for number, series in sorted(cells.items()):
        svg = bars(f"elo{number}", series, reach, _greatest(cells), width, label="Elo score")
        section.cards.append(Card(f"Elo scores in iteration {number}", svg))
    return _measured(section, runs, ELO)


def _ratings(evidence: Evidence) -> list[list[float]]:
    """The Elo scores of each response that has some."""
    return [[row[0] for row in prompt.elo.values()] for prompt in evidence.prompts.values() if prompt.elo]


def _cells_of(values: Sequence[float], width: float) -> dict[float, float]:
    """The share of values around each multiple of `width`."""
    cells, counts = np.unique(np.round(np.array(values) / width), return_counts=True)
    return {float(cell) * width: float(count) / len(values) for cell, count in zip(cells, counts, strict=True)}


def _greatest(found: dict[int, list[tuple[int, dict[float, float]]]]) -> float:
    return max((share for group in found.values() for _, shares in group for share in shares.values()), default=1.0)


def _pairs(runs: Sequence[Run]) -> Section:
    look = "Each prompt gives a pair or has a reason. Ties and position collapse show here first."
    section = Section("yield", "Pairs and reasons", look)
    _measured(section, runs, PAIRS)
    for kind in ("actor", "judge"):
        colours = {"pair": 0}
        pictures = []
        for place, run in enumerate(runs):
            bar_rows = []
            for iteration in run.iterations:
                found = look_up(iteration.row, f"bias.pairs.{kind}")
                counts = {"pair": found["pairs"]} | found["reasons"] if found else {}
                if not (total := sum(counts.values())):
                    continue
                parts = [(colours.setdefault(name, len(colours)), count / total) for name, count in counts.items()]
                bar_rows.append((f"{iteration.number}", parts))
            if bar_rows:
                svg = stacked(f"pairs-{kind}-{place}", bar_rows, percent=True)
                pictures.append(Card(f"What became of the prompts: {kind} pairs", svg, size=FULL, run=place))
        for card in pictures:
            card.legend = [(colour, _spoken(reason)) for reason, colour in colours.items()]
        section.cards += pictures
        for reason in colours if pictures else ():
            path = f"pairs.{kind}" if reason == "pair" else f"bias.pairs.{kind}.reasons.{reason}"
            title = f"{kind}: pairs" if reason == "pair" else f"{kind}: {_spoken(reason)}"
            section.numbers += _cells(runs, title, path, "count")
    return section


def _spoken(reason: str) -> str:
    return reason.replace("_", " ").replace("elo", "Elo")


def _training(runs: Sequence[Run]) -> Section:
    held_out = {bool(look_up(i.row, "dpo.held_out")) for run in runs for i in run.iterations}
    where = " or ".join(
        text for text, known in (("held-out pairs", True), ("the last step", False)) if known in held_out
    )
    look = (
        "Margin and accuracy should rise. Where the reward of the chosen falls while the margin rises, DPO pushes both "
        f"answers down. Figures of {where} are of the epoch that was kept."
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
            section.cards.append(Card(title, svg, note="Rejected dashed." if len(keys) > 1 else ""))
    measures = [replace(measure, title=f"{measure.title}, {where}") for measure in TRAINING]
    return _measured(section, runs, measures)


def _curve(run: Run, key: str) -> list[Point]:
    """A metric of all steps; each iteration's from its number on, over a width of one."""
    points = []
    for iteration in run.iterations:
        steps = [row for row in iteration.metrics if row["split"] == "train" and row.get(key) is not None]
        own = [Point(iteration.number + (i + 0.5) / len(steps), row[key]) for i, row in enumerate(steps)]
        points += thinned(own)
    return points


def _measured(section: Section, runs: Sequence[Run], measures: Sequence[Measure]) -> Section:
    """Adds a card a measure, before the pictures, and the table of their values."""
    cards = []
    ticks = {float(number): f"{number}" for number in _numbers(runs)}
    for measure in measures:
        series = [
            Series(
                place,
                [
                    Point(iteration.number, *known)
                    for iteration in run.iterations
                    if (known := interval(look_up(iteration.row, measure.path)))
                ],
            )
            for place, run in enumerate(runs)
        ]
        if card := measure_card(f"{section.name}-{measure.path}", measure, series, ticks):
            cards.append(card)
            section.numbers += _cells(runs, measure.title, measure.path, measure.form)
    section.cards[:0] = cards
    return section


def measure_card(name: str, measure: Measure, series: Sequence[Series], ticks: dict[float, str]) -> Card | None:
    """A measure's last value of each run, and its course where there is more than one; None where it has none."""
    series = [item for item in series if item.points]
    if not series:
        return None
    values = []
    for item in series:
        _, value, low, high = item.points[-1]
        between = f"{shown(low, measure.form)} to {shown(high, measure.form)}" if low is not None else ""
        values.append((item.colour, shown(value, measure.form), between))
    card = Card(measure.title, values=values)
    if len(ticks) > 1:
        levels = [level for level, _ in measure.marks]
        card.svg = lines(name, series, ticks, levels, percent=measure.form == "share")
    if measure.marks:
        told = "; ".join(f"{text} {shown(level, measure.form)}" for level, text in measure.marks)
        card.note = f"Dotted: {told}." if card.svg else f"To compare: {told}."
    return card


def _cells(runs: Sequence[Run], title: str, path: str, form: str) -> list[tuple[str, int, list[str]]]:
    """A row of each run that has the value at a path of its iterations' rows."""
    rows = []
    for place, run in enumerate(runs):
        known = {iteration.number: look_up(iteration.row, path) for iteration in run.iterations}
        if any(found is not None for found in known.values()):
            rows.append((title, place, [written(known.get(number), form) for number in _numbers(runs)]))
    return rows


def _numbers(runs: Sequence[Run]) -> list[int]:
    return sorted({iteration.number for run in runs for iteration in run.iterations})


def look_up(row: Any, path: str) -> Any:
    """What stands at a path of keys; None where there is nothing."""
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def interval(found: Any) -> tuple[float, float | None, float | None] | None:
    """Value, low and high of a measurement; of a bare number the value alone."""
    if isinstance(found, dict):
        value = found.get("value")
        return None if value is None else (value, found.get("low"), found.get("high"))
    return None if found is None else (found, None, None)


def shown(value: float | None, form: str) -> str:
    """A number for people."""
    if value is None:
        return "-"
    if form == "share":
        text = f"{value:.1%}"
    elif form == "count":
        text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    else:
        text = f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}")


def written(found: Any, form: str) -> str:
    """A measurement as the cell of a table."""
    known = interval(found)
    if known is None:
        return "-"
    value, low, high = known
    return shown(value, form) + (f" [{shown(low, form)}, {shown(high, form)}]" if low is not None else "")
