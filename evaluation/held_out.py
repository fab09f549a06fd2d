"""A model's answers to prompts that no training has seen, and measures of the answers.

The config's [evaluation] names two files. `instructions` have rules that code can check (`evaluation/verifiable.py`).
`prompts` are open: length, variety and repetition are measured, and a judge compares the answers with the seed model's
(`evaluation/duel.py`). Each is answered once, sampled as the actor samples, with the same noise for all models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.statistics import bootstrap
from evaluation.verifiable import Instruction, read_instructions, verifiable_report
from model.chat import ChatFormat, Message
from prepare.novelty import repetition, words
from sampling.worker import Item, Worker, sampling_of
from stages.files import UserError, read_numbered_jsonl, read_shards
from stages.seeds import request_seed
from stages.settings import Settings
from stages.stage import Job, Output, first_rank

Record = dict[str, Any]
DISTINCT = (1, 2, 3)
"""Lengths in words of the sequences whose variety is measured."""


def read_prompts(path: Path) -> dict[str, str]:
    """Open prompts {id, prompt} by id, in the file's order.

    Raises `UserError`, naming file and line, for a repeated id and an id or prompt that is not a text; also for an
    empty file.
    """
    prompts: dict[str, str] = {}
    for number, row in read_numbered_jsonl(path, ("id", "prompt")):
        name, prompt, where = row["id"], row["prompt"], f"{path}, line {number}"
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise UserError(f"{where}: id and prompt must be texts; put quotes around them")
        if name in prompts:
            raise UserError(f"{where}: id {name!r} comes twice; give each prompt its own")
        prompts[name] = prompt
    if not prompts:
        raise UserError(f"{path}: no prompts; name a file of rows with id, prompt")
    return prompts


def held_out_items(
    instructions: Iterable[Instruction], prompts: Mapping[str, str], chat: ChatFormat, settings: Settings
) -> Iterator[Item]:
    """One request for each instruction and each prompt."""
    sampling = sampling_of(settings.respond, chat)
    asked = [("instruction", item.id, item.prompt) for item in instructions]
    asked += [("prompt", name, prompt) for name, prompt in prompts.items()]
    for kind, name, prompt in asked:
        record = {"id": f"{kind}/{name}", "kind": kind, "name": name, "prompt": prompt}
        seed = request_seed(settings.seed, 0, "held-out", record["id"])
        yield Item(record["id"], partial(_asked, prompt), sampling, seed, name, record)


def _asked(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]


def answers_of(answers: Path) -> dict[str, Record]:
    """The finished records of open prompts, by the prompt's id."""
    return {row["name"]: row for row in read_shards(answers) if row["kind"] == "prompt"}


def report(instructions: Sequence[Instruction], rows: Sequence[Record]) -> Record:
    """How instructions are followed; length, variety, repetition and cut-offs of the open prompts' answers."""
    texts = {row["name"]: row["text"] for row in rows if row["kind"] == "instruction"}
    answers = [row for row in rows if row["kind"] == "prompt"]
    return {
        "verifiable": verifiable_report(instructions, texts) if instructions else None,
        "answers": text_report(answers) if answers else None,
    }


def text_report(rows: Sequence[Record]) -> Record:
    """Answers' characters, share cut off at the limit, and share of three-word sequences that repeat earlier ones; over
    all answers together, the share of different n-word sequences (distinct-n, arXiv 1510.03055).

    `by_id` has each answer's values, for comparisons with another model.
    """
    by_id = {
        row["name"]: {
            "characters": float(len(row["text"])),
            "cut_off": float(row["finish_reason"] == "length"),
            "repetition": float(repetition(row["text"])),
        }
        for row in rows
    }
    means = {key: bootstrap([[values[key]] for values in by_id.values()]) for key in next(iter(by_id.values()))}
    return means | {f"distinct_{n}": distinct([row["text"] for row in rows], n) for n in DISTINCT} | {"by_id": by_id}


def distinct(texts: Iterable[str], n: int) -> float | None:
    """The share of different sequences among all n-word sequences; None without any."""
    sequences = [tuple(own[i : i + n]) for own in map(words, texts) for i in range(len(own) - n + 1)]
    return round(len(set(sequences)) / len(sequences), 4) if sequences else None


def measure_answers(worker: Worker, job: Job) -> None:
    """Let a model answer, and write the answers to the job's answers/, and the report, unless the job is complete."""
    if job.complete:
        return
    instructions = read_instructions(job.path("instructions")) if job.has("instructions") else []
    prompts = read_prompts(job.path("prompts")) if job.has("prompts") else {}
    answers = job.part("held-out", "answers")
    worker.run(answers, held_out_items(instructions, prompts, worker.chat, job.settings))
    if first_rank():
        rows = list(read_shards(answers.out))
        Output({"report.json": report(instructions, rows)}, {"counts": {"answers": len(rows)}}).write(job)
