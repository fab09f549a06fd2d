"""The bias panel: known failures of a judge and a meta-judge, measured in every iteration.

`iterate.py` writes it as `runs/NAME/iter<t>/bias.json` before it trains: the meta-judge's bias for the first position
and for high scores, the judge's bias for long responses, scores that pile up, judgments without a score, and the number
of pairs. Intervals are bootstrap percentiles over prompts. The config's `[limits]` stop a run by these numbers.
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
from judging.scores import distinct_responses, read_scores, response_scores
from judging.verdict import MAXIMUM, Failure
from stages.files import read_jsonl, read_manifest, read_shards, write_json
from stages.records import group_by
from stages.settings import Limits, Settings
from stages.stage import weights_of

Record = dict[str, Any]

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
    """Write and return the panel of an iteration, from its pairs and the stages behind them.

    `agreement` and `meta_agreement` are the folders of the judge's and the meta-judge's measurements on labelled data.
    """
    all_responses = list(read_shards(sources.responses))
    responses = distinct_responses(all_responses)
    judge = meta = None
    judgments: list[Record] = []
    if sources.judgments:
        judgments = list(_columns(sources.judgments, "id", "response_id", "index", "text", "score", "failure"))
    if sources.scores_file:
        scores = read_scores(sources.scores_file, all_responses)
    else:
        expected = list(read_shards(sources.scores)) if sources.scores else []
        scores = response_scores(group_by(expected or judgments, "response_id"), settings.judge.scores_needed)
        judge = judge_panel(responses, judgments, expected)
    if sources.comparisons:
        setting = settings.metajudge
        asked = {
            "model": setting.model,
            "opponents": setting.opponents or "all",
            "max_score_gap": setting.max_score_gap,
        }
        comparisons = list(_columns(sources.comparisons, "response_id", "first", "second", "winner", "failure"))
        meta = asked | metajudge_panel(comparisons, judgments, read_jsonl(pairs / "elo.jsonl"))
    stages = {"judge": sources.scores or sources.judgments, "metajudge": sources.comparisons}
    panel = {
        "iteration": iteration,
        "weights": {name: weights_of(path) for name, path in stages.items() if path},
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
    """Parse rate, failures by type and by response length, and the distribution of the scores.

    An iteration without sampled judgments has rows of `expected` scores instead. Their histogram is that of the digits'
    probabilities, the limit of infinitely many judgments; "digit_mass" is the digits' share of all probability.
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
    """The expected number of judgments with each score, if each row had one judgment."""
    masses = np.array([row["probabilities"] for row in rows])
    return dict(enumerate((masses / masses.sum(1, keepdims=True)).sum(0).tolist()))


def response_panel(responses: Sequence[Record], scores: Mapping[str, Fraction]) -> dict[str, Any]:
    """Mean length and score, ties among a prompt's scored responses, and the correlation of score and length."""
    groups = group_by(responses, "prompt_id").values()
    scored = [[row for row in rows if row["id"] in scores] for rows in groups]
    lengths = [[float(len(row["text"])) for row in rows] for rows in scored]
    values = [[scores[row["id"]] for row in rows] for rows in scored]
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
    """How often the meta-judge prefers the first position, the higher score and the longer judgment; Elo's errors."""
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
    """By kind: the number of pairs, the reasons of prompts without a pair, and the mean length of both texts."""
    counts = (read_manifest(folder) or {})["counts"]
    panel: dict[str, Any] = {}
    for kind in ("actor", "judge"):
        if kind not in counts:
            continue
        pairs = list(read_jsonl(folder / f"{kind}.jsonl"))
        panel[kind] = {
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
    return panel


def broken_limits(panel: Mapping[str, Any], limits: Limits) -> list[str]:
    """A clause for each limit that the panel breaks, and one if no prompt has a pair."""
    broken = []
    if not any(kind["pairs"] for kind in panel["pairs"].values()):
        broken.append("no prompt gives a pair")
    if panel["judge"]:
        rate, top, most = (
            panel["judge"]["parse_rate"]["value"],
            panel["judge"]["saturation"],
            limits.max_top_score_share,
        )
        if (rate or 0.0) < limits.parse_rate:
            broken.append(f"{rate or 0:.1%} of the judgments hold a score, limits.parse_rate is {limits.parse_rate:g}")
        if top is not None and top > most:
            broken.append(f"{top:.1%} of the scores are {MAXIMUM}, limits.max_top_score_share is {most:g}")
    for kind, least in (("actor", limits.actor_yield), ("judge", limits.judge_yield)):
        pairs = panel["pairs"].get(kind)
        if pairs and (pairs["yield"] or 0.0) < least:
            broken.append(f"{pairs['yield'] or 0:.1%} of the prompts give a pair, limits.{kind}_yield is {least:g}")
    return broken


def _by_length(responses: Sequence[Record], judgments: Iterable[Record]) -> list[dict[str, Any]]:
    """Judgments, parse rate and failures by length of the judged response."""
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


def _columns(stage: Path, *fields: str) -> Iterator[Record]:
    """A stage's records with these fields only, since a full run has half a million."""
    for row in read_shards(stage):
        yield {key: row[key] for key in fields}


def _ties(scores: Sequence[Fraction]) -> list[float]:
    """1 for each two responses of a prompt with equal scores, 0 for each two with different ones."""
    return [float(a == b) for i, a in enumerate(scores) for b in scores[:i]]


def _failures(rows: Iterable[Record]) -> dict[str, int]:
    return dict(sorted(Counter(row["failure"] for row in rows if row["failure"]).items()))


def _agreement(folder: Path | None, keys: Iterable[str]) -> dict[str, Any] | None:
    if folder is None:
        return None
    report = read_report(folder)
    return {key: report[key] for key in keys}


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
