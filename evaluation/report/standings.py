"""The table of iterations, as in the paper: a line a model, from the seed to the last."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.plots import Point, Series
from evaluation.report.sections import Card, Measure, Row, Run, interval, look_up, measure_card, shown, written

OWN = re.compile(r"M\d+")
"""A model of the run: who else judges is named by its folder."""


@dataclass(frozen=True)
class Column:
    """A measurement of models."""

    title: str
    key: str
    form: str
    under: str = ""
    """What the title does not say."""
    marks: tuple[tuple[float, str], ...] = ()


COLUMNS = (
    Column("Win rate", "win_rate", "share", "against the seed", ((0.5, "the seed"),)),
    Column("Verifiable", "verifiable", "share", "all rules followed"),
    Column("Rules", "verifiable_rules", "share", "followed"),
    Column("Length", "characters", "count", "characters"),
    Column("Judge agrees", "agreement", "share", "with the known order", ((0.5, "chance"),)),
    Column("Spearman", "spearman", "number", "of score and quality"),
    Column("Meta-judge agrees", "meta_agreement", "share", "with the known order", ((0.5, "chance"),)),
)
OTHERS = (
    Column("Parsed", "parse_rate", "share", "judgments that hold a score"),
    Column("Distinct words", "distinct_1", "share", "of all words of the answers"),
    Column("Distinct bigrams", "distinct_2", "share", "of all pairs of neighbouring words"),
    Column("Repetition", "repetition", "share", "three-word sequences that came before"),
    Column("Cut off", "cut_off", "share", "answers that met the limit of length"),
)


@dataclass
class Cell:
    """A measurement, in up to four lines."""

    value: str
    lines: list[str]


def measured(runs: Sequence[Run], among: Sequence[Column]) -> list[Column]:
    """The columns that some model has a value of."""
    rows = [row for run in runs for row in models(run)]
    return [column for column in among if any(interval(row.get(column.key)) for row in rows)]


def numbers(runs: Sequence[Run]) -> list[tuple[str, int, list[str]]]:
    """The other measurements as a table: what, of which run, a cell a model of any run."""
    return [
        (
            f"{column.title}: {column.under}",
            place,
            [written(rows.get(name, {}).get(column.key), column.form) for name in names(runs)],
        )
        for column in measured(runs, OTHERS)
        for place, rows in enumerate(map(_by_name, runs))
    ]


def names(runs: Sequence[Run]) -> list[str]:
    """Of all models of the runs, the seed first; not each run has one beside its M0."""
    known = {row["name"] for run in runs for row in models(run)}
    return sorted(known, key=lambda name: (name != "seed", len(name), name))


def _by_name(run: Run) -> dict[str, Row]:
    return {row["name"]: row for row in models(run)}


def models(run: Run) -> list[Row]:
    """The run's models with their measurements; of a run whose summary has none, what its iterations say of them."""
    trained = {f"M{iteration.number}": iteration.row for iteration in run.iterations}
    rows = run.summary.get("models")
    if not rows:
        sft = run.summary["sft"]
        rows = [
            _judge("seed", sft.get("agreement_before"), None),
            _judge("M0", sft["agreement"], sft["meta_agreement"]),
        ]
        rows += [_judge(name, row["agreement"], row["meta_agreement"]) for name, row in trained.items()]
    return [row | {"pairs": look_up(trained, f"{row['name']}.pairs")} for row in rows]


def _judge(name: str, found: Row | None, meta: Row | None) -> Row:
    found, meta = found or {}, meta or {}
    return {
        "name": name,
        "agreement": found.get("pairwise"),
        "longer_wins": found.get("longer_wins"),
        "spearman": found.get("spearman"),
        "parse_rate": found.get("parse_rate"),
        "meta_agreement": meta.get("agreement"),
    }


def cells(row: Row, chosen: Sequence[Column]) -> Iterator[Cell]:
    """The row's cells of these columns; after them the pairs that trained the model."""
    for column in chosen:
        known = interval(row.get(column.key))
        if known is None:
            yield Cell("-", [])
            continue
        value, low, high = known
        under = [f"{shown(low, column.form)} to {shown(high, column.form)}".replace("%", "")] if low is not None else []
        if column.key == "win_rate":
            judged = "self-judged" if OWN.fullmatch(row["win_rate_by"]) else "judged"
            under += [f"{judged} by {row['win_rate_by']},", row["win_rate_way"]]
            if both := interval(row.get("win_rate_consistency")):
                under += [f"both orders agree {both[0]:.1%}"]
        if step := interval(look_up(row, f"differences.{column.key}")):
            under += [_difference(step, column.form)]
        yield Cell(shown(value, column.form), under)
    pairs = row.get("pairs") or {}
    yield Cell(", ".join(shown(pairs.get(kind), "count") for kind in ("actor", "judge")) if pairs else "-", [])


def _difference(step: tuple[Any, ...], form: str) -> str:
    """A paired difference from M0; of shares in percentage points."""
    value, low, high = (_signed(part, form) for part in step)
    return (f"{value}" + (f" [{low}, {high}]" if low else "")).replace("%", "")


def _signed(value: float | None, form: str) -> str:
    if value is None:
        return ""
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return sign + shown(abs(value), form)


def note(runs: Sequence[Run]) -> str:
    """What stands below the table."""
    rows = [row for run in runs for row in models(run)]
    told = "Small figures are 95% intervals."
    if any(row.get("differences") for row in rows):
        told += " Those with a sign are paired differences from M0, of shares in percentage points."
    longer = {f"{known[0]:.1%}" for row in rows if (known := interval(row.get("longer_wins")))}
    if longer:
        told += f" That the longer response is better agrees with the known order {' or '.join(sorted(longer))}."
    if any(interval(row.get("win_rate")) for row in rows):
        told += " A win rate is by the judge named under it, a tie counting half: no benchmark's number."
    return told


def cards(runs: Sequence[Run]) -> Iterator[Card]:
    """The measurements that have a course: three models or more."""
    places = {name: i for i, name in enumerate(names(runs))}
    for column in measured(runs, COLUMNS + OTHERS):
        series = [
            Series(
                place,
                [
                    Point(places[row["name"]], *known)
                    for row in models(run)
                    if (known := interval(row.get(column.key))) is not None
                ],
            )
            for place, run in enumerate(runs)
        ]
        if max(len(item.points) for item in series) < 3:
            continue
        ticks = {float(place): name for name, place in places.items()}
        measure = Measure(column.title, "", column.form, column.marks)
        if card := measure_card(f"models-{column.key}", measure, series, ticks):
            card.under = column.under
            yield card
