"""What a run took: seconds and new tokens of each stage, those of its measurements among them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.folders import ModelMeasurements
from evaluation.report.plots import stacked
from evaluation.report.sections import FULL, Card, Row, Run, Section, look_up, shown
from evaluation.report.standings import models
from stages.files import read_manifest

PARTS = ("preparation", "answers", "judgments", "comparisons", "pairs", "training", "evaluation")
"""What a bar is made of; a part's place is its colour."""
LOOP = {"respond": "answers", "score": "scores", "judge": "judgments", "metajudge": "comparisons"}
LOOP |= {"pairs": "pairs", "train": "training"}
STAGES = {
    "new prompts": "preparation",
    "SFT's examples": "preparation",
    **{part: part for part in LOOP.values()},
    "scores": "judgments",
    "held-out answers": "evaluation",
    "answers against the seed's": "evaluation",
    "judge with labelled responses": "evaluation",
    "meta-judge with labelled judgments": "evaluation",
}
"""All stages, as they are called here, and the part each belongs to."""

Spent = dict[str, Row]
"""By stage: its seconds and new tokens, as far as they are known."""


def cost(runs: Sequence[Run]) -> Section:
    """Where the time goes: a bar before the loop and one an iteration, and the table of all stages."""
    section = Section("cost", "Seconds and tokens", "Where the time goes. Tokens are those generated, of all ranks.")
    taken = [_taken(run) for run in runs]
    section.heads = list(dict.fromkeys(head for spent in taken for head in sorted(spent, key=_order)))
    section.heads.sort(key=_order)
    for title, key in (("Seconds", "seconds"), ("New tokens", "new_tokens")):
        bars = [[(head, _parts(spent[head], key)) for head in section.heads if head in spent] for spent in taken]
        most = max((sum(value for _, value in parts) for own in bars for _, parts in own), default=0)
        used = {part for own in bars for _, parts in own for part, value in parts if value}
        for place, own in enumerate(bars if most else []):
            svg = stacked(f"cost-{key}-{place}", own, most)
            legend = [(part, PARTS[part]) for part in sorted(used)]
            section.cards.append(Card(f"{title}, by iteration", svg, size=FULL, run=place, legend=legend))
    for stage in STAGES:
        for place, spent in enumerate(taken):
            rows = [spent.get(head, {}).get(stage, {}) for head in section.heads]
            for title, key in (("seconds", "seconds"), ("new tokens", "new_tokens")):
                if any(row.get(key) is not None for row in rows):
                    cells = [shown(row.get(key), "count") for row in rows]
                    section.numbers.append((f"{stage}: {title}", place, cells))
            speeds = [row["new_tokens"] / row["seconds"] if row.get("new_tokens") and row.get("seconds") else None
                      for row in rows]  # fmt: skip
            if any(speeds):
                cells = [shown(speed, "count") for speed in speeds]
                section.numbers.append((f"{stage}: new tokens a second", place, cells))
    return section


def _order(head: str) -> int:
    return int(head) if head.isdecimal() else 0


def _parts(spent: Spent, key: str) -> list[tuple[int, float]]:
    return [
        (place, sum(row.get(key) or 0 for stage, row in spent.items() if STAGES[stage] == part))
        for place, part in enumerate(PARTS)
    ]


def _taken(run: Run) -> dict[str, Spent]:
    """Before the loop and of each iteration, where anything is known."""
    measured = {row["name"]: row for row in models(run)}
    before = {
        "new prompts": _told(run.folder / "pool") if run.summary.get("pool") else {},
        "SFT's examples": _told(run.folder / "sft" / "eft") if look_up(run.summary, "sft.eft") else {},
        "training": {"seconds": look_up(run.summary, "sft.seconds")},
    }
    for t, name in ((-1, "seed"), (0, "M0")):
        for stage, row in _measuring(ModelMeasurements.of(run.folder, t), measured.get(name, {})):
            for key, value in row.items():
                known = before.setdefault(stage, {})
                known[key] = (known.get(key) or 0) + value
    found = {"before": before}
    for iteration in run.iterations:
        own = {
            stage: {key: look_up(iteration.row, f"{key}.{name}") for key in ("seconds", "new_tokens")}
            for name, stage in LOOP.items()
        }
        own |= dict(_measuring(ModelMeasurements.of(run.folder, iteration.number), measured.get(f"M{iteration.number}", {})))
        found[f"{iteration.number}"] = own
    return {
        head: spent
        for head, spent in found.items()
        if any(value is not None for row in spent.values() for value in row.values())
    }


def _measuring(place: ModelMeasurements, model: Row) -> Iterator[tuple[str, Row]]:
    """The stages that measured a model, those whose outcome is in the table of models."""
    yield from (
        (stage, _told(folder))
        for stage, folder, keys in (
            ("held-out answers", place.answers, ("verifiable", "characters")),
            ("answers against the seed's", place.duel / "verdicts", ("win_rate",)),
            ("judge with labelled responses", place.agreement / "judgments", ("agreement",)),
            ("meta-judge with labelled judgments", place.meta_agreement / "comparisons", ("meta_agreement",)),
        )
        if any(model.get(key) for key in keys)
    )


def _told(folder: Path) -> Row:
    """What a stage's manifest says that it took."""
    return {key: value for key, value in (read_manifest(folder) or {}).items() if key in ("seconds", "new_tokens")}
