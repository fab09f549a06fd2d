"""What the report is made of: runs and iterations as they were read, measures, cards and sections; numbers as text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.report.browser import Evidence
from evaluation.report.plots import Series, lines

Row = dict[str, Any]
Numbers = list[tuple[str, int, list[str]]]
"""A table's rows: the title, the index of the run, a cell for each head."""
FULL, HALF = "wide", ""
"""Width of a card."""


@dataclass
class ReportedIteration:
    """One iteration: its row of the summary, the metrics of its training, the evidence behind its pairs."""

    number: int
    row: Row
    metrics: list[Row]
    evidence: Evidence


@dataclass
class ReportedRun:
    """One run of the report."""

    name: str
    folder: Path
    summary: Row
    iterations: list[ReportedIteration] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """What can't be shown, since its files were deleted."""

    @property
    def by_name(self) -> dict[str, Row]:
        """The rows of `models`, by the model's name."""
        return {row["name"]: row for row in self.models}

    @property
    def models(self) -> list[Row]:
        """The run's models with their measurements; a summary without models has them in its SFT and iterations."""
        trained = {f"M{iteration.number}": iteration.row for iteration in self.iterations}
        rows = self.summary.get("models")
        if not rows:
            sft = self.summary["sft"]
            rows = [
                _judge_row("seed", sft.get("agreement_before"), None),
                _judge_row("M0", sft["agreement"], sft["meta_agreement"]),
            ]
            rows += [_judge_row(name, row["agreement"], row["meta_agreement"]) for name, row in trained.items()]
        return [row | {"pairs": look_up(trained, f"{row['name']}.pairs")} for row in rows]


def _judge_row(name: str, agreement: Row | None, meta: Row | None) -> Row:
    agreement, meta = agreement or {}, meta or {}
    return {
        "name": name,
        "agreement": agreement.get("pairwise"),
        "longer_wins": agreement.get("longer_wins"),
        "spearman": agreement.get("spearman"),
        "parse_rate": agreement.get("parse_rate"),
        "meta_agreement": meta.get("agreement"),
    }


@dataclass(frozen=True)
class Measure:
    """A number that each iteration, or each model, has."""

    title: str
    path: str
    """Keys in the row, joined by dots. The value is a number, or {value, low, high}."""
    form: str = "number"
    """share, number or count."""
    marks: tuple[tuple[float, str], ...] = ()
    """Levels to compare with, and what they mean."""
    under: str = ""
    """What the title leaves out."""


@dataclass
class Card:
    """A measure's values, or a picture, or both."""

    title: str
    svg: str = ""
    values: list[tuple[int, str, str]] = field(default_factory=list)
    """For each run: its index, the last value, the interval."""
    size: str = HALF
    note: str = ""
    under: str = ""
    run: int | None = None
    """The index of the only run that the picture shows; None: it shows all runs."""
    legend: list[tuple[int, str]] = field(default_factory=list)
    """Colours that don't stand for runs, and their meaning."""


@dataclass
class Section:
    """One topic of the report."""

    name: str
    title: str
    look: str
    """What to look for."""
    cards: list[Card] = field(default_factory=list)
    numbers: Numbers = field(default_factory=list)
    """The same values as a table."""
    heads: list[str] = field(default_factory=list)
    """The table's heads; empty: the iterations."""
    empty: str = "This run has no data for this section."
    """The text in place of the cards, where there are none."""


def measure_card(name: str, measure: Measure, series: Sequence[Series], ticks: dict[float, str]) -> Card | None:
    """Each run's last value, and a curve where there are several ticks; None without any value."""
    series = [item for item in series if item.points]
    if not series:
        return None
    card = Card(measure.title, under=measure.under)
    for item in series:
        _, value, low, high = item.points[-1]
        between = f"{shown(low, measure.form)} to {shown(high, measure.form)}" if low is not None else ""
        card.values.append((item.colour, shown(value, measure.form), between))
    if len(ticks) > 1:
        levels = [level for level, _ in measure.marks]
        card.svg = lines(name, series, ticks, levels, percent=measure.form == "share")
    if measure.marks:
        marks = "; ".join(f"{text} {shown(level, measure.form)}" for level, text in measure.marks)
        card.note = f"Dotted: {marks}." if card.svg else f"For comparison: {marks}."
    return card


def look_up(row: Any, path: str) -> Any:
    """The value at a path of keys joined by dots; None where a key is missing."""
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def interval(measurement: Any) -> tuple[float, float | None, float | None] | None:
    """Value, low and high of a measurement; a bare number has no low and high; None without a value."""
    if isinstance(measurement, dict):
        value = measurement.get("value")
        return None if value is None else (value, measurement.get("low"), measurement.get("high"))
    return None if measurement is None else (measurement, None, None)


def shown(value: float | None, form: str) -> str:
    """A number as text, by the form of its measure."""
    if value is None:
        return "-"
    if form == "share":
        text = f"{value:.1%}"
    elif form == "count":
        text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    else:
        text = f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}")


def written(measurement: Any, form: str) -> str:
    """A measurement with its interval, as the cell of a table."""
    parts = interval(measurement)
    if parts is None:
        return "-"
    value, low, high = parts
    return shown(value, form) + (f" [{shown(low, form)}, {shown(high, form)}]" if low is not None else "")
