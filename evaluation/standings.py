"""The table of iterations, as in the paper: a line a model, from the seed to the last."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.plots import Point, Series
from evaluation.sections import Card, Measure, Row, Run, interval, look_up, measure_card, shown


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
    Column("Win rate, self-judged", "win_rate", "share", "against the seed", ((0.5, "the seed"),)),
    Column("Verifiable", "verifiable", "share", "prompts whose rules all hold"),
    Column("Rules", "verifiable_rules", "share", "that hold"),
    Column("Length", "characters", "count", "characters"),
    Column("Judge agrees", "agreement", "share", "with the known order", ((0.5, "chance"),)),
    Column("Spearman", "spearman", "number", "of score and quality"),
    Column("Meta-judge agrees", "meta_agreement", "share", "names the right judgment", ((0.5, "chance"),)),
    Column("Parsed", "parse_rate", "share", "judgments that hold a score"),
    Column("Distinct bigrams", "distinct_2", "share"),
    Column("Repetition", "repetition", "share"),
    Column("Cut off", "cut_off", "share"),
)


@dataclass
class Cell:
    """A measurement, in up to four lines."""

    value: str
    lines: list[str]


def columns(runs: Sequence[Run]) -> list[Column]:
    """Those that some model has a value of."""
    rows = [row for run in runs for row in models(run)]
    return [column for column in COLUMNS if any(interval(row.get(column.key)) for row in rows)]


def models(run: Run) -> list[Row]:
    """The run's models with their measurements; of a run whose summary has none, what its iterations say of them."""
    if run.summary.get("models"):
        return run.summary["models"]
    sft = run.summary["sft"]
    rows = [_judge("seed", sft.get("agreement_before"), None), _judge("M0", sft["agreement"], sft["meta_agreement"])]
    for iteration in run.iterations:
        row = iteration.row
        rows.append(_judge(f"M{iteration.number}", row["agreement"], row["meta_agreement"]) | {"pairs": row["pairs"]})
    return rows


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
        under = [f"{shown(low, column.form)} to {shown(high, column.form)}"] if low is not None else []
        if column.key == "win_rate":
            under += [f"by {row.get('win_rate_by') or 'an unnamed judge'}"]
            if both := interval(row.get("win_rate_consistency")):
                under += [f"both orders agree {both[0]:.1%}"]
        if column.key == "agreement" and (longer := interval(row.get("longer_wins"))):
            under += [f"“longer wins” {longer[0]:.1%}"]
        if step := interval(look_up(row, f"differences.{column.key}")):
            under += [_difference(step, column.form)]
        yield Cell(shown(value, column.form), under)
    pairs = row.get("pairs") or {}
    yield Cell(", ".join(shown(pairs.get(kind), "count") for kind in ("actor", "judge")) if pairs else "-", [])


def _difference(step: tuple[Any, ...], form: str) -> str:
    """A paired difference from the seed."""
    value, low, high = (None if part is None else _signed(part, form) for part in step)
    return f"seed {value}" + (f" [{low}, {high}]" if low is not None else "")


def _signed(value: float, form: str) -> str:
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return sign + shown(abs(value), form)


def note(runs: Sequence[Run]) -> str:
    """What stands below the table."""
    rows = [row for run in runs for row in models(run)]
    told = "Small figures are 95% intervals."
    if any(row.get("differences") for row in rows):
        told += " A line that begins with “seed” is the paired difference from the seed."
    if any(interval(row.get("win_rate")) for row in rows):
        told += (
            " Win rates are by the judge named under them, a model of this run: they are no benchmark's."
        )
    return told


def cards(runs: Sequence[Run], chosen: Sequence[Column]) -> Iterator[Card]:
    """The columns that have a course: three models or more."""
    names = max((models(run) for run in runs), key=len)
    for column in chosen:
        series = [
            Series(
                place,
                [
                    Point(i, *known)
                    for i, row in enumerate(models(run))
                    if (known := interval(row.get(column.key))) is not None
                ],
            )
            for place, run in enumerate(runs)
        ]
        if max(len(item.points) for item in series) < 3:
            continue
        ticks = {float(i): row["name"] for i, row in enumerate(names)}
        title = f"{column.title}: {column.under}" if column.under else column.title
        if card := measure_card(f"models-{column.key}", Measure(title, "", column.form, column.marks), series, ticks):
            yield card
