"""A model's answers to public benchmarks, in the files that the benchmarks' own tools read.

`torchrun -m evaluation.answers --benchmark B --questions FILE` reads the benchmark's own file of questions:

- alpaca-eval, AlpacaEval 2: alpaca_eval.json gives OUT/model_outputs.json, for `alpaca_eval --model_outputs`.
- arena-hard, Arena-Hard: question.jsonl, in the form of v0.1 ({question_id, turns}) or of v2.0 ({uid, prompt}), gives
  OUT/model_answer/NAME.jsonl, for the folder of that name in arena-hard-auto.
- mt-bench, MT-Bench: question.jsonl gives OUT/model_answer/NAME.jsonl, for the folder of that name in FastChat's
  llm_judge. A second turn is asked with the answer to the first in its dialog.

The temperature is the benchmark's if it defines one: 0 in Arena-Hard (v0.1; v2.0 leaves it to each model), by category
in MT-Bench. AlpacaEval does not; our choice is the actor's `respond.temperature`. For all three, `respond.top_p` and
`respond.max_new_tokens` are the actor's (the tools' limits: 4,096 tokens in Arena-Hard v0.1, 1,024 in MT-Bench). No
system message is added to the chat format.

Arena-Hard's `token_len` is counted by the model's own tokenizer, where the benchmark takes tiktoken's. v0.1 shows its
mean and does not score it. v2.0's `show_result.py --control-features length` compares it with the baseline's count: run
arena-hard-auto's `utils/add_markdown_info.py` on the answers first, which counts all metadata anew.

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
from typing import Any, get_args

from model.chat import ChatFormat, Message
from model.tokenizer import Tokenizer
from sampling.request import FinishReason, Sampling
from sampling.worker import Item, Worker, generation_settings
from stages.files import (
    UserError,
    command,
    read_json_list,
    read_manifest,
    read_numbered_jsonl,
    read_shards,
    write_json,
    write_jsonl,
)
from stages.seeds import request_seed
from stages.settings import Respond, Settings, as_dict, load_settings
from stages.stage import Job, Output, first_rank, make_job

ALPACA_EVAL, ARENA_HARD, MT_BENCH = "alpaca-eval", "arena-hard", "mt-bench"

TURNS = {ALPACA_EVAL: 1, ARENA_HARD: 1, MT_BENCH: 2}
"""The user's turns in a dialog of each benchmark."""

CATEGORY_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""MT-Bench's temperatures, from FastChat; any other category has `OTHER_TEMPERATURE`."""

OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Question:
    """A question and the row of the benchmark's file that it comes from."""

    id: str
    category: str
    turns: list[str]
    """The user's messages, in order."""
    row: dict[str, Any]


def read_questions(benchmark: str, path: Path) -> list[Question]:
    """The questions of a benchmark's file, in its order.

    Raises `UserError` naming file and line, or the entry of a JSON list, for a missing key, a turn without text, too
    few or too many turns, and a repeated question.
    """
    questions: dict[str, Question] = {}
    for where, row in read_rows(benchmark, path, "AlpacaEval's alpaca_eval.json"):
        name, category, turns = _fields(benchmark, row, where)
        if name in questions:
            raise UserError(f"{where}: {name[:60]!r} came before; the judge's tools tell questions by it, remove one")
        if not isinstance(turns, list) or len(turns) != TURNS[benchmark]:
            raise UserError(f"{where}: the turns of {benchmark} must be a list of {TURNS[benchmark]}; mend the row")
        if not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise UserError(f"{where}: a turn is not a text, or is empty; mend or remove the row")
        # An instruction is too long for an id, so its place is the id.
        questions[name] = Question(f"{len(questions):04}" if benchmark == ALPACA_EVAL else name, category, turns, row)
    if not questions:
        raise UserError(f"{path}: no questions; name the benchmark's file of them")
    return list(questions.values())


def read_rows(benchmark: str, path: Path, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A benchmark's rows, each after its place in the file: AlpacaEval's list (the `wanted` file) or JSON lines."""
    if benchmark == ALPACA_EVAL:
        return read_json_list(path, wanted)
    return ((f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path))


def _fields(benchmark: str, row: dict[str, Any], where: str) -> tuple[str, str, Any]:
    """The text that the judge's tools tell the question by, its category, and its turns."""

    def value(key: str, within: Any = row) -> Any:
        if not isinstance(within, dict) or key not in within:
            raise UserError(f"{where}: key {key!r} is missing; add it, or name the file of {benchmark}")
        return within[key]

    if benchmark == ALPACA_EVAL:  # its tool needs no "dataset", and outputs of many models have none
        return str(value("instruction")), str(row.get("dataset", "")), [value("instruction")]
    if benchmark == ARENA_HARD and "uid" in row:
        return str(value("uid")), str(value("category")), [value("prompt")]
    name, category, turns = str(value("question_id")), str(value("category")), value("turns")
    if benchmark == ARENA_HARD and isinstance(turns, list):
        turns = [value("content", turn) for turn in turns]
    return name, category, turns


@dataclass(frozen=True)
class Decoding:
    """How answers are sampled."""

    temperatures: dict[str, float]
    """By the questions' categories."""
    top_p: float
    max_new_tokens: int


def decoding(
    benchmark: str,
    questions: Sequence[Question],
    respond: Respond,
    temperature: float | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
) -> Decoding:
    """The given settings, else the benchmark's, else the actor's. Raises `UserError` for a value out of range."""
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UserError(f"--temperature is {temperature}; it must not be negative")
    if top_p is not None and not 0 <= top_p <= 1:
        raise UserError(f"--top-p is {top_p}; it must lie in [0, 1]")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {max_new_tokens}; it must be at least 1")

    def temperature_of(category: str) -> float:
        if temperature is not None:
            return temperature
        if benchmark == MT_BENCH:
            return CATEGORY_TEMPERATURES.get(category, OTHER_TEMPERATURE)
        return 0.0 if benchmark == ARENA_HARD else respond.temperature

    return Decoding(
        {question.category: temperature_of(question.category) for question in questions},
        respond.top_p if top_p is None else top_p,
        respond.max_new_tokens if max_new_tokens is None else max_new_tokens,
    )


def dialog(question: Question, answers: Sequence[str]) -> list[Message]:
    """The messages up to the first turn without an answer."""
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


@dataclass(frozen=True)
class Exam:
    """A benchmark's questions, and how their answers are sampled."""

    benchmark: str
    file: Path
    """The file of the questions."""
    questions: list[Question]
    decoding: Decoding


def exam_job(exam: Exam, settings: Settings, model_dir: Path, what: str, out: Path) -> Job:
    """The job of a turn, or of the file; `what` is the turn, or the name in the file."""
    section = {"benchmark": exam.benchmark, "what": what} | as_dict(exam.decoding)
    values = generation_settings(settings, 0, section)
    return make_job("answers", settings, values, out, {"model": model_dir, "questions": exam.file})


def turn_items(exam: Exam, answers: Sequence[Sequence[str]], chat: ChatFormat, settings: Settings) -> Iterator[Item]:
    """One request a question, for the turn after its `answers`."""
    how = exam.decoding
    for question, given in zip(exam.questions, answers, strict=True):
        name = f"{question.id}/turn{len(given) + 1}"
        messages = partial(dialog, question, tuple(given))
        sampling = Sampling(how.temperatures[question.category], how.top_p, how.max_new_tokens, chat.stop_ids)
        seed = request_seed(settings.seed, 0, "answers", name)
        record = {"id": name, "question_id": question.id, "turn": len(given) + 1, "messages": messages()}
        yield Item(name, messages, sampling, seed, question.id, record)


def turn_folders(exam: Exam, out: Path) -> list[Path]:
    """The folders of each turn's shards."""
    return [out / f"turn{turn}" for turn in range(1, TURNS[exam.benchmark] + 1)]


def ask(exam: Exam, worker: Worker, job: Job) -> list[list[str]]:
    """Each question's answers by turn, stripped as by the benchmarks' tools; empty if the prompt does not fit."""
    answers: list[list[str]] = [[] for _ in exam.questions]
    for folder in turn_folders(exam, job.out):
        items = turn_items(exam, answers, worker.chat, job.settings)
        worker.run(exam_job(exam, job.settings, worker.model_dir, folder.name, folder), items)
        for given, record in zip(answers, list(read_shards(folder)), strict=True):
            given.append(record["text"].strip())
    return answers


def answer_row(
    benchmark: str, question: Question, answers: Sequence[str], name: str, tokenizer: Tokenizer, tstamp: float
) -> dict[str, Any]:
    """One question's row in the benchmark's file; `tstamp` in seconds since 1970."""
    row = question.row
    if benchmark == ALPACA_EVAL:
        copied = {key: row[key] for key in ("dataset", "instruction") if key in row}
        return copied | {"output": answers[0], "generator": name}
    answer_id = hashlib.sha256(f"{name}/{question.id}".encode()).hexdigest()[:22]
    tokens = [len(tokenizer.encode(answer)) for answer in answers]
    if "uid" in row and benchmark == ARENA_HARD:
        return {
            "uid": row["uid"],
            "ans_id": answer_id,
            "model": name,
            "messages": [*dialog(question, ()), {"role": "assistant", "content": {"answer": answers[0]}}],
            "tstamp": tstamp,
            "metadata": {"token_len": tokens[0]} | markdown_counts(answers[0]),
        }
    turns: list[Any] = list(answers)
    if benchmark == ARENA_HARD:
        turns = [{"content": answers[0], "token_len": tokens[0]}]
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


def write_answers(exam: Exam, answers: Sequence[Sequence[str]], name: str, tokenizer: Tokenizer, out: Path) -> Path:
    """Write the benchmark's file; returns its path."""
    now = time.time()
    pairs = zip(exam.questions, answers, strict=True)
    rows = [answer_row(exam.benchmark, question, texts, name, tokenizer, now) for question, texts in pairs]
    if exam.benchmark == ALPACA_EVAL:
        path = out / "model_outputs.json"
        write_json(path, rows)
    else:
        path = out / "model_answer" / f"{name}.jsonl"
        write_jsonl(path, rows)
    return path


def count_answers(exam: Exam, answers: Sequence[Sequence[str]], out: Path) -> tuple[dict[str, int], list[Path]]:
    """Numbers of answers by finish reason, and of empty ones; and all shards."""
    counts: Counter[str] = Counter()
    shards = []
    for folder in turn_folders(exam, out):
        manifest = read_manifest(folder)
        assert manifest is not None
        counts.update(manifest["counts"])
        shards += [folder / shard for shard in manifest["shards"]]
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
    parser.add_argument("--top-p", type=float, help="default: the config's respond.top_p")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: the config's respond.max_new_tokens")
    arguments = parser.parse_args()
    if not arguments.name.strip(" .") or "/" in arguments.name:
        raise UserError(f"--name {arguments.name!r}: it becomes a file's name; give one without a slash")
    return arguments


def main() -> None:
    arguments = read_arguments()
    started = time.monotonic()
    settings, model_dir, out = load_settings(arguments.config), arguments.model, arguments.out
    questions = read_questions(arguments.benchmark, arguments.questions)
    given = (arguments.temperature, arguments.top_p, arguments.max_new_tokens)
    how = decoding(arguments.benchmark, questions, settings.respond, *given)
    exam = Exam(arguments.benchmark, arguments.questions, questions, how)
    job = exam_job(exam, settings, model_dir, f"file of {arguments.name}", out)
    if job.complete:
        return
    worker = Worker(settings, model_dir)
    answers = ask(exam, worker, job)
    if not first_rank():
        return  # every rank has the same answers; one writes the file
    path = write_answers(exam, answers, arguments.name, worker.chat.tokenizer, out)
    counts, shards = count_answers(exam, answers, out)
    facts = {"file": str(path.relative_to(out)), "counts": counts, "decoding": as_dict(how)}
    Output({}, facts, shards).write(job, seconds=round(time.monotonic() - started, 1))
    print(
        f"{path}: {counts['answers']} answers: {counts['length']} cut off at {how.max_new_tokens} tokens or the end of "
        f"the context, {counts['too_long']} whose prompt does not fit, {counts['empty']} empty",
        file=sys.stderr,
    )


if __name__ == "__main__":
    command(main)
