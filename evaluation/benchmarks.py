"""The files of AlpacaEval 2, Arena-Hard (v0.1 and v2.0) and MT-Bench: questions, models' answers, and tables of scores.

Questions are the benchmark's own file; answers are written by `evaluation/answers.py`, or published by the benchmark.
AlpacaEval's files are JSON lists (.json), all others JSON lines. `read_questions` and `read_answers` show the keys.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.statistics import columns, shortened
from stages.files import UserError, read_json_list, read_numbered_jsonl

Record = dict[str, Any]

ALPACA_EVAL, ARENA_HARD, MT_BENCH = "alpaca-eval", "arena-hard", "mt-bench"

TURNS = {ALPACA_EVAL: 1, ARENA_HARD: 1, MT_BENCH: 2}
"""The user's turns in a dialog of each benchmark."""


@dataclass(frozen=True)
class Question:
    """A question and the row of the benchmark's file that it comes from."""

    id: str
    """In AlpacaEval the question's place, such as "0007", since an instruction is too long for an id."""
    key: str
    """The text that the benchmark's files tell the question by: its id, in AlpacaEval its instruction."""
    category: str
    turns: list[str]
    """The user's messages, in order."""
    row: Record


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question: one text for each turn, which may be empty."""

    model: str
    texts: list[str]


@dataclass(frozen=True)
class Match:
    """A question with its answers; there is no baseline in MT-Bench, which doesn't compare answers."""

    question: Question
    answer: Answer
    baseline: Answer | None


def read_rows(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON list (.json) or of JSON lines, each after its place: "PATH, entry I" or "PATH, line N"."""
    if path.suffix == ".json":
        return read_json_list(path, "a JSON list of rows, as AlpacaEval has it")
    return ((f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path))


def value(row: Record, where: str, *keys: Any) -> Any:
    """The value at nested keys of a row. Raises `UserError` naming the place and the missing key."""
    inner: Any = row
    for depth, key in enumerate(keys, 1):
        try:
            inner = {}[key] if isinstance(inner, str) else inner[key]
        except (KeyError, IndexError, TypeError):
            name = ".".join(map(str, keys[:depth]))
            raise UserError(f"{where}: {name} is missing; add it, or name a file of this benchmark") from None
    return inner


def text(row: Record, where: str, *keys: Any) -> str:
    """The text at nested keys of a row. Raises `UserError` naming the place and key of an empty or missing text."""
    given = value(row, where, *keys)
    if not isinstance(given, str) or not given.strip():
        raise UserError(f"{where}: {'.'.join(map(str, keys))} must be a text that is not empty; mend the row")
    return given


def once(places: dict[Any, str], key: Any, name: str, where: str) -> None:
    """Note a row's place by its key. Raises `UserError` naming both places if an earlier row has the same key."""
    if key in places:
        raise UserError(f"{where}: {name[:60]!r} came before ({places[key]}); keep one of the two")
    places[key] = where


def require(wanted: Collection[str], given: Collection[str], what: str) -> None:
    """Raise `UserError` naming the keys that are wanted and not given; `what` says who lacks what."""
    if missing := [name for name in wanted if name not in given]:
        few = shortened(missing)
        raise UserError(f"{what} {len(missing)} of {len(wanted)} questions: {few}; add them, or name another file")


def read_questions(benchmark: str, path: Path) -> list[Question]:
    """The questions of a benchmark's file, in its order. Raises `UserError` naming the place of an invalid row."""
    questions: list[Question] = []
    places: dict[Any, str] = {}
    for where, row in read_rows(path):
        if benchmark == ALPACA_EVAL:  # its tool needs no "dataset", and outputs of many models have none
            turns = [text(row, where, "instruction")]
            question = Question(f"{len(questions):04}", turns[0], str(row.get("dataset", "")), turns, row)
        else:
            second = benchmark == ARENA_HARD and "uid" in row  # v2.0
            name, category = str(value(row, where, "uid" if second else "question_id")), value(row, where, "category")
            keys = [("prompt",)] if second else _turn_keys(benchmark, row, where, "turns")
            question = Question(name, name, str(category), [text(row, where, *own) for own in keys], row)
        once(places, question.key, question.key, where)
        questions.append(question)
    if not questions:
        raise UserError(f"{path}: no questions; name the benchmark's file of them")
    return questions


def _turn_keys(benchmark: str, row: Record, where: str, *keys: Any) -> list[tuple[Any, ...]]:
    """The nested keys of each turn's text in a row's list."""
    given, count = value(row, where, *keys), TURNS[benchmark]
    if not isinstance(given, list) or len(given) != count:
        raise UserError(f"{where}: {'.'.join(map(str, keys))} of {benchmark} must be a list of {count}; mend the row")
    return [(*keys, turn, *(("content",) if benchmark == ARENA_HARD else ())) for turn in range(count)]


def read_answers(benchmark: str, path: Path) -> dict[str, Answer]:
    """The answers of a file, by `Question.key`. Raises `UserError` naming the place of an invalid or repeated row."""
    answers: dict[str, Answer] = {}
    places: dict[Any, str] = {}
    for where, row in read_rows(path):
        if benchmark == ALPACA_EVAL:
            key, model, keys = "instruction", "generator", list[tuple[Any, ...]]([("output",)])
        elif benchmark == ARENA_HARD and "uid" in row:
            key, model, keys = "uid", "model", [("messages", -1, "content", "answer")]
        else:
            key, model, keys = "question_id", "model_id", _turn_keys(benchmark, row, where, "choices", 0, "turns")
        name, texts = str(value(row, where, key)), [value(row, where, *own) for own in keys]
        once(places, name, name, where)
        half = any("\ud800" <= character <= "\udfff" for own in texts for character in str(own))  # no file can hold it
        if half or not all(isinstance(own, str) for own in texts):
            raise UserError(f"{where}: an answer to {name[:60]!r} is no text of whole characters; mend the row")
        answers[name] = Answer(str(value(row, where, model)), texts)
    return answers


def read_matches(benchmark: str, answers: Path, baseline: Path | None, questions: Path | None) -> list[Match]:
    """The questions with their answers, in the questions' order.

    AlpacaEval's questions are those of the baseline's file, and both files must have the same ones. In the other
    benchmarks `questions` is the file of questions to judge; there may be more answers. Raises `UserError` naming the
    questions without an answer, and a file of several models' answers.
    """
    source = questions or baseline
    assert source is not None
    asked, own = read_questions(benchmark, source), read_answers(benchmark, answers)
    against = read_answers(benchmark, baseline) if baseline else {}
    keys = [question.key for question in asked]
    require(keys, own, f"{answers}: no answer to")
    if baseline:
        require(list(own) if benchmark == ALPACA_EVAL else keys, against, f"{baseline}: no answer to")
    if len(models := {answer.model for answer in own.values()}) > 1:
        raise UserError(f"{answers}: answers of {len(models)} models, {shortened(sorted(models))}; give each its file")
    return [Match(question, own[question.key], against.get(question.key)) for question in asked]


def print_tables(tables: Sequence[Record], digits: int, as_json: bool) -> None:
    """Print tables {title, notes, rows} as JSON, or as text: floats with `digits`, no column without any value."""

    def cell(given: Any) -> str:
        return "-" if given is None else f"{given:.{digits}f}" if isinstance(given, float) else str(given)

    if as_json:
        print(json.dumps(tables, indent=2, ensure_ascii=False))
        return
    for number, table in enumerate(tables):
        rows = table["rows"]
        heads = [head for head in rows[0] if any(row[head] is not None for row in rows)]
        lines = columns([[head.replace("_", " ") for head in heads], *([cell(row[k]) for k in heads] for row in rows)])
        print("\n" * (number > 0) + "\n".join([table["title"], *lines, *table["notes"]]))
