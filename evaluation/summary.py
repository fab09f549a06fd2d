"""A run's summary: `runs/NAME/summary.json`, and the same in the terminal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.folders import STAGE_FOLDERS, ModelMeasurements
from evaluation.roster import cells, labelled_report, model_rows, notes
from evaluation.statistics import columns
from stages.files import read_json, read_jsonl, read_manifest, write_json
from stages.settings import Settings

BAR = "█"


def write_summary(folder: Path, settings: Settings, seed: Path, initial: Path, done: int) -> dict[str, Any]:
    """Write and return the summary of a run's first `done` iterations.

    SFT starts from the checkpoint `seed` and ends with the checkpoint `initial`.
    """
    summary: dict[str, Any] = {"name": folder.name, "seed": settings.seed, "model": settings.model.path}
    summary["pool"] = (read_manifest(folder / "pool") or {}).get("counts") if settings.prompts.seeds else None
    summary["sft"] = _sft(folder, initial, settings)
    summary["iterations"] = [_iteration(folder / f"iter{t}", t, settings) for t in range(1, done + 1)]
    checkpoints = [str(seed)] * settings.sft.enabled + [str(initial)]
    checkpoints += [row["checkpoint"] for row in summary["iterations"]]
    summary["models"] = model_rows(folder, settings, done, checkpoints)
    write_json(folder / "summary.json", summary)
    return summary


def _sft(folder: Path, checkpoint: Path, settings: Settings) -> dict[str, Any]:
    trained, evaluation = read_manifest(checkpoint) or {}, settings.evaluation
    seed, own = ModelMeasurements.of(folder, -1), ModelMeasurements.of(folder, 0)
    return {
        "checkpoint": str(checkpoint),
        "seconds": trained.get("seconds"),
        "counts": trained.get("counts"),
        "eft": read_manifest(folder / "sft" / "eft") if settings.eft.sources else None,
        "agreement_before": labelled_report(seed.agreement, evaluation.judge_cases),
        "agreement": labelled_report(own.agreement, evaluation.judge_cases),
        "meta_agreement": labelled_report(own.meta_agreement, evaluation.comparisons),
    }


def _iteration(folder: Path, number: int, settings: Settings) -> dict[str, Any]:
    used = {*(read_manifest(folder / "pairs") or {})["inputs"], "pairs", "checkpoint"}
    stages = {name: read_manifest(folder / place) or {} for name, place in STAGE_FOLDERS.items() if place in used}
    counts, model = stages["pairs"]["counts"], ModelMeasurements.of(folder.parent, number)
    reasons = {key: value for key, value in counts.items() if "." in key and value}
    return {
        "iteration": number,
        "rho": settings.iteration[number - 1].rho,
        "responses": stages["respond"]["counts"]["records"],
        "pairs": {"actor": counts["actor"], "judge": counts.get("judge", 0), "reasons": reasons},
        "bias": read_json(folder / "bias.json"),
        "dpo": _dpo(folder / "train" / "metrics.jsonl", stages["train"]),
        "agreement": labelled_report(model.agreement, settings.evaluation.judge_cases),
        "meta_agreement": labelled_report(model.meta_agreement, settings.evaluation.comparisons),
        "checkpoint": str(folder / "checkpoint"),
        "seconds": {name: manifest["seconds"] for name, manifest in stages.items() if "seconds" in manifest},
    }


def _dpo(metrics: Path, trained: dict[str, Any]) -> dict[str, Any]:
    """Loss, accuracy and margin on the held-out pairs, or without such pairs those of the last step."""
    last = trained if "accuracy" in trained else list(read_jsonl(metrics))[-1]
    values = {key: last[key] for key in ("loss", "accuracy", "margin")}
    return {"first_loss": trained["first_loss"], **values, "epoch": trained["epoch"], "held_out": last is trained}


def print_summary(summary: dict[str, Any]) -> None:
    """Print the summary and the table of models."""
    rows = summary["models"]
    print("", *summary_lines(summary), "", sep="\n")
    if len((table := cells(rows))[0]) > 1:
        print(*(f"  {line}" for line in [*columns(table), *notes(rows)]), sep="\n")


def summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    """The summary as it is printed, without the table of models."""
    sft = summary["sft"]
    yield summary["name"]
    if summary["pool"]:
        yield f"  new prompts  {_listed({name: count for name, count in summary['pool'].items() if count})}"
    if sft["eft"]:
        counts = sft["eft"]["counts"]
        judged, agree = counts["groups"] - counts["groups.held_out"], counts["groups.agrees"]
        yield (
            f"  EFT          {agree} of {judged} groups agree with people ({sft['eft']['agreeing_by_chance']} expected "
            f"by chance); {counts['examples']} examples"
        )
    reports = {"before": sft["agreement_before"], "after": sft["agreement"]}
    if parsed := ", ".join(
        f"{report['parse_rate']:.1%} {when}"
        for when, report in reports.items()
        if report and report["parse_rate"] is not None
    ):
        yield f"  SFT          judgments that hold a score: {parsed}"
    yield from _agreement_lines("M0", sft["agreement"], sft["meta_agreement"])
    for row in summary["iterations"]:
        yield f"\n  iteration {row['iteration']}  (rho {row['rho']:g})"
        yield from _panel_lines(row["bias"], row["responses"])
        pairs = row["pairs"]
        yield f"  pairs        {pairs['actor']} actor, {pairs['judge']} judge; no pair: {_listed(pairs['reasons'])}"
        values = ", ".join(f"{key} {value:.4g}" for key, value in row["dpo"].items() if key != "held_out")
        yield f"  DPO          {values} ({'held-out pairs' if row['dpo']['held_out'] else 'the last step'})"
        yield from _agreement_lines(f"M{row['iteration']}", row["agreement"], row["meta_agreement"])
        yield "  seconds      " + ", ".join(f"{stage} {value:.0f}" for stage, value in row["seconds"].items())
        yield f"  checkpoint   {row['checkpoint']}"


def _panel_lines(panel: dict[str, Any], responses: int) -> Iterator[str]:
    """The bias panel of one iteration."""
    texts, judge, meta = panel["responses"], panel["judge"], panel["metajudge"]
    yield (
        f"  responses    {responses}, {texts['distinct']} distinct, {texts['characters_mean'] or 0:.0f} characters on "
        "average"
    )
    if judge:
        if judge["judgments"]:
            yield f"  judgments    {_share(judge['parse_rate'])} parsed; failures: {_listed(judge['failures'])}"
            shares = [part["parse_rate"] for part in judge["by_response_length"] if part["judgments"]]
            yield f"               parsed by response length, short to long: {', '.join(f'{s:.0%}' for s in shares)}"
        if judge["score"] == "expected":
            yield f"  scores       expected; the digits hold {judge['digit_mass']:.1%} of the probability"
        total = max(sum(judge["score_histogram"].values()), 1)
        for score, count in judge["score_histogram"].items():
            yield f"    score {score:>4}  {count / total:6.1%}  {BAR * round(40 * count / total)}"
        yield (
            f"               mean {_number(judge['score_mean'])}, entropy {judge['score_entropy_bits']:.2f} bits, "
            f"fractions {judge['fractions'] or 0:.1%}"
        )
    yield (
        f"  scores       {texts['scored']} responses; ties within a prompt {_share(texts['ties'])}; score with "
        f"length: Spearman {_number(texts['score_length_spearman_within_prompt']['value'])} within a prompt"
    )
    if meta:
        yield (
            f"  meta-judge   {meta['comparisons']} comparisons; the first wins {_share(meta['first_wins'])}, "
            f"at equal scores {_share(meta['first_wins_at_equal_scores'])}"
        )
        yield (
            f"               the higher score wins {_share(meta['higher_score_wins'])}; Elo with length: Spearman "
            f"{_number(meta['elo_length_spearman']['value'])}; failures: {_listed(meta['failures'])}"
        )


def _share(share: dict[str, Any]) -> str:
    """A share with its interval."""
    if share["value"] is None:
        return "-"
    return f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _agreement_lines(name: str, agreement: dict[str, Any] | None, meta: dict[str, Any] | None) -> Iterator[str]:
    """How well a model judges and meta-judges, as far as that was measured."""
    if agreement and agreement["pairwise"]["count"]:
        pairwise, longer, rank = agreement["pairwise"], agreement["longer_wins"], agreement["spearman"]
        yield (
            f"  judge        {name} agrees with the labels {_share(pairwise)} (the longer response would: "
            f"{longer['value']:.1%}); Spearman {_number(rank['value'])}"
        )
        means = ", ".join(f"{quality}: {mean:.1f}" for quality, mean in agreement["mean_score_by_quality"].items())
        yield f"               mean score by labelled quality  {means}"
    if meta:
        yield (
            f"  meta-judge   {name} names the right judgment {_share(meta['agreement'])}, "
            f"and the first one {meta['first_position']['value'] or 0:.1%} of the time"
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
