"""A row for each model of a run: the measurements of the seed, of M_0 and of every M_t, and their differences.

The rows are "models" in `summary.json`, and the table of models in the terminal and in the report. "differences" are
paired differences from M_0, with which the loop starts: the mean over prompts (or labelled pairs) of the difference of
the two models' values. Intervals are bootstrap percentiles over prompts (or groups of labelled pairs). On the same
questions, a paired difference is far more certain than the difference of two means.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.agreement import half_credit, read_report
from evaluation.decisions import collect
from evaluation.folders import ModelMeasurements
from evaluation.labelled import read_labelled
from evaluation.statistics import bootstrap, columns
from stages.files import read_json, read_shards
from stages.settings import Settings

Row = dict[str, Any]
PROTOCOLS = {"scores": "by mean scores", "pairwise": "in both orders"}
"""The protocol of a judge, in words."""

Values = dict[str, dict[str, dict[str, float]]]
"""The single values of one model: measure -> group that is resampled -> item -> value."""


def model_rows(run: Path, settings: Settings, done: int, checkpoints: Sequence[str]) -> list[Row]:
    """Rows of M_0 to M_`done`, and before them of the seed where there is SFT; `checkpoints` have the same order."""
    numbers = range(-1 if settings.sft.enabled else 0, done + 1)
    models = {t: ModelMeasurements.of(run, t) for t in numbers}
    values = {t: _values(model, settings, run) for t, model in models.items()}
    return [
        {"name": "seed" if t < 0 else f"M{t}", "checkpoint": checkpoint}
        | _judging(models[t], settings)
        | _acting(models[t], settings)
        | _winning(models[t], t, settings)
        | {"differences": differences(values[t], values[0]) if t > 0 else {}}
        for t, checkpoint in zip(numbers, checkpoints, strict=True)
    ]


def _judging(model: ModelMeasurements, settings: Settings) -> Row:
    evaluation = settings.evaluation
    judge = read_report(model.agreement) if evaluation.judge_cases and model.agreement.is_dir() else {}
    meta = read_report(model.meta_agreement) if evaluation.comparisons and model.meta_agreement.is_dir() else {}
    return {
        "agreement": judge.get("pairwise"),
        "longer_wins": judge.get("longer_wins"),
        "spearman": judge.get("spearman"),
        "parse_rate": judge.get("parse_rate"),
        "meta_agreement": meta.get("agreement"),
    }


def _acting(model: ModelMeasurements, settings: Settings) -> Row:
    evaluation = settings.evaluation
    report = read_json(model.held_out / "report.json") if evaluation.instructions or evaluation.prompts else {}
    verifiable, answers = report.get("verifiable") or {}, report.get("answers") or {}
    return {
        "verifiable": verifiable.get("strict"),
        "verifiable_rules": verifiable.get("rules"),
        **{key: answers.get(key) for key in ("characters", "cut_off", "repetition", "distinct_1", "distinct_2")},
    }


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


def _values(model: ModelMeasurements, settings: Settings, run: Path) -> Values:
    """The single values behind a model's measures."""
    evaluation, values = settings.evaluation, {}
    if evaluation.instructions or evaluation.prompts:
        report = read_json(model.held_out / "report.json")
        if report["verifiable"]:
            followed = report["verifiable"]["followed"]
            values["verifiable"] = {name: {"": float(all(rules))} for name, rules in followed.items()}
        if report["answers"]:
            for name, own in report["answers"]["by_id"].items():
                for key, value in own.items():
                    values.setdefault(key, {})[name] = {"": value}
    if evaluation.judge_cases and model.agreement.is_dir():
        cases = Path(evaluation.judge_cases.replace("{run}", str(run)))
        values["agreement"] = _credits(cases, model.agreement / "judgments")
    return values


def _credits(cases: Path, judgments: Path) -> dict[str, dict[str, float]]:
    """By group and pair, 1, 1/2 or 0 for the judge's agreement with the label; pairs without a verdict are left out."""
    labelled = read_labelled(cases)
    rows = [{"id": row["response_id"], "index": row["index"], "score": row["score"]} for row in read_shards(judgments)]
    decisions = collect("scores", ((f"{judgments}", row) for row in rows), labelled, str(judgments))
    preferences = decisions.opinion(labelled).preferences
    groups: dict[str, dict[str, float]] = {}
    for pair in labelled.pairs:
        if (preference := preferences[pair.name]) is not None:
            groups.setdefault(pair.first.group, {})[pair.name] = half_credit(preference, pair.label)
    return groups


def differences(values: Values, base: Values) -> Row:
    """For each measure of both: the mean of value - base over the items of both, with its interval."""
    return {
        measure: bootstrap([list(_paired(own, base[measure].get(group, {}))) for group, own in groups.items()])
        for measure, groups in values.items()
        if measure in base
    }


def _paired(own: Mapping[str, float], base: Mapping[str, float]) -> Iterator[float]:
    return (value - base[item] for item, value in own.items() if item in base)


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

CHANGES = {"verifiable": "{:+.1%} [{:+.1%}, {:+.1%}]", "agreement": "{:+.1%} [{:+.1%}, {:+.1%}]"}
CHANGES["characters"] = "{:+.1f} [{:+.1f}, {:+.1f}]"
"""The differences to print, and their formats."""


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The table of models as lines, without empty columns. The win rate stays if a judge was asked for it."""
    judged = [row for row in rows if row["win_rate_by"]]
    with_values = {key for _, key, _ in COLUMNS if any(_value(row.get(key)) is not None for row in rows)}
    shown = [column for column in COLUMNS if column[1] in with_values or (column[1] == "win_rate" and judged)]
    if not shown:
        return
    lines = [["model", *(title for title, _, _ in shown)]]
    lines += [[row["name"], *(_written(row.get(key), form) for _, key, form in shown)] for row in rows]
    yield from columns(lines)
    for row in rows:
        changes = [(key, row["differences"][key]) for key in CHANGES if key in row["differences"]]
        if changes:
            listed = ", ".join(f"{key} {_written(change, CHANGES[key])}" for key, change in changes)
            yield f"{row['name']} against M0, paired: {listed}"
    if judged:
        judges = list(dict.fromkeys(row["win_rate_by"] for row in judged))
        own = "self-judged" if set(judges) <= {row["name"] for row in rows} else "judged"
        yield f"* against the seed, {own}, {judged[0]['win_rate_way']}, by {', '.join(judges)}; a tie counts half"
        left_out = [(row["name"], row["win_rate_undecided"], row["win_rate"]["count"]) for row in judged]
        if listed := ", ".join(f"{name} {count} of {count + judged}" for name, count, judged in left_out if count):
            yield f"  prompts without a verdict, which are left out: {listed}"


def _value(measurement: Any) -> float | None:
    return measurement["value"] if isinstance(measurement, dict) else measurement


def _written(measurement: Any, form: str) -> str:
    """A number, or a measurement with its interval if the form has one."""
    value = _value(measurement)
    if value is None:
        return "-"
    return form.format(value, *(measurement[end] for end in ("low", "high") if isinstance(measurement, dict)))
