"""The table of models, as in the paper: a row for each model, from the seed to the last."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.parts import (
    Card,
    Measure,
    Numbers,
    ReportedRun,
    Row,
    interval,
    look_up,
    measure_card,
    shown,
    written,
)
from evaluation.report.plots import Point, Series

OWN = re.compile(r"M\d+")
"""The name of a model of the run. A judge from elsewhere is named by its folder."""

COLUMNS = (
    Measure("Win rate", "win_rate", "share", ((0.5, "the seed"),), "against the seed"),
    Measure("Verifiable", "verifiable", "share", under="prompts with all rules followed"),
    Measure("Rules", "verifiable_rules", "share", under="followed"),
    Measure("Length", "characters", "count", under="characters"),
    Measure("Judge agrees", "agreement", "share", ((0.5, "chance"),), "with the labels"),
    Measure("Spearman", "spearman", under="of score and quality"),
    Measure("Meta-judge agrees", "meta_agreement", "share", ((0.5, "chance"),), "with the labels"),
)
OTHERS = (
    Measure("Parsed", "parse_rate", "share", under="judgments that hold a score"),
    Measure("Distinct words", "distinct_1", "share", under="of all words of the answers"),
    Measure("Distinct bigrams", "distinct_2", "share", under="of all pairs of neighbouring words"),
    Measure("Repetition", "repetition", "share", under="three-word sequences that occurred before"),
    Measure("Cut off", "cut_off", "share", under="answers that reached the length limit"),
)


@dataclass
class Cell:
    """A value, and the lines of small text below it."""

    value: str
    lines: list[str]


def with_values(runs: Sequence[ReportedRun], measures: Sequence[Measure]) -> list[Measure]:
    """The measures that some model has a value of."""
    rows = [row for run in runs for row in run.models]
    return [measure for measure in measures if any(interval(row.get(measure.path)) for row in rows)]


def numbers(runs: Sequence[ReportedRun]) -> Numbers:
    """The other measures as a table, with a cell for each model name."""
    return [
        (
            f"{measure.title}: {measure.under}",
            place,
            [written(run.by_name.get(name, {}).get(measure.path), measure.form) for name in names(runs)],
        )
        for measure in with_values(runs, OTHERS)
        for place, run in enumerate(runs)
    ]


def names(runs: Sequence[ReportedRun]) -> list[str]:
    """The names of all models, the seed first. Some runs have no seed besides their M0."""
    present = {row["name"] for run in runs for row in run.models}
    return sorted(present, key=lambda name: (name != "seed", len(name), name))


def cells(row: Row, measures: Sequence[Measure]) -> Iterator[Cell]:
    """A model's cell for each measure, and last the number of pairs that trained the model."""
    for measure in measures:
        parts = interval(row.get(measure.path))
        if parts is None:
            yield Cell("-", [])
            continue
        value, low, high = parts
        lines = (
            [f"{shown(low, measure.form)} to {shown(high, measure.form)}".replace("%", "")] if low is not None else []
        )
        if measure.path == "win_rate":
            judged = "self-judged" if OWN.fullmatch(row["win_rate_by"]) else "judged"
            lines += [f"{judged} by {row['win_rate_by']},", row["win_rate_way"]]
            if consistency := interval(row.get("win_rate_consistency")):
                lines += [f"both orders agree {consistency[0]:.1%}"]
        if difference := interval(look_up(row, f"differences.{measure.path}")):
            lines += [_difference(difference, measure.form)]
        yield Cell(shown(value, measure.form), lines)
    pairs = row.get("pairs") or {}
    yield Cell(", ".join(shown(pairs.get(kind), "count") for kind in ("actor", "judge")) if pairs else "-", [])


def _difference(parts: tuple[Any, ...], form: str) -> str:
    """A paired difference from M0; of shares, in percentage points."""
    value, low, high = (_signed(part, form) for part in parts)
    return (f"{value}" + (f" [{low}, {high}]" if low else "")).replace("%", "")


def _signed(value: float | None, form: str) -> str:
    if value is None:
        return ""
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return sign + shown(abs(value), form)


def note(runs: Sequence[ReportedRun]) -> str:
    """The text below the table."""
    rows = [row for run in runs for row in run.models]
    sentences = ["Small numbers are 95% intervals."]
    if any(row.get("differences") for row in rows):
        sentences.append("Numbers with a sign are paired differences from M0; for shares, in percentage points.")
    longer = {f"{parts[0]:.1%}" for row in rows if (parts := interval(row.get("longer_wins")))}
    if longer:
        shares = " or ".join(sorted(longer))
        sentences.append(f"Always preferring the longer response would agree with the labels {shares} of the time.")
    if any(interval(row.get("win_rate")) for row in rows):
        sentences.append("Win rates are by the judge named below them, a tie counting half; none is a benchmark's.")
    return " ".join(sentences)


def cards(runs: Sequence[ReportedRun]) -> Iterator[Card]:
    """A card for each measure that three or more models of a run have."""
    places = {name: float(i) for i, name in enumerate(names(runs))}
    ticks = {place: name for name, place in places.items()}
    for measure in with_values(runs, COLUMNS + OTHERS):
        series = []
        for place, run in enumerate(runs):
            values = [(places[row["name"]], interval(row.get(measure.path))) for row in run.models]
            series.append(Series(place, [Point(x, *parts) for x, parts in values if parts is not None]))
        if max(len(item.points) for item in series) < 3:
            continue
        if card := measure_card(f"models-{measure.path}", measure, series, ticks):
            yield card
