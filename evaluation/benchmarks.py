"""The files of AlpacaEval 2, Arena-Hard (v0.1 and v2.0) and MT-Bench: questions, models' answers, and tables of scores.

AlpacaEval's files are JSON lists (.json), all others JSON lines.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.statistics import columns, shortened
from stages.files import UserError, read_json_list, read_numbered_jsonl
from stages.records import Record

ALPACA_EVAL, ARENA_HARD, MT_BENCH = "alpaca-eval", "arena-hard", "mt-bench"

TURNS = {ALPACA_EVAL: 1, ARENA_HARD: 1, MT_BENCH: 2}  # the user's, in a dialog


@dataclass(frozen=True)
class Question:
    """A question and the row of the benchmark's file that it comes from."""

    id: str  # in AlpacaEval the question's place, such as "0007", since an instruction is too long for an id
    key: str  # what the benchmark's files name the question by: its id, in AlpacaEval its instruction
    category: str
    turns: list[str]  # the user's messages, in order
    row: Record


def read_rows(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON list (.json) or of JSON lines, each after its place: "PATH, entry I" or "PATH, line N"."""
    if path.suffix == ".json":
        return read_json_list(path, "a JSON list of rows, as AlpacaEval has it")
    return ((f"{path}, line {number}", row) for number, row in read_numbered_jsonl(path))


def value(row: Record, where: str, *keys: str | int) -> Any:
    """The value at nested keys of a row. Raises `UserError` naming the place and the missing key."""
    inner: Any = row
    try:
        for key in keys:
            inner = inner[key]
    except (KeyError, IndexError, TypeError):
        name = ".".join(map(str, keys))
        raise UserError(f"{where}: {name} is missing; add it, or name a file of this benchmark") from None
    return inner


def require(wanted: Sequence[str], given: Collection[str], what: str) -> None:
    """Raise `UserError` naming the wanted keys that are not given; `what` says who lacks what."""
    if missing := [name for name in wanted if name not in given]:
        raise UserError(f"{what} {len(missing)} of {len(wanted)} questions: {shortened(missing)}; add them")


def read_questions(benchmark: str, path: Path) -> list[Question]:
    """The questions of a benchmark's file, in its order. Raises `UserError` naming the place of an invalid row."""
    questions: dict[str, Question] = {}
    for where, row in read_rows(path):
        if benchmark == ALPACA_EVAL:  # its tool needs no "dataset", and outputs of many models have none
            key, category = str(value(row, where, "instruction")), row.get("dataset", "")
            turns = [key]
        elif benchmark == ARENA_HARD and "uid" in row:  # v2.0
            key, category, turns = row["uid"], value(row, where, "category"), [value(row, where, "prompt")]
        else:
            key, category = str(value(row, where, "question_id")), value(row, where, "category")
            turns = _turns(benchmark, row, where, "turns")
        if key in questions or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise UserError(f"{where}: {key[:60]!r} came before, or a turn is no text or empty; mend the row")
        name = f"{len(questions):04}" if benchmark == ALPACA_EVAL else key
        questions[key] = Question(name, key, str(category), turns, row)
    if not questions:
        raise UserError(f"{path}: no questions; name the benchmark's file of them")
    return list(questions.values())


def read_answers(benchmark: str, path: Path, questions: Sequence[Question]) -> tuple[str, dict[str, list[str]]]:
    """A model's name and its answers by `Question.key`, a text for each turn; the file may have more than asked."""
    answers: dict[str, list[str]] = {}
    models: set[str] = set()
    for where, row in read_rows(path):
        if benchmark == ALPACA_EVAL:
            key, model, texts = "instruction", "generator", [value(row, where, "output")]
        elif benchmark == ARENA_HARD and "uid" in row:
            key, model, texts = "uid", "model", [value(row, where, "messages", -1, "content", "answer")]
        else:
            key, model, texts = "question_id", "model_id", _turns(benchmark, row, where, "choices", 0, "turns")
        name = str(value(row, where, key))
        if name in answers or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: an answer to {name[:60]!r} came before, or is no text; mend the row")
        answers[name] = texts
        models.add(str(value(row, where, model)))
    require([question.key for question in questions], answers, f"{path}: no answer to")
    if len(models) > 1:
        raise UserError(f"{path}: answers of {len(models)} models, {shortened(sorted(models))}; give each its file")
    return models.pop(), answers


def _turns(benchmark: str, row: Record, where: str, *keys: str | int) -> list[Any]:
    """The list at nested keys of a row, with a text for each turn; in Arena-Hard v0.1 as {"content"}."""
    turns = value(row, where, *keys)
    if not isinstance(turns, list) or len(turns) != TURNS[benchmark]:
        name = ".".join(map(str, keys))
        raise UserError(f"{where}: {name} of {benchmark} must be a list of {TURNS[benchmark]}; mend the row")
    return [value(turn, where, "content") for turn in turns] if benchmark == ARENA_HARD else turns


def caveats(differences: Mapping[str, bool]) -> list[str]:
    """The note that a table isn't the benchmark's own, with the differences that hold; none if none holds."""
    reasons = "; ".join(text for text, holds in differences.items() if holds)
    return [f"not the benchmark's number: {reasons}"] if reasons else []


def print_tables(tables: Sequence[Record], digits: int) -> None:
    """Print tables {title, notes, rows}: floats with `digits`, a dash for None, no column without any value."""

    def cell(given: Any) -> str:
        return "-" if given is None else f"{given:.{digits}f}" if isinstance(given, float) else str(given)

    for number, table in enumerate(tables):
        rows = table["rows"]
        heads = [head for head in rows[0] if any(row[head] is not None for row in rows)]
        lines = columns([[head.replace("_", " ") for head in heads], *([cell(row[k]) for k in heads] for row in rows)])
        print("\n" * (number > 0) + "\n".join([table["title"], *lines, *table["notes"]]))
