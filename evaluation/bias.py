"""The bias panel, `runs/NAME/iter<t>/bias.json`: known failures of a judge and a meta-judge, before each training.

Intervals are bootstrap percentiles over prompts. The config's `[limits]` stop a run by these numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np

from evaluation.agreement import half_credit, read_report
from evaluation.pairwise import prefer
from evaluation.statistics import by_group, each, mean, share, spearman
from judging.pairs import Sources, rule_scores
from judging.rules import obeys, rules_of
from judging.scores import distinct_responses, read_scores, response_scores, shortest
from judging.verdict import MAXIMUM, Failure
from stages.config import changed
from stages.files import read_jsonl, read_manifest, read_shards, write_json
from stages.records import Record, group_by
from stages.settings import Limits, Settings
from stages.stage import weights_of


def write_panel(
    path: Path, iteration: int, settings: Settings, sources: Sources, pairs: Path,
    agreement: Path | None = None, meta_agreement: Path | None = None,
) -> Record:  # fmt: skip
    """Write and return the panel of an iteration; `agreement` and `meta_agreement` are folders of measurements."""

    def rows(stage: Path | None, *fields: str) -> list[Record]:  # these fields only: a full run has half a million rows
        return [{key: row[key] for key in fields or row} for row in read_shards(stage)] if stage else []

    def measured(folder: Path | None, *keys: str) -> Record | None:
        return {key: read_report(folder)[key] for key in keys} if folder else None

    all_responses, asked, judge, meta = rows(sources.responses), settings.metajudge, None, None
    responses = distinct_responses(all_responses)
    judgments = rows(sources.judgments, "id", "response_id", "index", "text", "score", "failure")
    if sources.scores_file:
        scores = read_scores(sources.scores_file, all_responses)
    elif sources.prompts:
        scores = rule_scores(sources.prompts, all_responses)
    else:
        expected = rows(sources.scores)
        scores = response_scores(group_by(expected or judgments, "response_id"), settings.judge.scores_needed)
        judge = judge_panel(responses, judgments, expected)
    if sources.comparisons:
        comparisons = rows(sources.comparisons, "response_id", "first", "second", "winner", "failure")
        meta = {"model": asked.model, "opponents": asked.opponents or "all", "max_score_gap": asked.max_score_gap}
        meta |= changed(settings.guards, "hide_scores")
        meta |= metajudge_panel(comparisons, judgments, read_jsonl(pairs / "elo.jsonl"))
    stages = {"judge": sources.scores or sources.judgments, "metajudge": sources.comparisons}
    weights = {name: weights_of(path) for name, path in stages.items() if path}
    panel: Record = {"iteration": iteration, "weights": weights, "responses": response_panel(responses, scores)}
    panel |= {"judge": judge, "metajudge": meta, "pairs": pairs_panel(pairs)}
    panel["selection"] = selection_panel(read_jsonl(path.parent / "prompts.jsonl", ("id",)), responses, scores)
    panel["agreement"] = measured(agreement, "parse_rate", "pairwise", "longer_wins", "spearman")
    panel["meta_agreement"] = measured(meta_agreement, "parse_rate", "agreement", "first_position", "consistency")
    write_json(path, panel)
    return panel


def judge_panel(responses: Sequence[Record], judgments: Sequence[Record], expected: Sequence[Record] = ()) -> Record:
    """Parse rate, failures by type and by response length, and the distribution of the scores.

    The histogram of `expected` scores, which may replace judgments, is that of the digits' probabilities, the limit of
    infinitely many judgments; "digit_mass" is the digits' share of all probability.
    """
    prompt_of = {row["id"]: row["prompt_id"] for row in responses}
    scores = [row["score"] for row in judgments if row["score"] is not None]
    refused = sum(row["failure"] == Failure.FRACTION for row in judgments)
    scored = [row for row in expected if row["score"] is not None]
    histogram: dict[float, float] = dict(Counter(scores))
    if scored:
        masses = np.array([row["probabilities"] for row in scored])
        histogram = dict(enumerate((masses / masses.sum(1, keepdims=True)).sum(0).tolist()))
    total = sum(histogram.values())
    shares = np.array([count for count in histogram.values() if count]) / (total or 1)
    return {
        "score": "expected" if expected else "sampled",
        "judgments": len(judgments),
        "parse_rate": by_group((prompt_of[r["response_id"]], r["score"] is not None) for r in judgments or expected),
        "failures": _failures([*judgments, *expected]),
        "by_response_length": _by_length(responses, judgments) if judgments else [],
        "score_histogram": {shortest(score): round(histogram[score], 2) for score in sorted(histogram)},
        "score_mean": mean([row["score"] for row in scored] if expected else scores),
        "score_entropy_bits": round(abs(float((shares * np.log2(shares)).sum())), 4),
        "saturation": share(histogram.get(MAXIMUM, 0), total),
        "fractions": share(refused + sum(score % 1 > 0 for score in scores), len(scores) + refused),
        "digit_mass": mean([sum(row["probabilities"]) for row in expected]),
    }


def _by_length(responses: Sequence[Record], judgments: Sequence[Record]) -> list[Record]:
    """By up to five bins of the judged response's length, as equal as possible."""
    length = {row["id"]: len(row["text"]) for row in responses}
    edges = np.unique(np.quantile(list(length.values()), np.linspace(0, 1, 6), method="lower"))
    places, bins = np.digitize([length[row["response_id"]] for row in judgments], edges[1:-1]), []
    for place, edge in enumerate(edges[: max(len(edges) - 1, 1)]):  # the last edge is the end
        rows = [row for row, own in zip(judgments, places, strict=True) if own == place]
        rate = share(sum(row["score"] is not None for row in rows), len(rows))
        own = {"from_characters": int(edge), "judgments": len(rows), "parse_rate": rate}
        bins.append(own | {"failures": _failures(rows)})
    return bins


def response_panel(responses: Sequence[Record], scores: Mapping[str, Fraction]) -> Record:
    """Mean length and score, ties among a prompt's scored responses, and the correlation of score and length."""
    prompts = group_by(responses, "prompt_id").values()
    scored = [[(scores[row["id"]], len(row["text"])) for row in rows if row["id"] in scores] for rows in prompts]
    values, flat = [[score for score, _ in rows] for rows in scored], [pair for rows in scored for pair in rows]
    overall, *within = [spearman(*np.array(rows, dtype=float).T) if len(rows) > 1 else None for rows in (flat, *scored)]
    return {
        "distinct": len(responses),
        "characters_mean": mean([len(row["text"]) for row in responses]),
        "scored": len(flat),
        "score_mean": mean([float(score) for score, _ in flat]),
        "ties": by_group((i, a == b) for i, own in enumerate(values) for a, b in combinations(own, 2)),
        "all_equal": share(sum(len(own) > 1 and len(set(own)) == 1 for own in values), len(values)),
        "score_length_spearman": None if overall is None else round(overall, 4),
        "score_length_spearman_within_prompt": each(within),
    }


def selection_panel(prompts: Iterable[Record], responses: Sequence[Record], scores: Mapping[str, Fraction]) -> Record:
    """What pairs could teach: how much better a prompt's best-scored response is than a random one.

    "rules": the shares that follow all rules of their prompt, of a random response, those of the highest and of the
    lowest score, and an oracle's choice; the "gain" of the highest over a random one; "ordered", of pairs of which one
    follows the rules, those ordered rightly. "score": the mean scores of a random and of the best response.
    """
    rules, shares, ordered = {row["id"]: rules_of(row) for row in prompts}, defaultdict(list), []
    means: dict[str, list[float]] = {"random": [], "best": []}
    for prompt_id, rows in group_by((row for row in responses if row["id"] in scores), "prompt_id").items():
        own = [scores[row["id"]] for row in rows]
        means["random"].append(float(sum(own) / len(own)))
        means["best"].append(float(max(own)))
        if not (asked := rules[prompt_id]):
            continue
        kept = [obeys(asked, row["text"]) for row in rows]
        by_score = [fmean(k for k, s in zip(kept, own, strict=True) if s == end(own)) for end in (max, min)]
        values = (fmean(kept), *by_score, float(any(kept)), by_score[0] - fmean(kept))
        for name, value in zip(("random", "best", "worst", "oracle", "gain"), values, strict=True):
            shares[name].append(value)
        good, bad = ([s for k, s in zip(kept, own, strict=True) if k == side] for side in (True, False))
        ordered += [(prompt_id, half_credit(prefer(a, b), "first")) for a in good for b in bad]
    followed = {name: each(values) for name, values in shares.items()} | {"ordered": by_group(ordered)}
    return {"rules": followed if shares else None, "score": {name: each(values) for name, values in means.items()}}


def metajudge_panel(comparisons: Sequence[Record], judgments: Sequence[Record], elos: Iterable[Record]) -> Record:
    """How often the meta-judge prefers the first position, the higher score and the longer judgment; Elo's errors."""
    score = {(row["response_id"], row["index"]): row["score"] for row in judgments}
    length = {row["id"]: len(row["text"]) for row in judgments}
    rates: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    winners, contests = defaultdict(list), defaultdict(list)
    for row in (row for row in comparisons if row["winner"] in ("first", "second")):
        name, won_first = row["response_id"], row["winner"] == "first"
        gap = score[name, row["first"]] - score[name, row["second"]]
        rates["first_wins"].append((name, won_first))
        rates["higher_score_wins" if gap else "first_wins_at_equal_scores"].append((name, won_first == (gap >= 0)))
        winners[name, frozenset((row["first"], row["second"]))].append(row[row["winner"]])
    for row in elos:
        own = (row["elo"], length[row["judgment_id"]], row["standard_error"])
        contests[row["response_id"], row["group"]].append(own)
    both = [(name, own) for (name, _), own in winners.items() if len(own) == 2]
    return {
        "comparisons": len(comparisons),
        "failures": _failures(comparisons),
        "ties": share(sum(row["winner"] == "tie" for row in comparisons), len(comparisons)),
        **{key: by_group(rates[key]) for key in ("first_wins", "first_wins_at_equal_scores", "higher_score_wins")},
        "both_orders_agree": by_group((name, len(set(own)) == 1) for name, own in both),
        "elo_length_spearman": by_group((name, spearman(*np.array(own).T[:2])) for (name, _), own in contests.items()),
        "elo_standard_error_mean": mean([error for own in contests.values() for _, _, error in own]),
    }


def pairs_panel(folder: Path) -> Record:
    """By kind: the number of pairs, the reasons of prompts without a pair, and the mean length of both texts."""
    counts = (read_manifest(folder) or {})["counts"]
    panel: Record = {}
    for kind in ("actor", "judge"):
        if kind in counts:
            own = {name.removeprefix(f"{kind}."): n for name, n in counts.items() if name.startswith(f"{kind}.") and n}
            panel[kind] = {"pairs": counts[kind], "yield": share(counts[kind], counts["prompts"]), "reasons": own}
            pairs = list(read_jsonl(folder / f"{kind}.jsonl"))
            for side in ("chosen", "rejected"):
                panel[kind][f"{side}_characters_mean"] = mean([len(row[side][0]["content"]) for row in pairs])
    return panel


def broken_limits(panel: Record, limits: Limits) -> list[str]:
    """A clause for each limit that the panel breaks, and one if no prompt has a pair."""
    broken, judge = [], panel["judge"]
    if not any(kind["pairs"] for kind in panel["pairs"].values()):
        broken.append("no prompt gives a pair")
    rate, top = (judge["parse_rate"]["value"] or 0, judge["saturation"] or 0) if judge else (1, 0)
    if rate < limits.parse_rate:
        broken.append(f"{rate:.1%} of the judgments hold a score, limits.parse_rate is {limits.parse_rate:g}")
    if top > (most := limits.max_top_score_share):
        broken.append(f"{top:.1%} of the scores are {MAXIMUM}, limits.max_top_score_share is {most:g}")
    for kind, least in (("actor", limits.actor_yield), ("judge", limits.judge_yield)):
        if kind in panel["pairs"] and (rate := panel["pairs"][kind]["yield"] or 0) < least:
            broken.append(f"{rate:.1%} of the prompts give a pair, limits.{kind}_yield is {least:g}")
    return broken


def _failures(rows: Iterable[Record]) -> dict[str, int]:
    return dict(sorted(Counter(row["failure"] for row in rows if row["failure"]).items()))
