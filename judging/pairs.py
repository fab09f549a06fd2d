"""Preference pairs: `python -m judging.pairs` turns scores and comparisons into what DPO trains on."""

import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from judging.actor_pairs import actor_pairs
from judging.elo import Battle, position_weights
from judging.judge_pairs import contests, elo_rows, guarded, judge_pair, position_wins
from judging.rules import obeys, rules_of
from judging.scores import ACTOR_REASONS, JUDGE_REASONS, Draw, Reason, read_scores, response_scores, seeded_draw
from judging.verdict import MAXIMUM
from model.chat import load_chat
from stages.command import UserError
from stages.config import changed
from stages.files import read_jsonl, read_shards
from stages.records import Record, group_by
from stages.rows import rows_by_id
from stages.settings import Settings, as_dict
from stages.stage import Job, Output, Stage

GUARDS = ("max_judge_pair_share", "max_score_share", "distinct_scores")  # of pairs; the other is the meta-judge's
OPTIONAL = ("judgments", "scores", "scores_file", "comparisons", "prompts")


@dataclass(frozen=True)
class Sources:  # the finished stages that pairs are made from; scores come from `scores`, if given, before `judgments`
    responses: Path
    judgments: Path | None = None
    scores: Path | None = None
    scores_file: Path | None = None
    comparisons: Path | None = None
    prompts: Path | None = None  # whose rules give the scores, in an experiment

    @classmethod
    def of(cls, job: Job, *needed: str) -> "Sources":
        """A job's inputs. Raises `UserError` where scores are given twice or not at all, or a `needed` input is not."""
        sources = cls(job.path("responses"), *map(job.optional, OPTIONAL))
        if sum(map(bool, (sources.scores_file, sources.prompts, sources.scores or sources.judgments))) != 1:
            raise UserError("scores come from --judgments or --scores, --scores-file, or --prompts; name one of them")
        if job.settings.judge.score == "expected" and not (sources.scores or sources.prompts):
            raise UserError('--scores is missing: judge.score is "expected"; add what `judging.expected` wrote')
        for name in needed:
            if not getattr(sources, name):
                raise UserError(f"--{name} is missing: judgments are compared; add it, or set judge_pairs = false")
        return sources

    def paths(self) -> dict[str, Path]:
        """The given paths, by name."""
        return {name: path for name, path in vars(self).items() if path}


def make_pairs(job: Job) -> Output:
    """Make the preference pairs of one iteration, Elo scores, and the reasons where a prompt has no pair."""
    settings, chat, draw = job.settings, load_chat(job.path("model")), seeded_draw(job.settings.seed, job.iteration)
    judge, meta, rule = settings.judge, settings.metajudge, settings.iteration[job.iteration - 1]
    sources = Sources.of(job, *(("judgments", "comparisons") if rule.judge_pairs else ()))
    prompts = group_by(read_shards(sources.responses), "prompt_id")
    responses = {row["id"]: row for rows in prompts.values() for row in rows}
    judgments = group_by(_judgments(sources.judgments), "response_id") if sources.judgments else {}
    if file := sources.scores_file:
        if bare := sum("text" not in row for row in read_jsonl(file)):
            _warn(f"{file}: {bare} rows have no text; their scores may be those of an earlier run's responses")
        scores = read_scores(file, responses.values())
    elif sources.prompts:
        scores = rule_scores(sources.prompts, responses.values())
    else:
        scored = group_by(read_shards(sources.scores), "response_id") if sources.scores else judgments
        scores = response_scores(scored, judge.scores_needed)
    made: dict[str, Any] = actor_pairs(prompts, scores, rule, draw, chat)
    order = partial(turned, draw=draw) if rule.labels == "coin" else dict
    facts = {"rule": as_dict(rule), "minimum_valid": judge.scores_needed, "elo_penalty": meta.elo_penalty}
    files: dict[str, list[Any]] = {"actor.jsonl": [], "judge.jsonl": [], "elo.jsonl": [], "none.jsonl": []}
    counts = {"prompts": len(prompts)} | _sort("actor", order(made), ACTOR_REASONS, files)
    if rule.judge_pairs and sources.comparisons:
        battles: dict[str, list[Battle]] = {}
        for row in read_shards(sources.comparisons):
            battles.setdefault(row["response_id"], []).append((row["first"], row["second"], row["winner"]))
        meta_judged = read_jsonl(sources.comparisons / "meta_judged.jsonl")
        decided = contests(meta_judged, responses, judgments, battles, meta)
        made = {name: judge_pair(own, judge, rule, draw, chat) for name, own in decided.items()}
        made = guarded(made, decided, counts["actor"], settings.guards, draw)
        facts |= changed(settings.guards, *GUARDS)
        counts |= _sort("judge", order(made), JUDGE_REASONS, files)
        facts["positions"] = _positions(position_wins(battles))
        files["elo.jsonl"] += elo_rows(decided)
    return Output(files, {"counts": counts, **facts})


def rule_scores(prompts: Path, responses: Iterable[Record]) -> dict[str, Fraction]:
    """By response id: 5 if the response follows all rules of its prompt, else 0. Prompts without rules have none."""
    rules = {name: rules_of(row.content, row.where) for name, row in rows_by_id(prompts).items()}
    responses = list(responses)
    for name in {row["prompt_id"] for row in responses} - rules.keys():
        raise UserError(f"{prompts}: no prompt {name!r}, which was answered; name the file of the answered ones")
    ruled = (row for row in responses if rules[row["prompt_id"]])
    return {row["id"]: Fraction(MAXIMUM * obeys(rules[row["prompt_id"]], row["text"])) for row in ruled}


def turned(pairs: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """The pairs, each with chosen and rejected exchanged or not by a coin; reasons for no pair stay."""
    other = {"chosen": "rejected", "rejected": "chosen"}

    def turn(pair: Record) -> Record:
        return {re.sub("^(chosen|rejected)", lambda side: other[side[0]], key): value for key, value in pair.items()}

    coins = {name: draw([False, True], f"{name}/coin") for name in pairs}
    return {n: turn(pair) if coins[n] and not isinstance(pair, Reason) else pair for n, pair in pairs.items()}


def _judgments(folder: Path) -> Iterator[Record]:
    """The judgments' fields that pairs need, with token ids packed: a full run has hundreds of thousands."""
    for row in read_shards(folder):
        kept = {key: row[key] for key in ("id", "response_id", "index", "text", "score")}
        yield kept | {"ids": array("i", row["ids"])}


def _sort(kind: str, made: Mapping[str, Any], reasons: Sequence[Reason], files: dict[str, list[Any]]) -> dict[str, int]:
    """Add pairs to their kind's file, and reasons to none.jsonl; the number of pairs, and of prompts by reason."""
    missing = {prompt_id: reason for prompt_id, reason in made.items() if isinstance(reason, Reason)}
    files[f"{kind}.jsonl"] += (pair for prompt_id, pair in made.items() if prompt_id not in missing)
    files["none.jsonl"] += ({"prompt_id": p, "kind": kind, "reason": str(reason)} for p, reason in missing.items())
    number = Counter(missing.values())
    return {kind: len(made) - len(missing)} | {f"{kind}.{reason}": number[reason] for reason in (*reasons, *number)}


def _positions(wins: Mapping[str, int]) -> dict[str, float]:
    """Each position's wins and their weight; warns where only one position ever won."""
    first, second = wins["first"], wins["second"]
    w1, w2 = position_weights(first, second)
    if 0 in (w1, w2):
        _warn(f"position collapse: one position won all {first + second} decisions; no judge pairs")
    return {"first": first, "second": second, "neither": wins["neither"], "w1": w1, "w2": w2}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _settings(settings: Settings, iteration: int) -> Any:
    judge, meta, rule = settings.judge, settings.metajudge, as_dict(settings.iteration[iteration - 1])
    del rule["epoch"]
    own = [judge.prompt_style, judge.verdict_position, judge.scores_needed]
    used = {"rule": rule, "judge": own, "metajudge": [meta.max_score_gap, meta.elo_penalty]}
    return used | {"seed": settings.seed, "iteration": iteration} | changed(settings.guards, *GUARDS)


PAIRS = Stage("pairs", "judging.pairs", make_pairs, _settings, ("model", "responses"), OPTIONAL, per_iteration=True)

if __name__ == "__main__":
    PAIRS.main()
