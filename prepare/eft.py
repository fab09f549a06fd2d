"""Evaluation fine-tuning (EFT, arXiv 2401.10020): examples of judging, from replies that people have ranked.

`torchrun -m prepare.eft` has the seed judge each reply eft.N times. Round i of a group holds the i-th judgment of each
of its replies; the first round whose scores put the replies in the people's order gives its judgments as examples, and
the seed learns from those of its judgments that people would have agreed with. It writes examples.jsonl, for
`prepare.examples`, and held_out.jsonl: groups that were set aside, for `evaluation.agreement`.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Literal

from judging.judge import judge_items, judge_section, read_score
from judging.scores import Row, distinct_responses
from model.chat import ChatFormat
from prepare.rankings import LeftOut, RankedGroup, ranked_groups
from sampling.worker import Item, Worker, generation_settings
from stages.files import UserError, read_manifest, read_shards, stage_key
from stages.records import group_by
from stages.seeds import request_seed
from stages.settings import Eft, Settings, VerdictPosition, as_dict
from stages.stage import Job, Output, Stage, first_rank

Order = Literal["strict", "weak"]
Score = int | float
Rounds = Sequence[Sequence[Score | None]]
"""A group's scores, round by round; in a round one for each reply, or None where the judgment holds none."""
SHUFFLES = 50
"""How often ranks are shuffled to see how many groups would agree by chance."""


class Outcome(StrEnum):
    """How the scores of a round stand to the ranks. A group's outcome is the first of these that a round of it has."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    """A better reply has a lower score; with the strict order, or an equal one."""
    EQUAL_SCORES = "equal_scores"
    """All scores are equal."""
    TOO_FEW_SCORED = "too_few_scored"
    """No two replies of different rank have a score."""


def read_sources(eft: Eft) -> tuple[list[RankedGroup], dict[str, dict[str, int]]]:
    """The groups of all sources, in order, and for each source how many it gave, and what was left out, by reason."""
    groups: dict[str, RankedGroup] = {}
    counts = {}
    for path in eft.sources:
        found, reasons = ranked_groups(Path(path), eft)
        before = len(groups)
        for group in found:
            groups.setdefault(group.id, group)
        taken = len(groups) - before
        reasons[LeftOut.REPEATED] += len(found) - taken
        counts[path] = {"groups": taken} | {str(reason): reasons[reason] for reason in LeftOut if reasons[reason]}
    return list(groups.values()), counts


def is_held_out(group: RankedGroup, settings: Settings) -> bool:
    """Whether the group is set aside: drawn by its tree's id, whatever other groups there are.

    The groups of a tree share messages, so they go to one side together.
    """
    seed = request_seed(settings.seed, 0, "eft", f"{group.tree}/held-out")
    return random.Random(seed).random() < settings.eft.held_out


def eft_items(groups: Iterable[RankedGroup], chat: ChatFormat, settings: Settings) -> Iterator[Item]:
    """eft.N judge requests for each reply; reply k of a group has the id "group/k"."""
    replies = (
        {"id": f"{group.id}/{k}", "prompt_id": group.id, "prompt": group.prompt, "text": reply.text}
        for group in groups
        for k, reply in enumerate(group.replies)
    )
    distinct = distinct_responses(reply | {"finish_reason": "stop"} for reply in replies)
    return judge_items(distinct, chat, settings, 0, settings.eft.N)


def outcome(ranks: Sequence[int], scores: Sequence[Score | None], order: Order) -> Outcome:
    """How one round's scores of a group's replies stand to their ranks; a reply without a score is not in the round."""
    scored = [(rank, score) for rank, score in zip(ranks, scores, strict=True) if score is not None]
    pairs = [(high, low) for better, high in scored for worse, low in scored if better < worse]
    if not pairs:
        return Outcome.TOO_FEW_SCORED
    if all(high == low for high, low in pairs):
        return Outcome.EQUAL_SCORES
    agrees = all(high > low if order == "strict" else high >= low for high, low in pairs)
    return Outcome.AGREES if agrees else Outcome.DISAGREES


def first_agreeing(ranks: Sequence[int], rounds: Rounds, order: Order) -> int | Outcome:
    """The number of a group's first round that agrees; where there is none, its outcome."""
    found = [outcome(ranks, scores, order) for scores in rounds]
    return found.index(Outcome.AGREES) if Outcome.AGREES in found else next(o for o in Outcome if o in found)


def agreeing_by_chance(groups: Iterable[tuple[Sequence[int], Rounds]], order: Order, seed: int) -> float:
    """How many of the groups, each (ranks, rounds), agree when their ranks are shuffled; the mean over `SHUFFLES`.

    So many would be accepted of a judge that knew nothing of what people prefer: several rounds find an order by luck.
    """
    draw, agreeing = random.Random(request_seed(seed, 0, "eft", "chance")), 0
    for ranks, rounds in groups:
        for _ in range(SHUFFLES):
            agreeing += isinstance(first_agreeing(draw.sample(ranks, len(ranks)), rounds, order), int)
    return agreeing / SHUFFLES


def justification(text: str, verdict_position: VerdictPosition) -> str:
    """A parsed judgment's text without its verdict line, as `judging.verdict` finds that; may be empty."""
    lines = text.strip().splitlines(keepends=True)
    return "".join(lines[1:] if verdict_position == "first" else lines[:-1]).strip()


def example_rows(
    group: RankedGroup, judgments: Sequence[Row], verdict_position: VerdictPosition
) -> Iterator[dict[str, Any]]:
    """The labelled rows of an accepted round, given as one judgment of each of the group's replies, in their order."""
    for reply, row in zip(group.replies, judgments, strict=True):
        if row["score"] is not None:
            yield {
                "kind": "judge",
                "prompt": group.prompt,
                "response": reply.text,
                "score": row["score"],
                "justification": justification(row["text"], verdict_position),
                "judgment_id": row["id"],
                "rank": reply.rank,
                "flaw": "",
            }


def downsampled(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows, of the most frequent score no more than of the second: else the judge learns to give that one.

    Those to drop are drawn. With two scores equally frequent, or a single one, all rows stay.
    """
    frequent = Counter(row["score"] for row in rows).most_common(2)
    if len(frequent) < 2:
        return list(rows)
    (score, _), (_, wanted) = frequent
    names = [row["judgment_id"] for row in rows if row["score"] == score]
    names.sort(key=lambda name: request_seed(seed, 0, "eft", f"{name}/downsample"))
    dropped = set(names[wanted:])
    return [row for row in rows if row["judgment_id"] not in dropped]


def choose(
    groups: Sequence[RankedGroup], judgments: Mapping[str, Sequence[Row]], settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The examples, and the manifest's facts about them; `judgments` by reply id, each reply's in order."""
    order, verdict_position = settings.eft.order, settings.judge.verdict_position
    outcomes: Counter[Outcome] = Counter()
    accepted: Counter[int] = Counter()
    rows: list[dict[str, Any]] = []
    played: list[tuple[list[int], Rounds]] = []
    for group in groups:
        of_replies = [judgments[f"{group.id}/{k}"] for k in range(len(group.replies))]
        rounds = list(zip(*of_replies, strict=True))
        ranks = [reply.rank for reply in group.replies]
        scores = [[row["score"] for row in judged] for judged in rounds]
        played.append((ranks, scores))
        found = first_agreeing(ranks, scores, order)
        if isinstance(found, Outcome):
            outcomes[found] += 1
            continue
        outcomes[Outcome.AGREES] += 1
        accepted[found] += 1
        rows += example_rows(group, rounds[found], verdict_position)
    kept = downsampled(rows, settings.seed) if settings.eft.downsample else rows
    return kept, {
        "counts": {f"groups.{reason}": outcomes[reason] for reason in Outcome}
        | {"rows": len(rows), "downsampled": len(rows) - len(kept), "examples": len(kept)},
        "agreeing_by_chance": round(agreeing_by_chance(played, order, settings.seed), 1),
        "accepted_round": {str(i): accepted[i] for i in range(settings.eft.N)},
        "scores": {"rows": _histogram(rows), "examples": _histogram(kept)},
    }


def _histogram(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(row["score"] for row in rows)
    return {str(score): counts[score] for score in sorted(counts)}


def _reasons(sources: dict[str, dict[str, int]]) -> str:
    total = Counter[str]()
    for counts in sources.values():
        total.update(counts)
    return ", ".join(f"{name} {count}" for name, count in total.items() if count) or "the files are empty"


def make_examples(job: Job) -> Output:
    """Have the seed judge replies that people have ranked, and keep the judgments that people agree with.

    Writes examples.jsonl, held_out.jsonl and the judgments, with other ranks. Manifest: `counts`, of groups, judgments
    and examples; `sources`, what each gave and left out, by reason; the `scores` of the examples; and
    `agreeing_by_chance`, how many groups would agree with a judge that knows nothing.
    """
    settings = job.settings
    if not job.has("sources"):
        raise UserError("eft.sources is empty; name files of OpenAssistant's there")
    worker, (groups, sources) = Worker(settings, job.path("model")), read_sources(settings.eft)
    if not groups:
        raise UserError(f"eft.sources: no group of ranked replies is left ({_reasons(sources)}); see the section eft")
    held_out = [group for group in groups if is_held_out(group, settings)]
    training = [group for group in groups if not is_held_out(group, settings)]
    # Another `order` or `downsample` leaves the judgments as they are.
    read = {name: value for name, value in as_dict(settings.eft).items() if name not in UNREAD}
    section = generation_settings(settings, 0, judge_section(settings))
    work = job.part("eft", "judgments", stage_key("eft-judgments", [read, section, job.digests], {}))
    verdict = partial(read_score, judge=settings.judge)
    worker.run(work, eft_items(training, worker.chat, settings), verdict)
    examples, facts = choose(training, group_by(read_shards(work.out), "response_id"), settings)
    if not examples and first_rank():
        print(f"warning: no example: none of {len(training)} groups has a round that agrees", file=sys.stderr)
    judged = (read_manifest(work.out) or {})["counts"]
    failures = {name: count for name, count in judged.items() if name.startswith("failure.")}
    counts = {"groups": len(groups), "groups.held_out": len(held_out)}
    counts |= {"judgments": judged.get("records", 0)} | failures | facts.pop("counts")
    files = {"examples.jsonl": examples, "held_out.jsonl": [group.row() for group in held_out]}
    return Output(files, {"counts": counts, "sources": sources, **facts})


UNREAD = ("sources", "order", "downsample")
"""Settings of [eft] that the judgments do not depend on; the sources count by their content."""


def _settings(settings: Settings, iteration: int) -> Any:
    section = {key: value for key, value in as_dict(settings.eft).items() if key != "sources"}
    return [section, generation_settings(settings, 0, judge_section(settings))]


EFT = Stage(
    "eft",
    "prepare.eft",
    make_examples,
    settings=_settings,
    inputs=("model",),
    files=lambda settings: {"sources": settings.eft.sources},
    ranks="all",
)

if __name__ == "__main__":
    EFT.main()
