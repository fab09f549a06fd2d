"""A model's answers to public benchmarks, in the files that the benchmarks' own tools read.

`torchrun -m evaluation.answers --benchmark B --questions FILE`, with the benchmark's own file of questions, writes
OUT/model_outputs.json (alpaca-eval) or OUT/model_answer/NAME.jsonl (arena-hard v0.1 and v2.0, mt-bench with two turns).
The decoding is the config's [respond], but the temperature is the benchmark's if it has one. Before v2.0's style
control, run arena-hard-auto's `utils/add_markdown_info.py`, since `token_len` is by the model's own tokenizer.
"""

import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, TURNS, Question, read_questions
from model.chat import ChatFormat, Message
from model.tokenizer import Tokenizer
from sampling.request import FinishReason, Sampling
from sampling.worker import Item, Worker, generation_settings
from stages.command import UserError, arguments, command
from stages.files import read_shards, write_json, write_jsonl
from stages.records import Record
from stages.seeds import request_seed
from stages.settings import Respond, load_settings
from stages.stage import Job, Output, first_rank, make_job

COLD = ("extraction", "math", "coding", "reasoning")
CATEGORY_TEMPERATURES = {"stem": 0.1, "humanities": 0.1} | dict.fromkeys(COLD, 0.0)  # MT-Bench's, from FastChat


def decoding(benchmark: str, questions: Sequence[Question], respond: Respond) -> Record:
    """The "temperatures" by the questions' categories, "top_p" and "max_new_tokens"."""
    by_category = CATEGORY_TEMPERATURES if benchmark == MT_BENCH else {}
    other = {ALPACA_EVAL: respond.temperature, ARENA_HARD: 0.0, MT_BENCH: 0.7}[benchmark]
    temperatures = {question.category: by_category.get(question.category, other) for question in questions}
    return {"temperatures": temperatures, "top_p": respond.top_p, "max_new_tokens": respond.max_new_tokens}


def dialog(question: Question, answers: Sequence[str]) -> list[Message]:
    """The messages up to the first turn without an answer."""
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def turn_items(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], how: Record, chat: ChatFormat, seed: int
) -> Iterator[Item]:
    """One request a question, for the turn after its `answers`; `how` is the `decoding`, `seed` the run's."""
    for question, given in zip(questions, answers, strict=True):
        turn, messages = len(given) + 1, dialog(question, given)
        name, temperature = f"{question.id}/turn{turn}", how["temperatures"][question.category]
        sampling = Sampling(temperature, how["top_p"], how["max_new_tokens"], chat.stop_ids)
        record = {"id": name, "question_id": question.id, "turn": turn, "messages": messages}
        yield Item(name, partial(list, messages), sampling, request_seed(seed, 0, "answers", name), question.id, record)


def answer_row(
    benchmark: str, question: Question, answers: Sequence[str], name: str, tokenizer: Tokenizer, tstamp: float
) -> Record:
    """One question's row in the benchmark's file; `tstamp` in seconds since 1970."""
    row = question.row
    if benchmark == ALPACA_EVAL:
        copied = {key: row[key] for key in ("dataset", "instruction") if key in row}
        return copied | {"output": answers[0], "generator": name}
    answer_id, turns = hashlib.sha256(f"{name}/{question.id}".encode()).hexdigest()[:22], list[Any](answers)
    if benchmark == ARENA_HARD:
        length = {"token_len": len(tokenizer.encode(answers[0]))}
        if "uid" in row:
            messages = [*dialog(question, ()), {"role": "assistant", "content": {"answer": answers[0]}}]
            ids = {"uid": row["uid"], "ans_id": answer_id, "model": name, "messages": messages}
            return ids | {"tstamp": tstamp, "metadata": length | markdown_counts(answers[0])}
        turns = [{"content": answers[0]} | length]
    ids = {"question_id": row["question_id"], "answer_id": answer_id, "model_id": name}
    return ids | {"choices": [{"index": 0, "turns": turns}], "tstamp": tstamp}


def markdown_counts(answer: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold spans of an answer, outside of fenced code, as Arena-Hard v2.0 defines them."""
    text = re.sub(r"```[^`]*```", "``````", answer)

    def counts(patterns: dict[str, str]) -> dict[str, int]:
        return {kind: len(re.findall(pattern, text, re.MULTILINE)) for kind, pattern in patterns.items()}

    return {
        "header_count": counts({f"h{level}": rf"^#{{{level}}}\s" for level in range(1, 7)}),
        "list_count": counts({"ordered": r"^\s*\d+\.\s", "unordered": r"^\s*[-*+]\s"}),
        "bold_count": counts({"**": r"\*\*[^*\n]+\*\*", "__": r"__[^_\n]+__"}),
    }


def main() -> None:
    needed: Any = {"required": True}
    given = arguments(
        __doc__, "config", "questions", "model", "out", benchmark=needed | {"choices": list(TURNS)},
        name=needed | {"help": "what the benchmark's tools are to call the model"},
    )  # fmt: skip
    started, benchmark, name, out = time.monotonic(), given.benchmark, given.name, given.out
    if not name.strip(" .") or "/" in name:
        raise UserError(f"--name {name!r}: it becomes a file's name; give one without a slash")
    settings, questions = load_settings(given.config), read_questions(benchmark, given.questions)
    how = decoding(benchmark, questions, settings.respond)

    def job(what: str, out: Path) -> Job:
        values = generation_settings(settings, 0, {"benchmark": benchmark, "what": what} | how)
        return make_job("answers", settings, values, out, {"model": given.model, "questions": given.questions})

    if (whole := job(f"file of {name}", out)).complete:
        return
    worker, answers = Worker(settings, given.model), [list[str]() for _ in questions]  # by turn
    ends, shards = Counter[str](), list[Path]()
    for turn in range(1, TURNS[benchmark] + 1):
        folder = out / f"turn{turn}"
        worker.run(job(folder.name, folder), turn_items(questions, answers, how, worker.chat, settings.seed))
        for texts, record in zip(answers, list(read_shards(folder)), strict=True):
            texts.append(record["text"].strip())  # as the benchmarks' tools do; empty if the prompt does not fit
            ends[record["finish_reason"]] += 1
        shards += folder.glob("shards-*/*.jsonl")
    if not first_rank():
        return  # every rank has the same answers; one writes the file
    pairs, by = zip(questions, answers, strict=True), (name, worker.chat.tokenizer, time.time())
    rows = [answer_row(benchmark, question, texts, *by) for question, texts in pairs]
    file = "model_outputs.json" if benchmark == ALPACA_EVAL else f"model_answer/{name}.jsonl"
    write_json(out / file, rows) if benchmark == ALPACA_EVAL else write_jsonl(out / file, rows)
    counts = {"questions": len(questions), "answers": ends.total()} | {r: ends[r] for r in get_args(FinishReason)}
    counts["empty"] = sum(not text for texts in answers for text in texts)
    # The stage's digest is the shards', since the file has the time.
    facts = {"file": file, "counts": counts, "decoding": how}
    Output({}, facts, shards).write(whole, seconds=round(time.monotonic() - started, 1))
    limit = f"{counts['length']} cut off at {how['max_new_tokens']} tokens or the end of the context"
    words = f"{counts['answers']} answers: {limit}, {counts['too_long']} whose prompt does not fit"
    print(f"{out / file}: {words}, {counts['empty']} empty", file=sys.stderr)


if __name__ == "__main__":
    command(main)
