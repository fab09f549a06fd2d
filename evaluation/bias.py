"""The bias panel: what may go wrong with a judge and a meta-judge, measured in every iteration.

`iterate.py` writes it as `runs/NAME/iter<t>/bias.json` before it trains: the meta-judge's taste for the first position
and for high scores, the judge's for long responses, scores that pile up, judgments that can't be read, and how many
pairs come of it all. Intervals are bootstrap percentiles over prompts. `[limits]` of the config stop a run on it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.agreement import read_report
from evaluation.statistics import bootstrap, entropy, spearman
from judging.pairs import Sources
from judging.scores import Record, distinct_responses, group_by, read_scores, response_scores
from judging.verdict import MAXIMUM, Failure
from sampling.generate import read_units
from stages.files import read_jsonl, read_manifest, write_json
from stages.settings import Limits, Metajudge, Settings

LENGTH_BINS = 5
"""Bins of response length, with equally many responses each as far as lengths allow."""


def write_panel(
    path: Path,
    iteration: int,
    settings: Settings,
    sources: Sources,
    pairs: Path,
    agreement: Path | None = None,
    meta_agreement: Path | None = None,
) -> dict[str, Any]:
    """Measure an iteration by the stages that its pairs are made from and the pairs; writes and returns the panel.

    `agreement` and `meta_agreement` are where its judge and its meta-judge were measured on labelled data, if so.
    """
    everything = list(read_units(sources.responses))
    responses = distinct_responses(everything)
    judge = meta = None
    judgments: list[Record] = []
    if sources.judgments:
        judgments = list(_columns(sources.judgments, "id", "response_id", "index", "text", "score", "failure"))
    if sources.scores_file:
        scores = read_scores(sources.scores_file, everything)
    else:
        expected = list(read_units(sources.scores)) if sources.scores else []
        scores = response_scores(group_by(expected or judgments, "response_id"), settings.judge.scores_needed)
        judge = judge_panel(responses, judgments, expected)
    if sources.comparisons:
        comparisons = list(_columns(sources.comparisons, "response_id", "first", "second", "winner", "failure"))
        meta = _asked(settings.metajudge) | metajudge_panel(comparisons, judgments, read_jsonl(pairs / "elo.jsonl"))
    stages = {"judge": sources.scores or sources.judgments, "metajudge": sources.comparisons}
    panel = {
        "iteration": iteration,
        "weights": {name: (read_manifest(path) or {})["weights"] for name, path in stages.items() if path},
        "responses": response_panel(responses, scores),
        "judge": judge,
        "metajudge": meta,
        "pairs": pairs_panel(pairs),
        "agreement": _agreement(agreement, ("parse_rate", "pairwise", "longer_wins", "spearman")),
        "meta_agreement": _agreement(meta_agreement, ("parse_rate", "agreement", "first_position", "consistency")),
    }
    write_json(path, panel)
    return panel


def judge_panel(
    responses: Sequence[Record], judgments: Sequence[Record], expected: Sequence[Record] = ()
) -> dict[str, Any]:
    """What the judgments say by themselves: parse rate, failures by type and by response length, the scores' spread.

    An iteration that samples none has its rows of `expected` scores in their place. With such rows, the spread is that
    of the digits' probabilities, as the histogram of endlessly many judgments would be; "digit_mass" is the share of
    the distribution that the digits have.
    """
    prompt_of = {row["id"]: row["prompt_id"] for row in responses}
    parsed: dict[str, list[float]] = {}
    for row in judgments or expected:
        parsed.setdefault(prompt_of[row["response_id"]], []).append(float(row["score"] is not None))
    scores = [row["score"] for row in judgments if row["score"] is not None]
    refused = sum(row["failure"] == Failure.FRACTION for row in judgments)
    broken = sum(score != int(score) for score in scores)
    scored = [row for row in expected if row["score"] is not None]
    histogram: Mapping[float, float] = _expected_histogram(scored) if scored else Counter(scores)
    return {
        "score": "expected" if expected else "sampled",
        "judgments": len(judgments),
        "parse_rate": bootstrap(list(parsed.values())),
        "failures": _failures([*judgments, *expected]),
        "by_response_length": _by_length(responses, judgments) if judgments else [],
        "score_histogram": {f"{score:g}": round(histogram[score], 2) for score in sorted(histogram)},
        "score_mean": _mean([row["score"] for row in scored] if expected else scores),
        "score_entropy_bits": round(entropy(list(histogram.values())), 4),
        "saturation": _share(histogram.get(MAXIMUM, 0), sum(histogram.values())),
        "fractions": _share(refused + broken, len(scores) + refused),
        "digit_mass": _mean([sum(row["probabilities"]) for row in expected]),
    }


def _expected_histogram(rows: Iterable[Record]) -> dict[float, float]:
    """How many of the rows' judgments would state each score, were there one a row."""
    masses = np.array([row["probabilities"] for row in rows])
    return dict(enumerate((masses / masses.sum(1, keepdims=True)).sum(0).tolist()))


def response_panel(responses: Sequence[Record], scores: Mapping[str, Fraction]) -> dict[str, Any]:
    """Mean length and score; ties among a prompt's scored responses; how score and length go together."""
    groups = group_by(responses, "prompt_id").values()
    known = [[row for row in rows if row["id"] in scores] for rows in groups]
    lengths = [[float(len(row["text"])) for row in rows] for rows in known]
    values = [[scores[row["id"]] for row in rows] for rows in known]
    floats = [[float(score) for score in row] for row in values]
    within = [spearman(a, b) for a, b in zip(floats, lengths, strict=True) if len(a) > 1]
    flat = [value for row in floats for value in row]
    return {
        "distinct": len(responses),
        "characters_mean": _mean([len(row["text"]) for row in responses]),
        "scored": len(flat),
        "score_mean": _mean(flat),
        "ties": bootstrap([_ties(row) for row in values]),
        "all_equal": _share(sum(len(row) > 1 and len(set(row)) == 1 for row in values), len(values)),
        "score_length_spearman": _rounded(spearman(flat, [x for row in lengths for x in row]) if flat else None),
        "score_length_spearman_within_prompt": bootstrap([[value] for value in within if value is not None]),
    }


def metajudge_panel(
    comparisons: Sequence[Record], judgments: Iterable[Record], elos: Iterable[Record]
) -> dict[str, Any]:
    """Whom the meta-judge prefers: the first shown, the higher score, the longer judgment; and how firmly."""
    score = {(row["response_id"], row["index"]): row["score"] for row in judgments}
    text = {row["id"]: row["text"] for row in judgments}
    first: dict[str, list[float]] = {}
    equal: dict[str, list[float]] = {}
    higher: dict[str, list[float]] = {}
    winners: dict[str, dict[frozenset[int], list[int]]] = {}
    for row in comparisons:
        name = row["response_id"]
        if row["winner"] not in ("first", "second"):
            continue
        won_first = row["winner"] == "first"
        gap = score[name, row["first"]] - score[name, row["second"]]
        first.setdefault(name, []).append(float(won_first))
        if gap:
            higher.setdefault(name, []).append(float(won_first == (gap > 0)))
        else:
            equal.setdefault(name, []).append(float(won_first))
        pair = frozenset((row["first"], row["second"]))
        winners.setdefault(name, {}).setdefault(pair, []).append(row["first"] if won_first else row["second"])
    errors: list[float] = []
    within: list[list[float]] = []
    for contest in group_by(elos, "response_id").values():
        errors += [row["standard_error"] for row in contest]
        ranks = [
            spearman([row["elo"] for row in rows], [len(text[row["judgment_id"]]) for row in rows])
            for rows in group_by(contest, "group").values()
        ]
        within.append([rank for rank in ranks if rank is not None])
    both = [[float(names[0] == names[1]) for names in own.values() if len(names) == 2] for own in winners.values()]
    return {
        "comparisons": len(comparisons),
        "failures": _failures(comparisons),
        "ties": _share(sum(row["winner"] == "tie" for row in comparisons), len(comparisons)),
        "first_wins": bootstrap(list(first.values())),
        "first_wins_at_equal_scores": bootstrap(list(equal.values())),
        "higher_score_wins": bootstrap(list(higher.values())),
        "both_orders_agree": bootstrap(both),
        "elo_length_spearman": bootstrap(within),
        "elo_standard_error_mean": _mean(errors),
    }


def pairs_panel(folder: Path) -> dict[str, Any]:
    """How many prompts gave a pair, why the others gave none, and how long chosen and rejected texts are."""
    counts = (read_manifest(folder) or {})["counts"]
    found: dict[str, Any] = {}
    for kind in ("actor", "judge"):
        if kind not in counts:
            continue
        pairs = list(read_jsonl(folder / f"{kind}.jsonl"))
        found[kind] = {
            "pairs": counts[kind],
            "yield": _share(counts[kind], counts["prompts"]),
            "reasons": {
                name.removeprefix(f"{kind}."): count
                for name, count in counts.items()
                if name.startswith(f"{kind}.") and count
            },
            "chosen_characters_mean": _mean([len(row["chosen"][0]["content"]) for row in pairs]),
            "rejected_characters_mean": _mean([len(row["rejected"][0]["content"]) for row in pairs]),
        }
    return found


def broken_limits(panel: Mapping[str, Any], limits: Limits) -> list[str]:
    """What of the panel breaks which limit, a clause each. Without a single pair there is nothing to train on."""
    broken = []
    if not any(found["pairs"] for found in panel["pairs"].values()):
        broken.append("no prompt gives a pair")
    if panel["judge"]:
        rate, saturation = panel["judge"]["parse_rate"]["value"], panel["judge"]["saturation"]
        if (rate or 0.0) < limits.parse_rate:
            broken.append(f"{rate or 0:.1%} of the judgments hold a score, limits.parse_rate is {limits.parse_rate:g}")
        if saturation is not None and saturation > limits.max_top_score_share:
            broken.append(
                f"{saturation:.1%} of the scores are {MAXIMUM}, limits.max_top_score_share is {limits.max_top_score_share:g}"
            )
    for kind, least in (("actor", limits.actor_yield), ("judge", limits.judge_yield)):
        found = panel["pairs"].get(kind)
        if found and (found["yield"] or 0.0) < least:
            broken.append(f"{found['yield'] or 0:.1%} of the prompts give a pair, limits.{kind}_yield is {least:g}")
    return broken


def _by_length(responses: Sequence[Record], judgments: Iterable[Record]) -> list[dict[str, Any]]:
    """Judgments, parse rate and failures by length of the judged response: long ones are cut, and fail, more often."""
    if not responses:
        return []
    length = {row["id"]: len(row["text"]) for row in responses}
    edges = np.unique(np.quantile(list(length.values()), np.linspace(0, 1, LENGTH_BINS + 1), method="lower"))
    bins: list[list[Record]] = [[] for _ in range(max(len(edges) - 1, 1))]
    for row in judgments:
        place = int(np.searchsorted(edges, length[row["response_id"]], side="right")) - 1
        bins[min(place, len(bins) - 1)].append(row)
    return [
        {
            "from_characters": int(edges[i]),
            "judgments": len(rows),
            "parse_rate": _share(sum(row["score"] is not None for row in rows), len(rows)),
            "failures": _failures(rows),
        }
        for i, rows in enumerate(bins)
    ]


def _asked(meta: Metajudge) -> dict[str, Any]:
    """The settings against the collapse of the meta-judge, and for fewer comparisons."""
    return {"model": meta.model, "opponents": meta.opponents or "all", "max_score_gap": meta.max_score_gap}


def _columns(stage: Path, *fields: str) -> Iterator[Record]:
    """A stage's records with these fields alone: a full run has half a million."""
    for row in read_units(stage):
        yield {key: row[key] for key in fields}


def _ties(scores: Sequence[Fraction]) -> list[float]:
    """Of each two responses of a prompt whether they score the same."""
    return [float(a == b) for i, a in enumerate(scores) for b in scores[:i]]


def _failures(rows: Iterable[Record]) -> dict[str, int]:
    return dict(sorted(Counter(row["failure"] for row in rows if row["failure"]).items()))


def _agreement(folder: Path | None, keys: Iterable[str]) -> dict[str, Any] | None:
    if folder is None:
        return None
    found = read_report(folder)
    return {key: found[key] for key in keys}


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
