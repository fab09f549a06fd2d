"""Is a model's answer better than the seed's? A judge compares them, prompt by prompt.

Both models have answered the config's `evaluation.prompts` (`evaluation/held_out.py`). The judge is the model itself,
M_0, or another (`evaluation.judge`), so the win rate is *self-judged*: it says what the loop believes of itself and is
no benchmark's number. `evaluation.protocol` says how: "scores" compares the means of `evaluation.duel_samples` judgments of each
answer, "pairwise" shows both, in both orders, `duel_samples` times in each.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.held_out import answers_of
from evaluation.pairwise import Decision, Duel, decide, duel_items, read_duel
from evaluation.statistics import bootstrap
from judging.judge import score_rows
from sampling.worker import Worker
from stages.files import UserError, read_shards
from stages.records import group_by
from stages.settings import Settings
from stages.stage import Job, Output, first_rank

Record = dict[str, Any]


def duels_of(answers: Mapping[str, Record], others: Mapping[str, Record]) -> list[Duel]:
    """A duel a prompt, the model's answer first. Raises `UserError` naming a prompt that only one has answered."""
    for name in answers.keys() ^ others.keys():
        raise UserError(f"prompt {name!r}: answered by one of the two models alone; answer the same prompts again")
    return [Duel(name, row["prompt"], row["text"], others[name]["text"]) for name, row in answers.items()]


def report(duels: Sequence[Duel], rows: Iterable[Record], settings: Settings) -> Record:
    """Win rate, a tie counting half, of the prompts with a verdict; how often both orders, where there are two, agree.

    Intervals are bootstrap percentiles over prompts. `by_id` has each prompt's share, None without a verdict.
    """
    protocol, found = settings.evaluation.protocol, group_by(rows, "duel")
    decisions: dict[str, Decision] = {duel.id: decide(duel, found.get(duel.id, []), protocol) for duel in duels}
    shares = {name: None if it.first is None else float(it.first) for name, it in decisions.items()}
    parsed = [[float(row["failure"] is None) for row in asked] for asked in found.values()]
    first = [
        [float(row["winner"] == "first") for row in asked if row.get("winner") in ("first", "second")]
        for asked in found.values()
    ]
    return {
        "protocol": protocol,
        "duels": len(duels),
        "win_rate": bootstrap([[share] for share in shares.values() if share is not None]),
        "ties": bootstrap([[float(share == 0.5)] for share in shares.values() if share is not None]),
        "parse_rate": bootstrap(parsed),
        "consistency": bootstrap([[float(it.consistent)] for it in decisions.values() if it.consistent is not None]),
        "first_position": bootstrap(first),
        "by_id": shares,
    }


def decisive_rows(judge: Worker, duels: Sequence[Duel], job: Job) -> list[Record]:
    """What the judge says: scores of each answer, or comparisons in both orders, with the duel and what was shown."""
    evaluation = judge.settings.evaluation
    if evaluation.protocol == "pairwise":
        items = duel_items(duels, evaluation.protocol, evaluation.duel_samples, judge.chat, judge.settings)
        judge.run(job, items, partial(read_duel, protocol="pairwise", judge=judge.settings.judge))
        return list(read_shards(job.out))
    sides = {
        f"{duel.id}/{shown}": (duel, shown)
        for duel in duels
        for shown in (0, 1)
        if duel.first != duel.second  # else they tie
    }
    answers = [
        {"id": name, "prompt_id": duel.id, "prompt": duel.prompt, "text": (duel.first, duel.second)[shown]}
        for name, (duel, shown) in sides.items()
    ]
    rows = score_rows(judge, answers, evaluation.duel_samples, job)
    return [row | {"duel": row["prompt_id"], "shown": sides[row["response_id"]][1]} for row in rows]


def measure_wins(judge: Worker, answers: Path, job: Job) -> None:
    """Have a judge compare a model's answers with those of the input `against`, and write the report unless it is
    there."""
    if job.complete:
        return
    duels = duels_of(answers_of(answers), answers_of(job.path("against")))
    rows = decisive_rows(judge, duels, job.part("duel", "verdicts"))
    if first_rank():
        files = {"report.json": report(duels, rows, judge.settings)}
        Output(files, {"counts": {"duels": len(duels)}}).write(job)
