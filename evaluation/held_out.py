"""A model's answers to held-out prompts, measures of the answers, and wins against the seed model's answers.

The config's [evaluation] names `instructions`, with rules that code can check (`evaluation/verifiable.py`), and open
`prompts`. Each is answered once, as the actor samples, with the same noise for all models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from evaluation.pairwise import Duel, compare, decide
from evaluation.statistics import by_group, each, share
from evaluation.verifiable import Instruction, read_instructions, read_rows, verifiable_report
from judging.judge import score_rows
from model.chat import ChatFormat
from prepare.novelty import repetition, words
from sampling.worker import Item, Worker, sampling_of
from stages.files import UserError, read_shards
from stages.records import Record, group_by
from stages.seeds import request_seed
from stages.settings import Settings
from stages.stage import Job, Output, first_rank


def read_prompts(path: Path) -> dict[str, str]:
    """Open prompts {id, prompt} by id, in the file's order. Raises the errors of `read_rows`."""
    return {name: row["prompt"] for name, (_, row) in read_rows(path, "prompt").items()}


def held_out_items(
    instructions: Iterable[Instruction], prompts: Mapping[str, str], chat: ChatFormat, settings: Settings
) -> Iterator[Item]:
    """One request for each instruction and each prompt."""
    sampling = sampling_of(settings.respond, chat)
    asked = [("instruction", item.id, item.prompt) for item in instructions]
    for kind, name, prompt in asked + [("prompt", *item) for item in prompts.items()]:
        record = {"id": f"{kind}/{name}", "kind": kind, "name": name, "prompt": prompt}
        seed = request_seed(settings.seed, 0, "held-out", record["id"])
        yield Item(record["id"], partial(list, [{"role": "user", "content": prompt}]), sampling, seed, name, record)


def report(instructions: Sequence[Instruction], rows: Sequence[Record]) -> Record:
    """How instructions are followed, and the measures of the open prompts' answers; None where there are none."""
    texts = {row["name"]: row["text"] for row in rows if row["kind"] == "instruction"}
    answers = [row for row in rows if row["kind"] == "prompt"]
    return {
        "verifiable": verifiable_report(instructions, texts) if instructions else None,
        "answers": text_report(answers) if answers else None,
    }


def text_report(rows: Sequence[Record]) -> Record:
    """Characters, share of answers cut off, and share of three-word sequences that repeat earlier ones: means, and each
    answer's own in "by_id"; of all answers together distinct-n (arXiv 1510.03055).
    """
    by_id = {
        row["name"]: {
            "characters": float(len(row["text"])),
            "cut_off": float(row["finish_reason"] == "length"),
            "repetition": float(repetition(row["text"])),
        }
        for row in rows
    }
    means = {key: each(own[key] for own in by_id.values()) for key in ("characters", "cut_off", "repetition")}
    return means | {f"distinct_{n}": distinct([row["text"] for row in rows], n) for n in (1, 2)} | {"by_id": by_id}


def distinct(texts: Iterable[str], n: int) -> float | None:
    """The share of different sequences among all n-word sequences; None without any."""
    sequences = [tuple(own[i : i + n]) for own in map(words, texts) for i in range(len(own) - n + 1)]
    return share(len(set(sequences)), len(sequences))


def measure_answers(worker: Worker, job: Job) -> None:
    """Let a model answer; write answers/ and the report."""
    instructions = read_instructions(job.path("instructions")) if job.has("instructions") else []
    prompts = read_prompts(job.path("prompts")) if job.has("prompts") else {}
    answers = job.part("held-out", "answers")
    worker.run(answers, held_out_items(instructions, prompts, worker.chat, job.settings))
    if first_rank():
        rows = list(read_shards(answers.out))
        Output({"report.json": report(instructions, rows)}, {"counts": {"answers": len(rows)}}).write(job)


def duels_of(answers: Mapping[str, Record], against: Mapping[str, Record]) -> list[Duel]:
    """A duel for each prompt, the model's answer first. Raises `UserError` for a prompt with a single answer."""
    for name in answers.keys() ^ against.keys():
        raise UserError(f"prompt {name!r}: answered by only one of the two models; answer the same prompts again")
    return [Duel(name, row["prompt"], row["text"], against[name]["text"]) for name, row in answers.items()]


def wins_report(duels: Sequence[Duel], rows: Iterable[Record], settings: Settings) -> Record:
    """Win rate over prompts with a verdict, a tie counting half, and how often both orders agree (pairwise).

    `by_id` has each prompt's share of wins, None without a verdict.
    """
    protocol, by_duel = settings.evaluation.protocol, group_by(rows, "duel")
    decisions = {duel.id: decide(duel, by_duel.get(duel.id, []), protocol) for duel in duels}
    shares = {name: None if own.first is None else float(own.first) for name, own in decisions.items()}
    verdicts = [(row["duel"], row) for own in by_duel.values() for row in own]
    named = [(name, row["winner"] == "first") for name, row in verdicts if row.get("winner") in ("first", "second")]
    return {
        "protocol": protocol,
        "duels": len(duels),
        "win_rate": each(shares.values()),
        "ties": each(None if own is None else own == 0.5 for own in shares.values()),
        "parse_rate": by_group((name, row["failure"] is None) for name, row in verdicts),
        "consistency": each(own.consistent for own in decisions.values()),
        "first_position": by_group(named),
        "by_id": shares,
    }


def decisive_rows(judge: Worker, duels: Sequence[Duel], job: Job) -> list[Record]:
    """The judge's rows: scores of each answer, or comparisons in both orders, with the duel and what was shown."""
    N = judge.settings.evaluation.duel_samples
    if judge.settings.evaluation.protocol == "pairwise":
        return compare(judge, duels, N, job)
    answers, shown = list[Record](), {}
    for duel in (duel for duel in duels if duel.first != duel.second):  # equal answers tie
        for side, text in enumerate((duel.first, duel.second)):
            name = f"{duel.id}/{side}"
            answers.append({"id": name, "prompt_id": duel.id, "prompt": duel.prompt, "text": text})
            shown[name] = side
    rows = score_rows(judge, answers, N, job)
    return [row | {"duel": row["prompt_id"], "shown": shown[row["response_id"]]} for row in rows]


def measure_wins(judge: Worker, answers: Path, job: Job) -> None:
    """Let a judge compare a model's answers with the input `against`, and write the report."""
    folders = (answers, job.path("against"))
    duels = duels_of(*({row["name"]: row for row in read_shards(f) if row["kind"] == "prompt"} for f in folders))
    rows = decisive_rows(judge, duels, job.part("duel", "verdicts"))
    if first_rank():
        files = {"report.json": wins_report(duels, rows, judge.settings)}
        Output(files, {"counts": {"duels": len(duels)}}).write(job)
