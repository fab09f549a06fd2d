"""Is a model's answer better than the seed model's? A judge compares the answers, prompt by prompt.

Both models have answered the config's `evaluation.prompts` (`evaluation/held_out.py`). The judge is the model itself,
M_0, or another model (`evaluation.judge`). The win rate is *self-judged*: it measures the loop's belief about itself
and is no benchmark's number. With `evaluation.protocol` "scores", the means of `evaluation.duel_samples` judgments of
each answer are compared; with "pairwise" the judge sees both answers, `duel_samples` times in each order.
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


def duels_of(answers: Mapping[str, Record], against: Mapping[str, Record]) -> list[Duel]:
    """A duel for each prompt, the model's answer first. Raises `UserError` for a prompt with a single answer."""
    for name in answers.keys() ^ against.keys():
        raise UserError(f"prompt {name!r}: answered by only one of the two models; answer the same prompts again")
    return [Duel(name, row["prompt"], row["text"], against[name]["text"]) for name, row in answers.items()]


def report(duels: Sequence[Duel], rows: Iterable[Record], settings: Settings) -> Record:
    """Win rate over prompts with a verdict, a tie counting half, and how often both orders agree (pairwise).

    Intervals are bootstrap percentiles over prompts. `by_id` has each prompt's share of wins, None without a verdict.
    """
    protocol, by_duel = settings.evaluation.protocol, group_by(rows, "duel")
    decisions: dict[str, Decision] = {duel.id: decide(duel, by_duel.get(duel.id, []), protocol) for duel in duels}
    shares = {name: None if decision.first is None else float(decision.first) for name, decision in decisions.items()}
    consistent = [decision.consistent for decision in decisions.values() if decision.consistent is not None]
    parsed = [[float(row["failure"] is None) for row in own] for own in by_duel.values()]
    first = [
        [float(row["winner"] == "first") for row in own if row.get("winner") in ("first", "second")]
        for own in by_duel.values()
    ]
    return {
        "protocol": protocol,
        "duels": len(duels),
        "win_rate": bootstrap([[share] for share in shares.values() if share is not None]),
        "ties": bootstrap([[float(share == 0.5)] for share in shares.values() if share is not None]),
        "parse_rate": bootstrap(parsed),
        "consistency": bootstrap([[float(agree)] for agree in consistent]),
        "first_position": bootstrap(first),
        "by_id": shares,
    }


def decisive_rows(judge: Worker, duels: Sequence[Duel], job: Job) -> list[Record]:
    """The judge's rows: scores of each answer, or comparisons in both orders, with the duel and what was shown."""
    evaluation = judge.settings.evaluation
    if evaluation.protocol == "pairwise":
        items = duel_items(duels, evaluation.protocol, evaluation.duel_samples, judge.chat, judge.settings)
        judge.run(job, items, partial(read_duel, protocol="pairwise", judge=judge.settings.judge))
        return list(read_shards(job.out))
    sides = {
        f"{duel.id}/{shown}": (duel, shown)
        for duel in duels
        for shown in (0, 1)
        if duel.first != duel.second  # equal answers tie
    }
    answers = [
        {"id": name, "prompt_id": duel.id, "prompt": duel.prompt, "text": (duel.first, duel.second)[shown]}
        for name, (duel, shown) in sides.items()
    ]
    rows = score_rows(judge, answers, evaluation.duel_samples, job)
    return [row | {"duel": row["prompt_id"], "shown": sides[row["response_id"]][1]} for row in rows]


def measure_wins(judge: Worker, answers: Path, job: Job) -> None:
    """Let a judge compare a model's answers with the input `against`; write the report unless the job is complete."""
    if job.complete:
        return
    duels = duels_of(answers_of(answers), answers_of(job.path("against")))
    rows = decisive_rows(judge, duels, job.part("duel", "verdicts"))
    if first_rank():
        files = {"report.json": report(duels, rows, judge.settings)}
        Output(files, {"counts": {"duels": len(duels)}}).write(job)
