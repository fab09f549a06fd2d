"""The report's pictures: small SVGs by matplotlib.

matplotlib draws in placeholder colours, which become the page's CSS variables, so that pictures follow light and dark.
Text stays text, in the page's font. The same data give the same bytes.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, LINE, MARK = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = [f"#0c0d{i:02x}" for i in range(1, 7)]
"""The colours of runs."""
PARTS = [f"#0e0f{i:02x}" for i in range(1, 8)]
"""The colours of a bar's parts."""
COLOURS = (
    {INK: "muted", LINE: "line", MARK: "mark"}
    | {colour: f"s{i}" for i, colour in enumerate(SERIES, 1)}
    | {colour: f"p{i}" for i, colour in enumerate(PARTS, 1)}
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}


class Point(NamedTuple):
    """A value, and the ends of its interval if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """One line of a picture."""

    colour: int
    """Index into `SERIES`."""
    points: Sequence[Point]
    dashed: bool = False


@matplotlib.rc_context(STYLE)
def lines(
    name: str,
    series: Sequence[Series],
    ticks: dict[float, str] | None = None,
    marks: Sequence[float] = (),
    percent: bool = False,
    label: str = "",
    bands: bool = False,
    dots: bool = True,
    reach: tuple[float, float] | None = None,
    height: tuple[float, float] | None = None,
    borders: Sequence[float] = (),
) -> str:
    """Lines over iterations, or over any other x; returns SVG.

    Intervals are vertical bars, or shaded bands with `bands`. `marks` are dotted horizontal lines, `borders` are thin
    vertical lines. `reach` and `height` are the ends of the x and the y axis.
    """
    figure, axes = _axes(2.7, 1.55)
    many = max(len(series), 1)
    for border in borders:
        axes.axvline(border, color=LINE, linewidth=0.6)
    for place, (colour, points, dashed) in enumerate(series):
        x = [p.x + (0 if bands or not dots else 0.07 * (place - (many - 1) / 2)) for p in points]
        y = [p.y for p in points]
        low = [p.y if p.low is None else p.low for p in points]
        high = [p.y if p.high is None else p.high for p in points]
        style: dict[str, Any] = {"color": SERIES[colour], "linestyle": (0, (3, 2)) if dashed else "-"}
        axes.plot(x, y, marker="o" if dots else None, markersize=4, markeredgewidth=0, **style)
        if bands:
            axes.fill_between(x, low, high, color=SERIES[colour], alpha=0.15, linewidth=0)
        elif low != y or high != y:
            axes.vlines(x, low, high, color=SERIES[colour], alpha=0.4, linewidth=2.5)
    for level in marks:
        axes.axhline(level, color=MARK, linewidth=1.2, linestyle=(0, (1, 2)))
    if ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlim(min(ticks) - 0.4, max(ticks) + 0.4)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    if reach:
        axes.set_xlim(reach)
    if height:
        axes.set_ylim(height)
    elif dots and not bands:
        axes.set_ylim(*_room(*axes.get_ylim(), percent))
    return _finished(name, figure, axes, percent, label)


@matplotlib.rc_context(STYLE)
def bars(
    name: str,
    series: Sequence[tuple[int, dict[float, float]]],
    reach: tuple[float, float],
    top: float,
    width: float = 1.0,
    label: str = "",
) -> str:
    """Histograms side by side: (colour, share at each x). `width` is the bins' distance, `top` the greatest share."""
    figure, axes = _axes(2.7, 1.45)
    each = 0.8 * width / max(len(series), 1)
    for place, (colour, shares) in enumerate(series):
        x = [value + each * (place - (len(series) - 1) / 2) for value in shares]
        axes.bar(x, list(shares.values()), 0.92 * each, color=SERIES[colour], linewidth=0)
    axes.set_xlim(reach[0] - 0.6 * width, reach[1] + 0.6 * width)
    axes.set_ylim(0, 1.05 * top)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    return _finished(name, figure, axes, percent=True, label=label)


@matplotlib.rc_context(STYLE)
def stacked(
    name: str, rows: Sequence[tuple[str, Sequence[tuple[int, float]]]], most: float = 1.0, percent: bool = False
) -> str:
    """One horizontal bar for each row, of parts (colour, value) from left to right; `most` is the axis's end."""
    figure, axes = _axes(3.3, 0.4 + 0.24 * len(rows))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    for place, (_, parts) in enumerate(rows):
        left = 0.0
        for colour, value in parts:
            axes.barh(place, value, 0.62, left=left, color=PARTS[colour], edgecolor="none")
            left += value
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent if percent else _plain))
    axes.set_xlim(0, most)
    return _svg(name, figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _finished(name: str, figure: Figure, axes: Axes, percent: bool, label: str) -> str:
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent if percent else _plain))
    if label:
        axes.set_xlabel(label)
    return _svg(name, figure)


def _room(low: float, high: float, percent: bool) -> tuple[float, float]:
    """The ends of a y axis, wide enough that noise doesn't look like a trend; shares stay between 0 and 1."""
    least = 0.2 if percent else 0.25 * max(abs(low), abs(high))
    if (short := least - (high - low)) > 0:
        low, high = low - short / 2, high + short / 2
    if percent:
        low, high = (low - max(high - 1.01, 0), min(high, 1.01)) if high > 1.01 else (low, high)
        low, high = (max(low, -0.01), high - min(low + 0.01, 0)) if low < -0.01 else (low, high)
    return low, high


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.6g}%"


def _plain(value: float, _: int) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.10g}" if value == 0 or abs(value) > 1e-4 else f"{value:.0e}"
    return text.replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def _svg(name: str, figure: Figure) -> str:
    """The picture as markup for a page: without size and unused ids, in the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text
    )
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", text)


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """A long curve, shortened to means of neighbouring points."""
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [Point(sum(p.x for p in g) / len(g), sum(p.y for p in g) / len(g)) for g in groups]
