"""A run's summary: `runs/NAME/summary.json`, and the same in the terminal.

Its "models" are a row for each model, with paired "differences" from M_0, which are far more certain than those of two
means. Intervals are over prompts (or groups of labelled pairs).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.agreement import half_credit, read_report
from evaluation.labelled import read_decisions, read_labelled
from evaluation.measure import ModelMeasurements
from evaluation.statistics import by_group, columns, shown
from judging.scores import GUARD_REASONS
from judging.trace import STAGES
from stages.files import read_json, read_manifest, write_sealed
from stages.records import Record
from stages.rows import NUMBER, Row
from stages.settings import Settings

PROTOCOLS = {"scores": "by mean scores", "pairwise": "in both orders"}
BY_ANSWER = ("characters", "cut_off", "repetition")  # measures that each answer to an open prompt has for itself
_BRIEF, _CHANGE = "{:.1%} [{:.0%}, {:.0%}]", "{:+.1%} [{:+.1%}, {:+.1%}]"
COLUMNS = (
    ("wins*", "win_rate", _BRIEF),
    ("score*", "score", "{:.2f} [{:.2f}, {:.2f}]"),
    ("verifiable", "verifiable", _BRIEF),
    ("characters", "characters", "{:.0f}"),
    ("distinct-2", "distinct_2", "{:.2f}"),
    ("repetition", "repetition", "{:.1%}"),
    ("leakage", "role_leakage", "{:.1%}"),
    ("judge agrees", "agreement", _BRIEF),
    ("on rules", "agreement_on_rules", _BRIEF),
    ("meta-judge", "meta_agreement", _BRIEF),
)  # the table of models: title, key, and the format of value and interval
CHANGES = {"verifiable": _CHANGE, "agreement": _CHANGE, "score": "{:+.2f} [{:+.2f}, {:+.2f}]"} | {
    "characters": "{:+.1f} [{:+.1f}, {:+.1f}]"
}  # those printed
Values = dict[str, dict[tuple[str, str], float]]
"""A model's single values by measure, and by (group that is resampled, name within the group)."""


def write_summary(folder: Path, settings: Settings, seed: Path, initial: Path, done: int) -> Record:
    """Write and return the summary of a run's first `done` iterations; SFT makes `initial` from `seed`."""
    trained = read_manifest(initial) or {}
    iterations = [_iteration(folder / f"iter{t}", t, settings) for t in range(1, done + 1)]
    checkpoints = [str(seed)] * settings.sft.enabled + [str(initial), *(row["checkpoint"] for row in iterations)]
    sft = {"checkpoint": str(initial), "seconds": trained.get("seconds"), "counts": trained.get("counts")}
    sft["eft"] = read_manifest(folder / "sft" / "eft") if settings.eft.sources else None
    sft["agreement_before"] = _judged(folder, -1, settings)["agreement"]
    pool = (read_manifest(folder / "pool") or {}).get("counts") if settings.prompts.seeds else None
    summary: Record = {"name": folder.name, "seed": settings.seed, "model": settings.model.path, "pool": pool}
    summary |= {"sft": sft | _judged(folder, 0, settings), "iterations": iterations}
    summary["models"] = _models(folder, settings, checkpoints)
    write_sealed(folder / "summary.json", summary)
    return summary


def _judged(run: Path, t: int, settings: Settings) -> Record:
    """M_t's measurements on labelled data; None where the config names no file or the model was not measured."""
    model, evaluation = ModelMeasurements.of(run, t), settings.evaluation
    named = {
        "agreement": evaluation.judge_cases,
        "meta_agreement": evaluation.comparisons,
        "rules": evaluation.on_rules,
    }
    folders = {key: getattr(model, key) for key in named}
    return {key: read_report(folders[key]) if file and folders[key].is_dir() else None for key, file in named.items()}


def _iteration(folder: Path, number: int, settings: Settings) -> Record:
    used = {*(read_manifest(folder / "pairs") or {})["inputs"], "pairs", "checkpoint"}
    places = STAGES | {"pairs": "pairs", "train": "checkpoint"}
    stages = {name: read_manifest(folder / place) or {} for name, place in places.items() if place in used}
    counts, trained = stages["pairs"]["counts"], stages["train"]
    pairs: Record = {"actor": counts["actor"], "judge": counts.get("judge", 0)}
    pairs["reasons"] = {key: value for key, value in counts.items() if "." in key and value}
    # The held-out pairs' figures, or without such pairs those of the last step.
    figures = dict.fromkeys(("loss", "accuracy", "margin"), NUMBER)
    Row(f"{folder}/checkpoint/manifest.json", trained).checked(**figures)  # one of an older version may lack them
    dpo = {key: trained[key] for key in ("first_loss", *figures, "epoch")}
    dpo |= {"held_out": trained["counts"]["held_out"] > 0}
    seconds = {name: manifest["seconds"] for name, manifest in stages.items() if "seconds" in manifest}
    row: Record = {"iteration": number, "rho": settings.iteration[number - 1].rho}
    row |= {"responses": stages["respond"]["counts"]["records"], "pairs": pairs}
    row |= {"bias": read_json(folder / "bias.json"), "dpo": dpo} | _judged(folder.parent, number, settings)
    return row | {"checkpoint": str(folder / "checkpoint"), "seconds": seconds}


def _models(run: Path, settings: Settings, checkpoints: Sequence[str]) -> list[Record]:
    """Rows of M_0 and every M_t, and before them of the seed where there is SFT."""
    rows, base, evaluation, first = [], Values(), settings.evaluation, -1 if settings.sft.enabled else 0
    for t, checkpoint in enumerate(checkpoints, first):
        model, judged = ModelMeasurements.of(run, t), _judged(run, t, settings)
        judge, meta, on_rules = (judged[key] or {} for key in ("agreement", "meta_agreement", "rules"))
        actor = read_json(model.held_out / "report.json") if evaluation.instructions or evaluation.prompts else {}
        verifiable, answers = actor.get("verifiable") or {}, actor.get("answers") or {}
        wins = read_json(model.duel / "report.json") if evaluation.prompts and t > first else {}  # over the seed
        fixed_wins = wins if evaluation.judge != "current" else {}  # scores of one judge can be compared
        values = _values(model, actor, fixed_wins, evaluation.judge_cases.replace("{run}", str(run)) if judge else "")
        base = values if t == 0 else base
        by = {"current": f"M{t}", "initial": "M0"}.get(evaluation.judge, evaluation.judge) if wins else None
        row: Record = {"name": "seed" if t < 0 else f"M{t}", "checkpoint": checkpoint}
        row |= {"agreement": judge.get("pairwise"), "meta_agreement": meta.get("agreement")}
        row["agreement_on_rules"] = on_rules.get("pairwise")
        row |= {key: judge.get(key) for key in ("longer_wins", "spearman", "parse_rate")}
        row |= {"verifiable": verifiable.get("strict"), "verifiable_rules": verifiable.get("rules")}
        row |= {key: answers.get(key) for key in (*BY_ANSWER, "distinct_1", "distinct_2")}
        row["role_leakage"] = actor.get("role_leakage")
        row |= {key: wins.get(key) for key in ("win_rate", "score")}
        row["win_rate_undecided"] = wins["duels"] - wins["win_rate"]["count"] if wins else None
        row |= {"win_rate_by": by, "win_rate_way": PROTOCOLS[evaluation.protocol] if wins else None}
        row["win_rate_consistency"] = wins.get("consistency")
        rows.append(row | {"differences": differences(values, base) if t > 0 else {}})
    return rows


def _values(model: ModelMeasurements, actor: Record, wins: Record, cases: str) -> Values:
    values = Values()
    if verifiable := actor.get("verifiable"):
        kept = verifiable["followed"].items()
        values["verifiable"] = {(name, str(k)): float(all(one)) for name, own in kept for k, one in enumerate(own)}
    if answers := actor.get("answers"):
        values |= {key: {(name, ""): own[key] for name, own in answers["by_id"].items()} for key in BY_ANSWER}
    if scores := wins.get("scores"):
        values["score"] = {(name, ""): score for name, score in scores.items() if score is not None}
    if cases:
        labelled = read_labelled(Path(cases))
        preferences = read_decisions(model.agreement / "decisions.jsonl", labelled).opinion(labelled).preferences
        pairs = [(pair, own) for pair in labelled.pairs if (own := preferences[pair.name])]
        values["agreement"] = {(pair.first.group, pair.name): half_credit(own, pair.label) for pair, own in pairs}
    return values


def differences(values: Values, base: Values) -> Record:
    """For each measure of both: the mean of value - base over the items of both, with its interval."""
    return {
        name: by_group((item[0], own[item] - base[name][item]) for item in own if item in base[name])
        for name, own in values.items()
        if name in base
    }


def cells(rows: Sequence[Record]) -> list[list[str]]:
    """The table of models, without empty columns, its heads first. The win rate stays if a judge was asked for it."""
    table = [["model", *(row["name"] for row in rows)]]
    for title, key, form in COLUMNS:
        column = [shown(row.get(key), form) for row in rows]
        if set(column) != {"-"} or (key == "win_rate" and any(row["win_rate_by"] for row in rows)):
            table.append([title, *column])
    return [list(line) for line in zip(*table, strict=True)]


def notes(rows: Sequence[Record]) -> Iterator[str]:
    """The lines below the table: paired differences, who judged, and prompts without a verdict."""
    for row in rows:
        own = row["differences"]
        if listed := ", ".join(f"{key} {shown(own[key], form)}" for key, form in CHANGES.items() if key in own):
            yield f"{row['name']} against M0, paired: {listed}"
    if judged := [row for row in rows if row["win_rate_by"]]:
        judges = list(dict.fromkeys(row["win_rate_by"] for row in judged))
        own = "self-judged" if set(judges) <= {row["name"] for row in rows} else "judged"
        way = f"{own}, {judged[0]['win_rate_way']}, by {', '.join(judges)}"
        yield f"* wins are against the seed; {way}; a tie counts half"
        left_out = [(row["name"], row["win_rate_undecided"], row["win_rate"]["count"]) for row in judged]
        if listed := ", ".join(f"{name} {count} of {count + decided}" for name, count, decided in left_out if count):
            yield f"  prompts without a verdict, which are left out: {listed}"


def print_summary(summary: Record) -> None:
    rows = summary["models"]
    print("", *summary_lines(summary), "", sep="\n")
    if len((table := cells(rows))[0]) > 1:
        print(*(f"  {line}" for line in [*columns(table), *notes(rows)]), sep="\n")


def summary_lines(summary: Record) -> Iterator[str]:
    """All that is printed above the table of models."""
    sft = summary["sft"]
    yield summary["name"]
    if summary["pool"]:
        yield f"  new prompts  {_listed({name: count for name, count in summary['pool'].items() if count})}"
    if sft["eft"]:
        counts = sft["eft"]["counts"]
        agreeing = f"{counts['groups.agrees']} of {counts['groups'] - counts['groups.held_out']}"
        yield f"  EFT          {agreeing} groups agree with people; {counts['examples']} examples"
    reports = ((sft["agreement_before"] or {}, "before"), (sft["agreement"] or {}, "after"))
    rates = [f"{shown(rate, '{:.1%}')} {when}" for one, when in reports if (rate := one.get("parse_rate")) is not None]
    if rates:
        yield f"  SFT          judgments that hold a score: {', '.join(rates)}"
    yield from _agreement_lines("M0", sft)
    for row in summary["iterations"]:
        yield f"\n  iteration {row['iteration']}  (rho {row['rho']:g})"
        yield from _panel_lines(row["bias"], row["responses"])
        yield from selection_lines(row["bias"]["selection"])
        pairs = row["pairs"]
        yield f"  pairs        {pairs['actor']} actor, {pairs['judge']} judge; no pair: {_listed(pairs['reasons'])}"
        removed = {own: count for own in GUARD_REASONS if (count := pairs["reasons"].get(f"judge.{own}"))}
        yield from (f"  guards       {count} judge pairs removed: {own.explanation}" for own, count in removed.items())
        values = ", ".join(f"{key} {value:.4g}" for key, value in row["dpo"].items() if key != "held_out")
        yield f"  DPO          {values} ({'held-out pairs' if row['dpo']['held_out'] else 'the last step'})"
        yield from _agreement_lines(f"M{row['iteration']}", row)
        yield "  seconds      " + ", ".join(f"{stage} {value:.0f}" for stage, value in row["seconds"].items())
        yield f"  checkpoint   {row['checkpoint']}"


def _panel_lines(panel: Record, responses: int) -> Iterator[str]:
    texts, judge, meta = panel["responses"], panel["judge"], panel["metajudge"]
    characters = f"{texts['characters_mean'] or 0:.0f} characters on average"
    yield f"  responses    {responses}, {texts['distinct']} distinct, {characters}"
    if judge:
        if judge["judgments"]:
            yield f"  judgments    {shown(judge['parse_rate'])} parsed; failures: {_listed(judge['failures'])}"
            shares = [part["parse_rate"] for part in judge["by_response_length"] if part["judgments"]]
            yield f"               parsed by response length, short to long: {', '.join(f'{s:.0%}' for s in shares)}"
        if judge["score"] == "expected":
            yield f"  scores       expected; the digits hold {judge['digit_mass']:.1%} of the probability"
        total = max(sum(judge["score_histogram"].values()), 1)
        for score, count in judge["score_histogram"].items():
            yield f"    score {score:>4}  {count / total:6.1%}  {'█' * round(40 * count / total)}"
        spread = f"entropy {judge['score_entropy_bits']:.2f} bits, fractions {judge['fractions'] or 0:.1%}"
        yield f"               mean {shown(judge['score_mean'], '{:.2f}')}, {spread}"
    within = shown(texts["score_length_spearman_within_prompt"], "{:.2f}")
    ties = f"{texts['scored']} responses; ties within a prompt {shown(texts['ties'])}"
    yield f"  scores       {ties}; score with length: Spearman {within} within a prompt"
    if meta:
        at_equal, length = shown(meta["first_wins_at_equal_scores"]), shown(meta["elo_length_spearman"], "{:.2f}")
        first = f"the first wins {shown(meta['first_wins'])}, at equal scores {at_equal}"
        yield f"  meta-judge   {meta['comparisons']} comparisons; {first}"
        higher = f"the higher score wins {shown(meta['higher_score_wins'])}"
        yield f"               {higher}; Elo with length: Spearman {length}; failures: {_listed(meta['failures'])}"


def selection_lines(selection: Record) -> Iterator[str]:
    """The table "selection gain": what the iteration's pairs could teach, before training."""
    form, score = "{:.1%} [{:.0%}, {:.0%}]", {name: shown(own, "{:.2f}") for name, own in selection["score"].items()}
    yield f"  selection    mean score of a random response {score['random']}, of the best {score['best']}"
    if rules := selection["rules"]:
        names = {"random": "a random one", "best": "the best", "worst": "the worst", "oracle": "an oracle's"}
        listed = ", ".join(f"{words} {shown(rules[name], form)}" for name, words in names.items())
        yield f"               follows the rules: {listed}"
        yield f"               of pairs of which one does, {shown(rules['ordered'], form)} are ordered rightly"


def _agreement_lines(name: str, measured: Record) -> Iterator[str]:
    judge, meta = measured["agreement"], measured["meta_agreement"]
    if judge and judge["pairwise"]["count"]:
        longer = f"the longer response would: {shown(judge['longer_wins'], '{:.1%}')}"
        agrees = f"agrees with the labels {shown(judge['pairwise'])} ({longer})"
        yield f"  judge        {name} {agrees}; Spearman {shown(judge['spearman'], '{:.2f}')}"
        means = ", ".join(f"{quality}: {mean:.1f}" for quality, mean in judge["mean_score_by_quality"].items())
        yield f"               mean score by labelled quality  {means}"
    if meta:
        first = f"the first one {meta['first_position']['value'] or 0:.1%} of the time"
        yield f"  meta-judge   {name} names the right judgment {shown(meta['agreement'])}, and {first}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
