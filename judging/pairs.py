"""Preference pairs: `python -m judging.pairs` turns scores and comparisons into what DPO trains on.

An actor pair has two responses to a prompt (`judging/actor_pairs.py`), a judge pair two judgments of a response
(`judging/judge_pairs.py`). A prompt without a pair has a reason, and the manifest counts the reasons.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from judging.actor_pairs import actor_pairs
from judging.elo import Battle, position_weights
from judging.judge_pairs import contests, elo_rows, judge_pairs, position_wins
from judging.scores import ACTOR_REASONS, JUDGE_REASONS, Reason, Row, read_scores, response_scores, spreads
from model.chat import load_chat
from stages.files import UserError, read_jsonl, read_shards
from stages.records import group_by
from stages.settings import Settings, as_dict
from stages.stage import Job, Output, Stage


@dataclass(frozen=True)
class Sources:
    """The finished stages that pairs are made from. Scores come from `scores`, the expected scores, if given, else from
    `judgments` or from `scores_file`. Without `comparisons` there are no judge pairs."""

    responses: Path
    judgments: Path | None = None
    scores: Path | None = None
    scores_file: Path | None = None
    comparisons: Path | None = None

    @classmethod
    def of(cls, job: Job) -> "Sources":
        """A job's inputs. Raises `UserError` where scores are given twice or not at all, or are not the config's."""
        sources = cls(job.path("responses"), *map(job.optional, tuple(cls.__dataclass_fields__)[1:]))
        if bool(sources.scores_file) == bool(sources.scores or sources.judgments):
            raise UserError("scores come from --judgments or --scores, or else from --scores-file; name one of the two")
        if job.settings.judge.score == "expected" and not sources.scores:
            raise UserError(
                '--scores is missing: judge.score is "expected", and `judging.expected` writes them; add it'
            )
        return sources

    def paths(self) -> dict[str, Path]:
        """The given paths, by name."""
        return {name: path for name, path in vars(self).items() if path}

    def spreads(self) -> dict[str, Fraction] | None:
        """The variance of each response's expected score, by response id; None without expected scores."""
        return spreads(read_shards(self.scores)) if self.scores else None


def make_pairs(job: Job) -> Output:
    """Make the preference pairs of one iteration.

    Writes actor.jsonl, judge.jsonl, elo.jsonl and none.jsonl (why a prompt has no pair). Manifest: `counts` by kind and
    reason; `positions`, each position's wins and the weight of a win.
    """
    settings, iteration, sources = job.settings, job.iteration, Sources.of(job)
    rule, meta, chat = settings.iteration[iteration - 1], settings.metajudge, load_chat(job.path("model"))
    for name in ("judgments", "comparisons") if rule.judge_pairs else ():
        if not getattr(sources, name):
            raise UserError(f"--{name} is missing: judge pairs need it; add it, or set judge_pairs = false")
    prompts = group_by(read_shards(sources.responses), "prompt_id")
    responses = {row["id"]: row for rows in prompts.values() for row in rows}
    judgments = group_by(read_judgments(sources.judgments), "response_id") if sources.judgments else {}
    scores = _scores(sources, responses, judgments, settings)
    made: dict[str, Mapping[str, Any]] = {"actor": actor_pairs(prompts, scores, settings, iteration, chat)}
    counts = {"prompts": len(prompts)} | _counts("actor", made["actor"], ACTOR_REASONS)
    facts = {"rule": as_dict(rule), "minimum_valid": settings.judge.scores_needed, "elo_penalty": meta.elo_penalty}
    elos: list[Any] = []
    if rule.judge_pairs and sources.comparisons:
        battles = read_battles(sources.comparisons)
        meta_judged = read_jsonl(sources.comparisons / "meta_judged.jsonl")
        decided = contests(meta_judged, responses, judgments, battles, meta)
        made["judge"], elos = judge_pairs(decided, settings, iteration, chat), list(elo_rows(decided))
        counts |= _counts("judge", made["judge"], JUDGE_REASONS)
        facts["positions"] = _positions(position_wins(battles))
    files: dict[str, list[Any]] = {"actor.jsonl": [], "judge.jsonl": [], "elo.jsonl": elos, "none.jsonl": []}
    for kind, prompt_id, pair in ((kind, *item) for kind, own in made.items() for item in own.items()):
        if isinstance(pair, Reason):
            files["none.jsonl"].append({"prompt_id": prompt_id, "kind": kind, "reason": str(pair)})
        else:
            files[f"{kind}.jsonl"].append(pair)
    return Output(files, {"counts": counts, **facts})


def read_judgments(folder: Path) -> Iterator[dict[str, Any]]:
    """The judgments' fields that pairs need, with token ids packed: a full run has hundreds of thousands."""
    for row in read_shards(folder):
        kept = {key: row[key] for key in ("id", "response_id", "index", "text", "score")}
        yield kept | {"ids": array("i", row["ids"])}


def read_battles(folder: Path) -> dict[str, list[Battle]]:
    """Comparisons by response id."""
    battles: dict[str, list[Battle]] = {}
    for row in read_shards(folder):
        battles.setdefault(row["response_id"], []).append((row["first"], row["second"], row["winner"]))
    return battles


def _scores(
    sources: Sources, responses: Mapping[str, Row], judgments: Mapping[str, Sequence[Row]], settings: Settings
) -> dict[str, Fraction]:
    """The score of each response that has one."""
    if file := sources.scores_file:
        if bare := sum("text" not in row for row in read_jsonl(file)):
            print(
                f"warning: {file}: {bare} rows have no text; their scores may be those of an earlier run's responses",
                file=sys.stderr,
            )
        return read_scores(file, responses.values())
    scoring = group_by(read_shards(sources.scores), "response_id") if sources.scores else judgments
    return response_scores(scoring, settings.judge.scores_needed)


def _counts(kind: str, made: Mapping[str, Any], reasons: Sequence[Reason]) -> dict[str, int]:
    """The number of pairs, and of prompts without one by reason."""
    missing = Counter(reason for reason in made.values() if isinstance(reason, Reason))
    return {kind: len(made) - missing.total()} | {f"{kind}.{reason}": missing[reason] for reason in reasons}


def _positions(wins: Mapping[str, int]) -> dict[str, float]:
    """Each position's wins and their weight; warns where only one position ever won."""
    w1, w2 = position_weights(wins["first"], wins["second"])
    if 0 in (w1, w2):
        decided = wins["first"] + wins["second"]
        print(f"warning: position collapse: one position won all {decided} decisions; no judge pairs", file=sys.stderr)
    return {"first": wins["first"], "second": wins["second"], "neither": wins["neither"], "w1": w1, "w2": w2}


def _settings(settings: Settings, iteration: int) -> Any:
    judge = settings.judge
    return {
        "rule": {key: value for key, value in as_dict(settings.iteration[iteration - 1]).items() if key != "epoch"},
        "judge": [judge.prompt_style, judge.verdict_position, judge.scores_needed],
        "metajudge": [settings.metajudge.max_score_gap, settings.metajudge.elo_penalty],
        "seed": settings.seed,
        "iteration": iteration,
    }


PAIRS = Stage(
    "pairs",
    "judging.pairs",
    make_pairs,
    _settings,
    inputs=("model", "responses"),
    optional=("judgments", "scores", "scores_file", "comparisons"),
    per_iteration=True,
)

if __name__ == "__main__":
    PAIRS.main()
