"""Preference pairs: `python -m judging.pairs` turns scores and comparisons into what DPO trains on.

An actor pair has two responses to a prompt (`judging/actor_pairs.py`), a judge pair two judgments of a response
(`judging/judge_pairs.py`). A prompt without a pair has a reason, and the manifest counts the reasons.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from judging.actor_pairs import actor_pair
from judging.elo import Battle, position_weights
from judging.expected import spreads
from judging.judge_pairs import Contest, contests, elo_rows, judge_pair, position_collapse, position_wins
from judging.scores import (
    ACTOR_REASONS,
    JUDGE_REASONS,
    Reason,
    Row,
    distinct_responses,
    read_scores,
    response_scores,
    seeded_draw,
)
from model.chat import ChatFormat, load_chat
from stages.files import UserError, read_jsonl, read_shards
from stages.records import ActorPair, JudgePair, MissingPair, group_by
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


Reasons = dict[str, Reason]
"""Why prompts have no pair, by prompt id."""


def actor_pairs(
    prompts: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Fraction],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> tuple[list[ActorPair], Reasons]:
    """All actor pairs, and why the other prompts have none; `prompts` has the responses by prompt id."""
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)
    pairs = {
        name: actor_pair(distinct_responses(responses), scores, rule, draw, chat) for name, responses in prompts.items()
    }
    return _split(pairs)


def judge_pairs(
    contests: Mapping[str, Contest | Reason],
    wins: Mapping[str, int],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> tuple[list[JudgePair], Reasons]:
    """All judge pairs, and why the other prompts have none; `wins` counts the iteration's wins by position."""
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)
    weights, collapsed = position_weights(wins["first"], wins["second"]), position_collapse(wins)

    def make(contest: Contest | Reason) -> JudgePair | Reason:
        if isinstance(contest, Reason):
            return contest
        return Reason.POSITION_COLLAPSE if collapsed else judge_pair(contest, weights, settings, rule, draw, chat)

    return _split({name: make(contest) for name, contest in contests.items()})


def _split(made: Mapping[str, Any]) -> tuple[list[Any], Reasons]:
    """The pairs, and the reasons of prompts without one."""
    pairs = [pair for pair in made.values() if not isinstance(pair, Reason)]
    return pairs, {name: reason for name, reason in made.items() if isinstance(reason, Reason)}


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


def make_pairs(job: Job) -> Output:
    """Make the preference pairs of one iteration.

    Writes actor.jsonl, judge.jsonl, elo.jsonl and none.jsonl (why a prompt has no pair). Manifest: `counts` by kind and
    reason; `positions`, each position's wins and the weight of a win.
    """
    settings, iteration, sources = job.settings, job.iteration, Sources.of(job)
    rule = settings.iteration[iteration - 1]
    _check_sources(sources, rule.judge_pairs)
    chat = load_chat(job.path("model"))
    prompts = group_by(read_shards(sources.responses), "prompt_id")
    judgments = group_by(read_judgments(sources.judgments), "response_id") if sources.judgments else {}
    actor, missing = actor_pairs(prompts, _scores(sources, prompts, judgments, settings), settings, iteration, chat)
    files: dict[str, list[Any]] = {"actor.jsonl": actor, "judge.jsonl": [], "elo.jsonl": []}
    none = _missing("actor", missing)
    counts = {"prompts": len(prompts), "actor": len(actor)} | _counted("actor", missing, ACTOR_REASONS)
    facts: dict[str, Any] = {
        "rule": as_dict(rule),
        "minimum_valid": settings.judge.scores_needed,
        "elo_penalty": settings.metajudge.elo_penalty,
    }
    if sources.comparisons and rule.judge_pairs:
        responses = {row["id"]: row for rows in prompts.values() for row in rows}
        battles = read_battles(sources.comparisons)
        wins = position_wins(battles)
        decided = contests(read_jsonl(sources.comparisons / "meta_judged.jsonl"), responses, judgments, battles)
        judge, missing = judge_pairs(decided, wins, settings, iteration, chat)
        files |= {"judge.jsonl": judge, "elo.jsonl": list(elo_rows(decided, wins, settings.metajudge))}
        none += _missing("judge", missing)
        counts |= {"judge": len(judge)} | _counted("judge", missing, JUDGE_REASONS)
        facts["positions"] = _positions(wins)
    return Output(files | {"none.jsonl": none}, {"counts": counts, **facts})


def _check_sources(sources: Sources, wanted: bool) -> None:
    """Raise `UserError` where the iteration wants judge pairs and an input for them is missing."""
    if wanted and sources.scores_file:
        raise UserError("--scores-file: the config wants judge pairs in this iteration; set judge_pairs = false")
    for name in ("judgments", "comparisons") if wanted else ():
        if not getattr(sources, name):
            raise UserError(f"--{name} is missing: the config wants judge pairs in this iteration; add it")


def _scores(
    sources: Sources, prompts: Mapping[str, Sequence[Row]], judgments: Mapping[str, Sequence[Row]], settings: Settings
) -> dict[str, Fraction]:
    """The score of each response that has one."""
    if file := sources.scores_file:
        if bare := sum("text" not in row for row in read_jsonl(file)):
            print(
                f"warning: {file}: {bare} rows have no text; their scores may be those of an earlier run's responses",
                file=sys.stderr,
            )
        return read_scores(file, (row for rows in prompts.values() for row in rows))
    scoring = group_by(read_shards(sources.scores), "response_id") if sources.scores else judgments
    return response_scores(scoring, settings.judge.scores_needed)


def _missing(kind: Any, reasons: Reasons) -> list[MissingPair]:
    return [{"prompt_id": name, "kind": kind, "reason": str(reason)} for name, reason in reasons.items()]


def _counted(kind: str, missing: Reasons, reasons: Iterable[Reason]) -> dict[str, int]:
    counts = Counter(missing.values())
    return {f"{kind}.{reason}": counts[reason] for reason in reasons}


def _positions(wins: Mapping[str, int]) -> dict[str, float]:
    """Each position's wins and their weight; warns where only one position ever won."""
    w1, w2 = position_weights(wins["first"], wins["second"])
    if position_collapse(wins):
        print(
            f"warning: position collapse: one position won all of {wins['first'] + wins['second']} decided "
            "comparisons, so this iteration has no judge pairs",
            file=sys.stderr,
        )
    return {**{place: wins[place] for place in ("first", "second", "neither")}, "w1": w1, "w2": w2}


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
    settings=_settings,
    per_iteration=True,
    inputs=("model", "responses"),
    optional=("judgments", "scores", "scores_file", "comparisons"),
)

if __name__ == "__main__":
    PAIRS.main()
