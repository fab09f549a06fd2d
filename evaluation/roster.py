"""A row for each model of a run: the measurements of the seed, of M_0 and of every M_t, and their differences.

The rows are "models" in `summary.json`, and the table of models in the terminal and in the report. "differences" are
paired differences from M_0, with which the loop starts: the mean over prompts (or labelled pairs) of the difference of
the two models' values. Intervals are bootstrap percentiles over prompts (or groups of labelled pairs). On the same
questions, a paired difference is far more certain than the difference of two means.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.agreement import half_credit, read_report
from evaluation.decisions import read_decisions
from evaluation.folders import ModelMeasurements
from evaluation.labelled import read_labelled
from evaluation.statistics import bootstrap
from stages.files import read_json
from stages.settings import Settings

Row = dict[str, Any]
PROTOCOLS = {"scores": "by mean scores", "pairwise": "in both orders"}
"""The protocol of a judge, in words."""

ANSWERS = ("characters", "cut_off", "repetition", "distinct_1", "distinct_2")
Item = tuple[str, str]
"""The group that is resampled, and the name within the group."""
Values = dict[str, dict[Item, float]]
"""The single values of one model, by measure."""


def model_rows(run: Path, settings: Settings, done: int, checkpoints: Sequence[str]) -> list[Row]:
    """Rows of M_0 to M_`done`, and before them of the seed where there is SFT; `checkpoints` have the same order."""
    numbers = range(-1 if settings.sft.enabled else 0, done + 1)
    measured = {t: _measured(ModelMeasurements.of(run, t), settings, run) for t in numbers}
    return [
        {"name": "seed" if t < 0 else f"M{t}", "checkpoint": checkpoint}
        | measured[t][0]
        | _winning(ModelMeasurements.of(run, t), t, settings)
        | {"differences": differences(measured[t][1], measured[0][1]) if t > 0 else {}}
        for t, checkpoint in zip(numbers, checkpoints, strict=True)
    ]


def labelled_report(folder: Path, wanted: str) -> Row | None:
    """A measurement on labelled data; None where the config names no file or the model was not measured."""
    return read_report(folder) if wanted and folder.is_dir() else None


def _measured(model: ModelMeasurements, settings: Settings, run: Path) -> tuple[Row, Values]:
    """A model's measures as a judge, meta-judge and actor, and the single values behind the measures."""
    evaluation = settings.evaluation
    judge = labelled_report(model.agreement, evaluation.judge_cases) or {}
    meta = labelled_report(model.meta_agreement, evaluation.comparisons) or {}
    actor = read_json(model.held_out / "report.json") if evaluation.instructions or evaluation.prompts else {}
    verifiable, answers = actor.get("verifiable") or {}, actor.get("answers") or {}
    values: Values = {}
    for name, rules in verifiable.get("followed", {}).items():
        values.setdefault("verifiable", {})[name, ""] = float(all(rules))
    for name, own in answers.get("by_id", {}).items():
        for key, value in own.items():
            values.setdefault(key, {})[name, ""] = value
    if judge:
        cases = Path(evaluation.judge_cases.replace("{run}", str(run)))
        values["agreement"] = _credits(cases, model.agreement / "decisions.jsonl")
    row = {"agreement": judge.get("pairwise"), "meta_agreement": meta.get("agreement")}
    row |= {key: judge.get(key) for key in ("longer_wins", "spearman", "parse_rate")}
    row |= {"verifiable": verifiable.get("strict"), "verifiable_rules": verifiable.get("rules")}
    return row | {key: answers.get(key) for key in ANSWERS}, values


def _winning(model: ModelMeasurements, t: int, settings: Settings) -> Row:
    """The win rate against the seed, and its judge."""
    evaluation, base = settings.evaluation, -1 if settings.sft.enabled else 0
    report = read_json(model.duel / "report.json") if evaluation.prompts and t > base else {}
    judge = {"current": f"M{t}", "initial": "M0"}.get(evaluation.judge, evaluation.judge)
    return {
        "win_rate": report.get("win_rate"),
        "win_rate_undecided": report["duels"] - report["win_rate"]["count"] if report else None,
        "win_rate_by": judge if report else None,
        "win_rate_way": PROTOCOLS[evaluation.protocol] if report else None,
        "win_rate_consistency": report.get("consistency"),
    }


def _credits(cases: Path, decisions: Path) -> dict[Item, float]:
    """1, 1/2 or 0 for the judge's agreement with each pair's label; pairs without a verdict are left out."""
    labelled = read_labelled(cases)
    preferences = read_decisions(decisions, labelled).opinion(labelled).preferences
    decided = [(pair, preference) for pair in labelled.pairs if (preference := preferences[pair.name]) is not None]
    return {(pair.first.group, pair.name): half_credit(preference, pair.label) for pair, preference in decided}


def differences(values: Values, base: Values) -> Row:
    """For each measure of both: the mean of value - base over the items of both, with its interval."""
    paired: Row = {}
    for measure in (name for name in values if name in base):
        groups: dict[str, list[float]] = {}
        for (group, item), value in values[measure].items():
            if (group, item) in base[measure]:
                groups.setdefault(group, []).append(value - base[measure][group, item])
        paired[measure] = bootstrap(list(groups.values()))
    return paired


COLUMNS = (
    ("wins*", "win_rate", "{:.1%} [{:.0%}, {:.0%}]"),
    ("verifiable", "verifiable", "{:.1%} [{:.0%}, {:.0%}]"),
    ("characters", "characters", "{:.0f}"),
    ("distinct-2", "distinct_2", "{:.2f}"),
    ("repetition", "repetition", "{:.1%}"),
    ("judge agrees", "agreement", "{:.1%} [{:.0%}, {:.0%}]"),
    ("Spearman", "spearman", "{:.2f}"),
    ("meta-judge", "meta_agreement", "{:.1%} [{:.0%}, {:.0%}]"),
)
"""Title, key, and the format of value and interval."""

CHANGES = dict.fromkeys(("verifiable", "agreement"), "{:+.1%} [{:+.1%}, {:+.1%}]") | {
    "characters": "{:+.1f} [{:+.1f}, {:+.1f}]"
}
"""The differences to print, and their formats."""


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table of models, without empty columns, its heads first. The win rate stays if a judge was asked for it."""
    shown = [column for column in COLUMNS if any(_value(row.get(column[1])) is not None for row in rows)]
    if any(row["win_rate_by"] for row in rows) and COLUMNS[0] not in shown:
        shown.insert(0, COLUMNS[0])
    heads = ["model", *(title for title, _, _ in shown)]
    return [heads, *([row["name"], *(_written(row.get(key), form) for _, key, form in shown)] for row in rows)]


def notes(rows: Sequence[Row]) -> Iterator[str]:
    """The lines below the table: paired differences, who judged, and prompts without a verdict."""
    for row in rows:
        changes = [(key, row["differences"][key]) for key in CHANGES if key in row["differences"]]
        if listed := ", ".join(f"{key} {_written(change, CHANGES[key])}" for key, change in changes):
            yield f"{row['name']} against M0, paired: {listed}"
    if judged := [row for row in rows if row["win_rate_by"]]:
        judges = list(dict.fromkeys(row["win_rate_by"] for row in judged))
        own = "self-judged" if set(judges) <= {row["name"] for row in rows} else "judged"
        yield f"* against the seed, {own}, {judged[0]['win_rate_way']}, by {', '.join(judges)}; a tie counts half"
        left_out = [(row["name"], row["win_rate_undecided"], row["win_rate"]["count"]) for row in judged]
        if listed := ", ".join(f"{name} {count} of {count + decided}" for name, count, decided in left_out if count):
            yield f"  prompts without a verdict, which are left out: {listed}"


def _value(measurement: Any) -> float | None:
    return measurement["value"] if isinstance(measurement, dict) else measurement


def _written(measurement: Any, form: str) -> str:
    """A number, or a measurement with its interval if the form has one."""
    value = _value(measurement)
    if value is None:
        return "-"
    return form.format(value, *(measurement[end] for end in ("low", "high") if isinstance(measurement, dict)))
