"""The report's plots, drawn by matplotlib in colours for light and dark pages; runs stand side by side in each."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, MaxNLocator, MultipleLocator, PercentFormatter

from judging.scores import Reason
from stages.records import Record


@dataclass
class ReportedIteration:
    number: int
    row: Record  # of the summary
    metrics: list[Record] = field(default_factory=list)  # of the training steps
    scored: list[tuple[int, float]] = field(default_factory=list)  # characters and score of each scored response
    elo: list[float] = field(default_factory=list)
    prompts: list[list[Any]] = field(default_factory=list)  # what the browser shows (`page.py`)

    def panel(self, *keys: str) -> Any:
        """The value at nested keys of the bias panel, or a measurement's mean; None where a key is missing."""
        value = self.row["bias"]
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value["value"] if isinstance(value, dict) and "value" in value else value


@dataclass
class ReportedRun:
    name: str
    folder: Path
    summary: Record
    iterations: list[ReportedIteration] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)  # what can't be shown, since its files were deleted


def plots(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """The picture (a data URI) of each plot that any of the runs has data for, by its title."""
    return {title: picture for title in PLOTS if (picture := _picture(title, runs))}


@matplotlib.rc_context(fname=Path(__file__).parent / "templates" / "report.mplstyle")
def _picture(title: str, runs: Sequence[ReportedRun]) -> str:
    figure = Figure(figsize=(3.9 * len(runs), 2.9), layout="constrained", facecolor="none")
    axes = figure.subplots(1, len(runs), sharex=True, sharey=True, squeeze=False)[0]
    axis, draw = PLOTS[title]
    for own, run in zip(axes, runs, strict=True):
        draw(own, run)
        own.set(xlabel=axis, title=run.name if len(runs) > 1 else "")
        if title in SHARES:
            own.yaxis.set_major_formatter(PercentFormatter(1))
        if axis in LOCATORS:
            own.xaxis.set_major_locator(LOCATORS[axis]())
    if not any(own.has_data() for own in axes):
        return ""
    labels = {label: handle for own in axes for handle, label in zip(*own.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2 * len(runs), frameon=False, fontsize=7.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _panel(lines: Mapping[str, tuple[str, ...]], top: float | None, axes: Axes, run: ReportedRun) -> None:
    for name, keys in lines.items():
        points = [(i.number, value) for i in run.iterations if (value := i.panel(*keys)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name)
    if top:
        axes.set_ylim(0, top)


def _scores(axes: Axes, run: ReportedRun) -> None:
    for iteration in run.iterations:
        if histogram := iteration.panel("judge", "score_histogram"):
            shares = np.array([*histogram.values()]) / sum(histogram.values())
            axes.plot([float(score) for score in histogram], shares, "o-", label=f"iteration {iteration.number}")


def _score_by_length(axes: Axes, run: ReportedRun) -> None:
    """Mean score in up to 8 bins of equally many responses, each at its mean length."""
    for iteration in run.iterations:
        if scored := sorted(iteration.scored):
            bins = np.array_split(np.array(scored), min(8, max(len(scored) // 5, 1)))
            axes.plot(*zip(*(part.mean(0) for part in bins), strict=True), "o-", label=f"iteration {iteration.number}")


def _elo(axes: Axes, run: ReportedRun) -> None:
    for iteration in (iteration for iteration in run.iterations if iteration.elo):
        error = iteration.panel("metajudge", "elo_standard_error_mean")
        label = f"iteration {iteration.number}, standard error {error:.2f}"
        weights = np.full(len(iteration.elo), 1 / len(iteration.elo))
        axes.hist(iteration.elo, 15, weights=weights, histtype="step", label=label)


def _metrics(names: Sequence[str], axes: Axes, run: ReportedRun) -> None:
    first = 0
    for place, iteration in enumerate(run.iterations):
        steps = [row for row in iteration.metrics if row["split"] == "train"]
        for name, style in zip(names if steps else (), ("-", "--"), strict=False):
            label = f"iteration {iteration.number}" if name == names[0] else None
            values = [row[name] for row in steps]
            axes.plot(range(first, first + len(steps)), values, style, color=f"C{place % 10}", label=label)
        first += len(steps)


def _outcomes(kind: str, axes: Axes, run: ReportedRun) -> None:
    panels = {f"iteration {i.number}": panel for i in run.iterations if (panel := i.panel("pairs", kind))}
    left = np.zeros(len(panels))
    for place, name in enumerate(("pair", *Reason)):
        counts = [panel["pairs"] if name == "pair" else panel["reasons"].get(name, 0) for panel in panels.values()]
        if any(counts):
            colour, label = matplotlib.colormaps["tab20"](place), name.replace("_", " ")
            axes.barh([*panels], counts, left=left, color=colour, label=label)
            left += counts
    axes.yaxis.set_inverted(True)


LENGTHS = {
    "responses": ("responses", "characters_mean"),
    "chosen response": ("pairs", "actor", "chosen_characters_mean"),
    "rejected response": ("pairs", "actor", "rejected_characters_mean"),
}
POSITIONS = {
    "the first judgment": ("metajudge", "first_wins"),
    "first at equal scores": ("metajudge", "first_wins_at_equal_scores"),
    "the higher score": ("metajudge", "higher_score_wins"),
    "the same in both orders": ("metajudge", "both_orders_agree"),
}
PLOTS: dict[str, tuple[str, Callable[[Axes, ReportedRun], None]]] = {
    "Scores": ("score", _scores),
    "Lengths": ("iteration", partial(_panel, LENGTHS, None)),
    "Score by length": ("characters", _score_by_length),
    "What wins a comparison": ("iteration", partial(_panel, POSITIONS, 1.02)),
    "Elo": ("Elo score", _elo),
    "Actor pairs": ("prompts", partial(_outcomes, "actor")),
    "Judge pairs": ("prompts", partial(_outcomes, "judge")),
    "Loss": ("step", partial(_metrics, ["loss"])),
    "Rewards": ("step", partial(_metrics, ["reward_chosen", "reward_rejected"])),
}  # by title: the name of the horizontal axis, and what draws the plot; report.html has the captions
SHARES = ("Scores", "What wins a comparison", "Elo")  # plots with a vertical axis in per cent
LOCATORS: dict[str, Callable[[], Locator]] = {
    "iteration": partial(MultipleLocator, 1),
    "step": partial(MaxNLocator, 5, integer=True),
}
