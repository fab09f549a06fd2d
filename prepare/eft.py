"""Evaluation fine-tuning (EFT, arXiv 2401.10020): examples of judging, from replies that people have ranked.

The seed model judges each reply eft.N times; round i of a group has the i-th judgment of each reply. The first round
whose scores put the replies in the people's order gives the examples.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from judging.judge import judge_items, judge_section, read_score
from judging.rubric import justification
from prepare.rankings import LeftOut, RankedGroup, ranked_groups
from sampling.worker import Worker, generation_settings
from stages.command import UserError
from stages.files import read_manifest, read_shards, stage_key
from stages.records import Record, group_by
from stages.rows import read_rows
from stages.seeds import request_seed
from stages.settings import Eft, Settings, as_dict
from stages.stage import Job, Output, Stage, first_rank

Scores = Sequence[int | float | None]  # of a group's replies; None for a judgment without a score


class Outcome(StrEnum):  # of a round's scores, against the ranks; a group's is the first of these that any round has
    AGREES = "agrees"
    DISAGREES = "disagrees"  # a better reply has a lower score or, with the strict order, an equal one
    EQUAL_SCORES = "equal_scores"  # all scores are equal
    TOO_FEW_SCORED = "too_few_scored"  # no two replies of different rank have a score


def read_sources(eft: Eft) -> tuple[list[RankedGroup], dict[str, dict[str, int]]]:
    """All sources' groups, in order, and each source's numbers of groups and of those left out, by reason."""
    groups: dict[str, RankedGroup] = {}
    counts = {}
    for path in eft.sources:
        before, (own, reasons) = len(groups), ranked_groups(read_rows(Path(path)), eft)
        for group in own:
            groups.setdefault(group.id, group)
        new = len(groups) - before
        reasons[LeftOut.REPEATED] += len(own) - new
        counts[path] = {"groups": new} | {str(reason): reasons[reason] for reason in LeftOut if reasons[reason]}
    return list(groups.values()), counts


def is_held_out(group: RankedGroup, settings: Settings) -> bool:
    """Whether the group is held out, drawn by its tree's id, since the groups of a tree share messages."""
    seed = request_seed(settings.seed, 0, "eft", f"{group.tree}/held-out")
    return random.Random(seed).random() < settings.eft.held_out


def outcome(ranks: Sequence[int], scores: Scores, order: str) -> Outcome:
    """The outcome of one round's scores against the replies' ranks."""
    scored = [(rank, score) for rank, score in zip(ranks, scores, strict=True) if score is not None]
    pairs = [(high, low) for better, high in scored for worse, low in scored if better < worse]
    if not pairs:
        return Outcome.TOO_FEW_SCORED
    if all(high == low for high, low in pairs):
        return Outcome.EQUAL_SCORES
    agrees = all(high > low if order == "strict" else high >= low for high, low in pairs)
    return Outcome.AGREES if agrees else Outcome.DISAGREES


def first_agreeing(ranks: Sequence[int], rounds: Iterable[Scores], order: str) -> int | Outcome:
    """The number of a group's first round that agrees; without such a round, the group's outcome."""
    outcomes = [outcome(ranks, scores, order) for scores in rounds]
    return outcomes.index(Outcome.AGREES) if Outcome.AGREES in outcomes else next(o for o in Outcome if o in outcomes)


def downsampled(rows: list[Record], seed: int) -> list[Record]:
    """The rows with the most frequent score cut, by draw, to the count of the second, lest the judge always give it."""
    frequent = Counter(row["score"] for row in rows).most_common(2)
    if len(frequent) < 2:
        return rows
    (score, _), (_, wanted) = frequent
    names = [row["judgment_id"] for row in rows if row["score"] == score]
    names.sort(key=lambda name: request_seed(seed, 0, "eft", f"{name}/downsample"))
    dropped = set(names[wanted:])
    return [row for row in rows if row["judgment_id"] not in dropped]


def choose(
    groups: Sequence[RankedGroup], judgments: Mapping[str, Sequence[Record]], settings: Settings
) -> tuple[list[Record], Record]:
    """The examples, and the manifest's facts about them; `judgments` by reply id, each reply's in order."""
    rows, firsts = list[Record](), list[int | Outcome]()
    for group in groups:
        rounds = list(zip(*(judgments[f"{group.id}/{k}"] for k in range(len(group.replies))), strict=True))
        ranks, scores = [reply["rank"] for reply in group.replies], [[row["score"] for row in own] for own in rounds]
        firsts.append(first := first_agreeing(ranks, scores, settings.eft.order))
        for reply, row in zip(group.replies, rounds[first], strict=True) if isinstance(first, int) else ():
            if row["score"] is not None:
                example = {"kind": "judge", "prompt": group.prompt, "response": reply["text"], "score": row["score"]}
                example["justification"] = justification(row["text"], settings.judge.verdict_position)
                rows.append(example | {"judgment_id": row["id"], "rank": reply["rank"], "flaw": ""})
    kept = downsampled(rows, settings.seed) if settings.eft.downsample else rows
    accepted = {str(i): firsts.count(i) for i in range(settings.eft.N)}
    counts = {f"groups.{reason}": firsts.count(reason) for reason in Outcome}
    counts[f"groups.{Outcome.AGREES}"] = sum(accepted.values())
    given = {name: Counter(row["score"] for row in some) for name, some in (("rows", rows), ("examples", kept))}
    return kept, {
        "counts": counts | {"rows": len(rows), "downsampled": len(rows) - len(kept), "examples": len(kept)},
        "accepted_round": accepted,
        "scores": {name: {str(score): some[score] for score in sorted(some)} for name, some in given.items()},
    }


def make_examples(job: Job) -> Output:
    """Let the seed model judge replies that people have ranked, and keep the judgments that people agree with.

    Writes examples.jsonl, for `prepare.examples`, and held_out.jsonl, groups set aside for `evaluation.agreement`.
    """
    settings = job.settings
    if not job.has("sources"):
        raise UserError("eft.sources is empty; name OpenAssistant's files")
    worker, (groups, sources) = Worker(settings, job.path("model")), read_sources(settings.eft)
    if not groups:
        raise UserError(f"eft.sources: no group of ranked replies is left ({sources}); relax [eft]")
    held_out = [group for group in groups if is_held_out(group, settings)]
    training = [group for group in groups if not is_held_out(group, settings)]
    # The judgments do not depend on order and downsampling, so they stay when these settings change.
    section, generation = _settings(settings, 0)
    read = {name: value for name, value in section.items() if name not in ("order", "downsample")}
    work = job.part("eft", "judgments", stage_key("eft-judgments", [read, generation, job.digests]))
    replies = (
        {"id": f"{group.id}/{k}", "prompt_id": group.id, "prompt": group.prompt, "text": reply["text"]}
        for group in training
        for k, reply in enumerate(group.replies)
    )
    items = judge_items(replies, worker.chat, settings, 0, settings.eft.N)
    worker.run(work, items, partial(read_score, judge=settings.judge))
    examples, facts = choose(training, group_by(read_shards(work.out), "response_id"), settings)
    if not examples and first_rank():
        print(f"warning: no example: none of {len(training)} groups has a round that agrees", file=sys.stderr)
    judged = (read_manifest(work.out) or {})["counts"]
    counts = {"groups": len(groups), "groups.held_out": len(held_out), "judgments": judged.get("records", 0)}
    counts |= {name: count for name, count in judged.items() if name.startswith("failure.")} | facts.pop("counts")
    files = {"examples.jsonl": examples, "held_out.jsonl": [group.row() for group in held_out]}
    return Output(files, {"counts": counts, "sources": sources, **facts})


def _settings(settings: Settings, iteration: int) -> Any:
    section = {key: value for key, value in as_dict(settings.eft).items() if key != "sources"}
    return [section, generation_settings(settings, 0, judge_section(settings))]


EFT = Stage(
    "eft", "prepare.eft", make_examples, _settings, ("model",), files=lambda s: {"sources": s.eft.sources}, ranks="all"
)

if __name__ == "__main__":
    EFT.main()
