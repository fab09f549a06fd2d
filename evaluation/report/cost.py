"""Seconds and new tokens of each stage of a run, including the stages that measure its models."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.folders import STAGE_FOLDERS, ModelMeasurements
from evaluation.report.parts import FULL, Card, ReportedRun, Row, Section, look_up, shown
from evaluation.report.plots import stacked
from stages.files import read_manifest

PARTS = ("preparation", "responses", "judgments", "comparisons", "pairs", "training", "evaluation")
"""The parts of a bar; a part's index is its colour."""
LOOP = STAGE_FOLDERS | {"train": "training"}
STAGES = {
    "new prompts": "preparation",
    "SFT's examples": "preparation",
    **{title: title for title in LOOP.values()},
    "scores": "judgments",
    "held-out answers": "evaluation",
    "answers compared with the seed's": "evaluation",
    "judge on labelled responses": "evaluation",
    "meta-judge on labelled judgments": "evaluation",
}
"""The part of each stage, by the stage's title, in the table's order."""

Spent = dict[str, Row]
"""{seconds, new_tokens} of each stage; a number that is unknown is None or absent."""


def cost(runs: Sequence[ReportedRun]) -> Section:
    """One bar for the time before the loop and one for each iteration, and a table of all stages."""
    section = Section("cost", "Seconds and tokens", "Time and generated tokens of each stage. Tokens are of all ranks.")
    by_run = [_spent(run) for run in runs]
    section.heads = list(dict.fromkeys(head for spent in by_run for head in sorted(spent, key=_order)))
    section.heads.sort(key=_order)
    for title, key in (("Seconds", "seconds"), ("New tokens", "new_tokens")):
        bars = [[(head, _parts(spent[head], key)) for head in section.heads if head in spent] for spent in by_run]
        most = max((sum(value for _, value in parts) for own in bars for _, parts in own), default=0)
        used = {part for own in bars for _, parts in own for part, value in parts if value}
        for place, own in enumerate(bars if most else []):
            svg = stacked(f"cost-{key}-{place}", own, most)
            legend = [(part, PARTS[part]) for part in sorted(used)]
            section.cards.append(Card(f"{title}, by iteration", svg, size=FULL, run=place, legend=legend))
    for stage in STAGES:
        for place, spent in enumerate(by_run):
            rows = [spent.get(head, {}).get(stage, {}) for head in section.heads]
            columns = {
                "seconds": [row.get("seconds") for row in rows],
                "new tokens": [row.get("new_tokens") for row in rows],
            }
            pairs = list(zip(columns["new tokens"], columns["seconds"], strict=True))
            columns["new tokens a second"] = [
                tokens / seconds if tokens and seconds else None for tokens, seconds in pairs
            ]
            for title, values in columns.items():
                if any(value is not None for value in values):
                    cells = [shown(value, "count") for value in values]
                    section.numbers.append((f"{stage}: {title}", place, cells))
    return section


def _order(head: str) -> int:
    return int(head) if head.isdecimal() else 0


def _parts(spent: Spent, key: str) -> list[tuple[int, float]]:
    return [
        (place, sum(row.get(key) or 0 for stage, row in spent.items() if STAGES[stage] == part))
        for place, part in enumerate(PARTS)
    ]


def _spent(run: ReportedRun) -> dict[str, Spent]:
    """By "before" (the loop) and by iteration, where any number is known."""
    before = {
        "new prompts": _recorded(run.folder / "pool") if run.summary.get("pool") else {},
        "SFT's examples": _recorded(run.folder / "sft" / "eft") if look_up(run.summary, "sft.eft") else {},
        "training": {"seconds": look_up(run.summary, "sft.seconds")},
    }
    for t in (-1, 0):
        for stage, row in _measuring(run, t):
            total = before.setdefault(stage, {})
            for key, value in row.items():
                total[key] = (total.get(key) or 0) + value
    heads = {"before": before}
    for iteration in run.iterations:
        heads[f"{iteration.number}"] = {
            title: {key: look_up(iteration.row, f"{key}.{name}") for key in ("seconds", "new_tokens")}
            for name, title in LOOP.items()
        } | dict(_measuring(run, iteration.number))
    return {
        head: spent
        for head, spent in heads.items()
        if any(value is not None for row in spent.values() for value in row.values())
    }


def _measuring(run: ReportedRun, t: int) -> Iterator[tuple[str, Row]]:
    """The stages that measured M_t (t = -1: the seed), if the table of models has their results."""
    folders, model = ModelMeasurements.of(run.folder, t), run.by_name.get("seed" if t < 0 else f"M{t}", {})
    yield from (
        (stage, _recorded(folder))
        for stage, folder, keys in (
            ("held-out answers", folders.answers, ("verifiable", "characters")),
            ("answers compared with the seed's", folders.duel / "verdicts", ("win_rate",)),
            ("judge on labelled responses", folders.agreement / "judgments", ("agreement",)),
            ("meta-judge on labelled judgments", folders.meta_agreement / "comparisons", ("meta_agreement",)),
        )
        if any(model.get(key) for key in keys)
    )


def _recorded(folder: Path) -> Row:
    """Seconds and new tokens in a stage's manifest."""
    return {key: value for key, value in (read_manifest(folder) or {}).items() if key in ("seconds", "new_tokens")}
