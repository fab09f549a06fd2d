"""The models of a run, a row each: what was measured of the seed, of M_0 and of every M_t, and what the loop changed.

The rows are "models" in `summary.json`, the table of iterations in the terminal and in the report. "differences" are
from M_0, which the loop starts from: the mean over prompts, or labelled pairs, of the difference of the two values,
with a bootstrap percentile interval over the same (of labelled pairs, over groups). Where both models had the same
question, that is far more certain than the difference of two means.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.agreement import read_report
from evaluation.decisions import collect
from evaluation.folders import ModelMeasurements
from evaluation.labelled import read_labelled
from evaluation.measures import half_credit
from evaluation.statistics import bootstrap, columns
from sampling.generate import read_units
from stages.files import read_json
from stages.settings import Settings

Row = dict[str, Any]
WAYS = {"scores": "by mean scores", "pairwise": "in both orders"}
"""How a judge compares two answers, in words."""

Values = dict[str, dict[str, dict[str, float]]]
"""Of one model: measure -> what is resampled -> item -> value."""


def model_rows(run: Path, settings: Settings, done: int, checkpoints: Sequence[str]) -> list[Row]:
    """A row for the seed, where SFT makes M_0 another model, and for M_0 to M_`done`; `checkpoints` in that order."""
    numbers = range(-1 if settings.sft.enabled else 0, done + 1)
    places = {t: ModelMeasurements.of(run, t) for t in numbers}
    values = {t: _values(place, settings, run) for t, place in places.items()}
    return [
        {"name": "seed" if t < 0 else f"M{t}", "checkpoint": checkpoint}
        | _judging(places[t], settings)
        | _acting(places[t], settings)
        | _winning(places[t], t, settings)
        | {"differences": differences(values[t], values[0]) if t > 0 else {}}
        for t, checkpoint in zip(numbers, checkpoints, strict=True)
    ]


def _judging(place: ModelMeasurements, settings: Settings) -> Row:
    evaluation = settings.evaluation
    found = read_report(place.agreement) if evaluation.judge_cases and place.agreement.is_dir() else {}
    meta = read_report(place.meta_agreement) if evaluation.comparisons and place.meta_agreement.is_dir() else {}
    return {
        "agreement": found.get("pairwise"),
        "longer_wins": found.get("longer_wins"),
        "spearman": found.get("spearman"),
        "parse_rate": found.get("parse_rate"),
        "meta_agreement": meta.get("agreement"),
    }


def _acting(place: ModelMeasurements, settings: Settings) -> Row:
    evaluation = settings.evaluation
    found = read_json(place.held_out / "report.json") if evaluation.instructions or evaluation.prompts else {}
    verifiable, answers = found.get("verifiable") or {}, found.get("answers") or {}
    return {
        "verifiable": verifiable.get("strict"),
        "verifiable_rules": verifiable.get("rules"),
        **{key: answers.get(key) for key in ("characters", "cut_off", "repetition", "distinct_1", "distinct_2")},
    }


def _winning(place: ModelMeasurements, t: int, settings: Settings) -> Row:
    """Against the seed, by whom."""
    evaluation, base = settings.evaluation, -1 if settings.sft.enabled else 0
    found = read_json(place.duel / "report.json") if evaluation.prompts and t > base else {}
    judge = {"current": f"M{t}", "initial": "M0"}.get(evaluation.judge, evaluation.judge)
    return {
        "win_rate": found.get("win_rate"),
        "win_rate_undecided": found["duels"] - found["win_rate"]["count"] if found else None,
        "win_rate_by": judge if found else None,
        "win_rate_way": WAYS[evaluation.protocol] if found else None,
        "win_rate_consistency": found.get("consistency"),
    }


def _values(place: ModelMeasurements, settings: Settings, run: Path) -> Values:
    """The single values behind a model's measures."""
    evaluation, found = settings.evaluation, {}
    if evaluation.instructions or evaluation.prompts:
        report = read_json(place.held_out / "report.json")
        if report["verifiable"]:
            followed = report["verifiable"]["followed"]
            found["verifiable"] = {name: {"": float(all(rules))} for name, rules in followed.items()}
        if report["answers"]:
            for name, own in report["answers"]["by_id"].items():
                for key, value in own.items():
                    found.setdefault(key, {})[name] = {"": value}
    if evaluation.judge_cases and place.agreement.is_dir():
        cases = Path(evaluation.judge_cases.replace("{run}", str(run)))
        found["agreement"] = _credits(cases, place.agreement / "judgments")
    return found


def _credits(cases: Path, judgments: Path) -> dict[str, dict[str, float]]:
    """By group and pair, whether the judge agrees with the label; pairs without a verdict are left out."""
    labelled = read_labelled(cases)
    rows = [{"id": row["response_id"], "index": row["index"], "score": row["score"]} for row in read_units(judgments)]
    decisions = collect("scores", ((f"{judgments}", row) for row in rows), labelled, str(judgments))
    preferences = decisions.opinion(labelled).preferences
    found: dict[str, dict[str, float]] = {}
    for pair in labelled.pairs:
        if (said := preferences[pair.name]) is not None:
            found.setdefault(pair.first.group, {})[pair.name] = half_credit(said, pair.label)
    return found


def differences(values: Values, others: Values) -> Row:
    """Of each measure that both have: the mean difference over the items that both have, with its interval."""
    return {
        measure: bootstrap([list(_paired(own, others[measure].get(group, {}))) for group, own in groups.items()])
        for measure, groups in values.items()
        if measure in others
    }


def _paired(own: Mapping[str, float], other: Mapping[str, float]) -> Iterator[float]:
    return (value - other[item] for item, value in own.items() if item in other)


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
"""Title, key, and how value and interval are written."""

CHANGES = {"verifiable": "{:+.1%} [{:+.1%}, {:+.1%}]", "agreement": "{:+.1%} [{:+.1%}, {:+.1%}]"}
CHANGES["characters"] = "{:+.1f} [{:+.1f}, {:+.1f}]"
"""The differences that are printed, and how."""


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The table of iterations as lines; columns without a value are left out, but for the wins that a judge was asked
    for."""
    judged = [row for row in rows if row["win_rate_by"]]
    with_values = {key for _, key, _ in COLUMNS if any(_value(row.get(key)) is not None for row in rows)}
    shown = [column for column in COLUMNS if column[1] in with_values or (column[1] == "win_rate" and judged)]
    if not shown:
        return
    lines = [["model", *(title for title, _, _ in shown)]]
    lines += [[row["name"], *(_written(row.get(key), form) for _, key, form in shown)] for row in rows]
    yield from columns(lines)
    for row in rows:
        found = {key: row["differences"][key] for key in CHANGES if key in row["differences"]}
        if found:
            changed = ", ".join(f"{key} {_written(found[key], CHANGES[key])}" for key in found)
            yield f"{row['name']} against M0, paired: {changed}"
    if judged:
        judges = list(dict.fromkeys(row["win_rate_by"] for row in judged))
        own = "self-judged" if set(judges) <= {row["name"] for row in rows} else "judged"
        yield f"* against the seed, {own}, {judged[0]['win_rate_way']}, by {', '.join(judges)}; a tie counts half"
        left_out = [(row["name"], row["win_rate_undecided"], row["win_rate"]["count"]) for row in judged]
        if listed := ", ".join(f"{name} {count} of {count + others}" for name, count, others in left_out if count):
            yield f"  prompts without a verdict, which are left out: {listed}"


def _value(found: Any) -> float | None:
    return found["value"] if isinstance(found, dict) else found


def _written(found: Any, form: str) -> str:
    """A share or a measure, with its interval where the form has one."""
    value = _value(found)
    if value is None:
        return "-"
    return form.format(value, *(found[part] for part in ("low", "high") if isinstance(found, dict)))
