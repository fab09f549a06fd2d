"""Preference pairs: `python -m judging.pairs` turns scores and comparisons into what DPO trains on."""

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judging.actor_pairs import actor_pair
from judging.elo import Battle, position_weights
from judging.judge_pairs import contests, elo_rows, judge_pair, position_wins
from judging.scores import ACTOR_REASONS, JUDGE_REASONS, Reason, read_scores, response_scores, seeded_draw
from model.chat import load_chat
from stages.files import UserError, read_jsonl, read_shards
from stages.records import Record, group_by
from stages.settings import Settings, as_dict
from stages.stage import Job, Output, Stage

OPTIONAL = ("judgments", "scores", "scores_file", "comparisons")


@dataclass(frozen=True)
class Sources:  # the finished stages that pairs are made from; scores come from `scores`, if given, before `judgments`
    responses: Path
    judgments: Path | None = None
    scores: Path | None = None
    scores_file: Path | None = None
    comparisons: Path | None = None

    @classmethod
    def of(cls, job: Job, *needed: str) -> "Sources":
        """A job's inputs. Raises `UserError` where scores are given twice or not at all, or a `needed` input is not."""
        sources = cls(job.path("responses"), *map(job.optional, OPTIONAL))
        if bool(sources.scores_file) == bool(sources.scores or sources.judgments):
            raise UserError("scores come from --judgments or --scores, or else from --scores-file; name one of the two")
        if job.settings.judge.score == "expected" and not sources.scores:
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
    else:
        scored = group_by(read_shards(sources.scores), "response_id") if sources.scores else judgments
        scores = response_scores(scored, judge.scores_needed)
    made: dict[str, Any] = {name: actor_pair(rows, scores, rule, draw, chat) for name, rows in prompts.items()}
    facts = {"rule": as_dict(rule), "minimum_valid": judge.scores_needed, "elo_penalty": meta.elo_penalty}
    files: dict[str, list[Any]] = {"actor.jsonl": [], "judge.jsonl": [], "elo.jsonl": [], "none.jsonl": []}
    counts = {"prompts": len(prompts)} | _sort("actor", made, ACTOR_REASONS, files)
    if rule.judge_pairs and sources.comparisons:
        battles: dict[str, list[Battle]] = {}
        for row in read_shards(sources.comparisons):
            battles.setdefault(row["response_id"], []).append((row["first"], row["second"], row["winner"]))
        meta_judged = read_jsonl(sources.comparisons / "meta_judged.jsonl")
        decided = contests(meta_judged, responses, judgments, battles, meta)
        made = {name: judge_pair(own, judge, rule, draw, chat) for name, own in decided.items()}
        counts |= _sort("judge", made, JUDGE_REASONS, files)
        facts["positions"] = _positions(position_wins(battles))
        files["elo.jsonl"] += elo_rows(decided)
    return Output(files, {"counts": counts, **facts})


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
    return {kind: len(made) - len(missing)} | {f"{kind}.{reason}": number[reason] for reason in reasons}


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
    return used | {"seed": settings.seed, "iteration": iteration}


PAIRS = Stage("pairs", "judging.pairs", make_pairs, _settings, ("model", "responses"), OPTIONAL, per_iteration=True)

if __name__ == "__main__":
    PAIRS.main()
