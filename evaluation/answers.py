"""A model's answers to public benchmarks, in the files that the benchmarks' own tools read.

`torchrun -m evaluation.answers --benchmark B --questions FILE` reads the benchmark's own file of questions:

- alpaca-eval: alpaca_eval.json gives OUT/model_outputs.json, for `alpaca_eval --model_outputs`.
- arena-hard (v0.1 and v2.0), mt-bench: question.jsonl gives OUT/model_answer/NAME.jsonl, for the folder of that name in
  arena-hard-auto and FastChat's llm_judge. MT-Bench's second turn is asked with the answer to the first in its dialog.

The temperature is the benchmark's if it defines one: 0 in Arena-Hard (v0.1; v2.0 leaves it to each model), by category
in MT-Bench. AlpacaEval does not; our choice is the actor's `respond.temperature`. `respond.top_p` and
`respond.max_new_tokens` are the actor's (the tools' limits: 4,096 tokens in Arena-Hard v0.1, 1,024 in MT-Bench). No
system message is added to the chat format.

Arena-Hard's `token_len` is counted by the model's own tokenizer, where the benchmark takes tiktoken's: before v2.0's
`show_result.py --control-features length`, run arena-hard-auto's `utils/add_markdown_info.py` on the answers.

All ranks write shards, a folder for each turn; then rank 0 writes the file. The stage's digest is that of the shards,
since the file contains the time of writing.
"""

import argparse
import hashlib
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, TURNS, Question, Record, read_questions
from model.chat import ChatFormat, Message
from model.tokenizer import Tokenizer
from sampling.request import FinishReason, Sampling
from sampling.worker import Item, Worker, generation_settings
from stages.files import UserError, command, read_manifest, read_shards, write_json, write_jsonl
from stages.seeds import request_seed
from stages.settings import Settings, load_settings
from stages.stage import Job, Output, first_rank, make_job

COLD = ("extraction", "math", "coding", "reasoning")
CATEGORY_TEMPERATURES = {"stem": 0.1, "humanities": 0.1} | dict.fromkeys(COLD, 0.0)
"""MT-Bench's temperatures, from FastChat; any other category has 0.7."""


@dataclass(frozen=True)
class Exam:
    """A benchmark's questions, and how a model answers them."""

    benchmark: str
    file: Path
    """The file of the questions."""
    questions: list[Question]
    settings: Settings
    model_dir: Path
    decoding: Record
    """"temperatures" by the questions' categories, "top_p", "max_new_tokens"."""

    def job(self, what: str, out: Path) -> Job:
        """The job of a turn, or of the file; `what` is the turn, or the name in the file."""
        section = {"benchmark": self.benchmark, "what": what} | self.decoding
        values = generation_settings(self.settings, 0, section)
        return make_job("answers", self.settings, values, out, {"model": self.model_dir, "questions": self.file})

    @property
    def folders(self) -> list[str]:
        """The folders of each turn's shards."""
        return [f"turn{turn}" for turn in range(1, TURNS[self.benchmark] + 1)]


def read_exam(given: argparse.Namespace) -> Exam:
    """The exam of a command line: with the given decoding, else the benchmark's, else the actor's."""
    settings, questions = load_settings(given.config), read_questions(given.benchmark, given.questions)
    respond, temperature, limit = settings.respond, given.temperature, given.max_new_tokens
    if temperature is None and given.benchmark != MT_BENCH:
        temperature = 0.0 if given.benchmark == ARENA_HARD else respond.temperature
    categories = [question.category for question in questions]
    temperatures = {c: CATEGORY_TEMPERATURES.get(c, 0.7) if temperature is None else temperature for c in categories}
    limit = respond.max_new_tokens if limit is None else limit
    decoding = {"temperatures": temperatures, "top_p": respond.top_p, "max_new_tokens": limit}
    return Exam(given.benchmark, given.questions, questions, settings, given.model, decoding)


def dialog(question: Question, answers: Sequence[str]) -> list[Message]:
    """The messages up to the first turn without an answer."""
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def turn_items(exam: Exam, answers: Sequence[Sequence[str]], chat: ChatFormat) -> Iterator[Item]:
    """One request a question, for the turn after its `answers`."""
    how = exam.decoding
    for question, given in zip(exam.questions, answers, strict=True):
        name, messages = f"{question.id}/turn{len(given) + 1}", partial(dialog, question, tuple(given))
        temperature = how["temperatures"][question.category]
        sampling = Sampling(temperature, how["top_p"], how["max_new_tokens"], chat.stop_ids)
        seed = request_seed(exam.settings.seed, 0, "answers", name)
        record = {"id": name, "question_id": question.id, "turn": len(given) + 1, "messages": messages()}
        yield Item(name, messages, sampling, seed, question.id, record)


def ask(exam: Exam, worker: Worker, out: Path) -> list[list[str]]:
    """Each question's answers by turn, stripped as by the benchmarks' tools; empty if the prompt does not fit."""
    answers: list[list[str]] = [[] for _ in exam.questions]
    for turn in exam.folders:
        worker.run(exam.job(turn, out / turn), turn_items(exam, answers, worker.chat))
        for given, record in zip(answers, list(read_shards(out / turn)), strict=True):
            given.append(record["text"].strip())
    return answers


def answer_row(
    benchmark: str, question: Question, answers: Sequence[str], name: str, tokenizer: Tokenizer, tstamp: float
) -> Record:
    """One question's row in the benchmark's file; `tstamp` in seconds since 1970."""
    row = question.row
    if benchmark == ALPACA_EVAL:
        copied = {key: row[key] for key in ("dataset", "instruction") if key in row}
        return copied | {"output": answers[0], "generator": name}
    answer_id = hashlib.sha256(f"{name}/{question.id}".encode()).hexdigest()[:22]
    tokens = len(tokenizer.encode(answers[0]))
    if "uid" in row and benchmark == ARENA_HARD:
        return {
            "uid": row["uid"],
            "ans_id": answer_id,
            "model": name,
            "messages": [*dialog(question, ()), {"role": "assistant", "content": {"answer": answers[0]}}],
            "tstamp": tstamp,
            "metadata": {"token_len": tokens} | markdown_counts(answers[0]),
        }
    turns = [{"content": answers[0], "token_len": tokens}] if benchmark == ARENA_HARD else list(answers)
    return {
        "question_id": row["question_id"],
        "answer_id": answer_id,
        "model_id": name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": tstamp,
    }


def markdown_counts(answer: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold spans of an answer, outside of fenced code, as Arena-Hard v2.0 defines them."""
    text = re.sub(r"```[^`]*```", "``````", answer)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def count_answers(exam: Exam, answers: Sequence[Sequence[str]], out: Path) -> tuple[dict[str, int], list[Path]]:
    """Numbers of answers by finish reason, and of empty ones; and all shards."""
    counts: Counter[str] = Counter()
    shards: list[Path] = []
    for turn in exam.folders:
        manifest = read_manifest(out / turn) or {}
        counts.update(manifest["counts"])
        shards += [out / turn / shard for shard in manifest["shards"]]
    ends = {reason: counts[reason] for reason in get_args(FinishReason)}
    empty = sum(not text for texts in answers for text in texts)
    return {"questions": len(exam.questions), "answers": counts["records"]} | ends | {"empty": empty}, shards


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer a benchmark's questions, in the format of its own tools.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--benchmark", required=True, choices=list(TURNS))
    parser.add_argument("--questions", required=True, type=Path, help="the benchmark's own file of questions")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--name", required=True, help="what the benchmark's tools are to call the model")
    parser.add_argument("--out", required=True, type=Path)
    temperatures = "the config's respond.temperature for alpaca-eval, 0 for arena-hard, by category for mt-bench"
    parser.add_argument("--temperature", type=float, help=f"default: {temperatures}")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: the config's respond.max_new_tokens")
    given = parser.parse_args()
    if not given.name.strip(" .") or "/" in given.name:
        raise UserError(f"--name {given.name!r}: it becomes a file's name; give one without a slash")
    if not 0 <= (given.temperature or 0) < math.inf or (given.max_new_tokens is not None and given.max_new_tokens < 1):
        raise UserError("--temperature must not be negative, --max-new-tokens at least 1")
    return given


def main() -> None:
    given, started = read_arguments(), time.monotonic()
    exam, out = read_exam(given), given.out
    job = exam.job(f"file of {given.name}", out)
    if job.complete:
        return
    worker = Worker(exam.settings, given.model)
    answers = ask(exam, worker, out)
    if not first_rank():
        return  # every rank has the same answers; one writes the file
    pairs, how = zip(exam.questions, answers, strict=True), (given.name, worker.chat.tokenizer, time.time())
    rows = [answer_row(exam.benchmark, question, texts, *how) for question, texts in pairs]
    file = "model_outputs.json" if exam.benchmark == ALPACA_EVAL else f"model_answer/{given.name}.jsonl"
    write_json(out / file, rows) if exam.benchmark == ALPACA_EVAL else write_jsonl(out / file, rows)
    counts, shards = count_answers(exam, answers, out)
    facts = {"file": file, "counts": counts, "decoding": exam.decoding}
    Output({}, facts, shards).write(job, seconds=round(time.monotonic() - started, 1))
    limit = f"{exam.decoding['max_new_tokens']} tokens or the end of the context"
    print(
        f"{out / file}: {counts['answers']} answers: {counts['length']} cut off at {limit}, "
        f"{counts['too_long']} whose prompt does not fit, {counts['empty']} empty",
        file=sys.stderr,
    )


if __name__ == "__main__":
    command(main)
