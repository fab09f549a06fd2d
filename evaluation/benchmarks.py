"""The files of AlpacaEval 2, Arena-Hard (v0.1 and v2.0) and MT-Bench: questions, models' answers, tables of scores.

AlpacaEval's files are JSON lists (.json), all others JSON lines.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.statistics import columns, shortened
from stages.command import UserError
from stages.records import Record
from stages.rows import FULL_TEXT, NAME, Row, read_rows

ALPACA_EVAL, ARENA_HARD, MT_BENCH = "alpaca-eval", "arena-hard", "mt-bench"
TURNS = {ALPACA_EVAL: 1, ARENA_HARD: 1, MT_BENCH: 2}  # the user's, in a dialog
FORMS: dict[str, tuple[list[Any], list[Any], str]] = {
    "instruction": (["instruction"], ["output"], "generator"),
    "uid": (["prompt"], ["messages", -1, "content", "answer"], "model"),  # Arena-Hard v2.0's
    "question_id": (["turns"], ["choices", 0, "turns"], "model_id"),
}
"""By the key that names the question of a row: the keys of a question's texts, of an answer's, and of its model."""


class Question(NamedTuple):  # a question and the row of the benchmark's file that it comes from
    id: str  # in AlpacaEval the question's place, such as "0007", since an instruction is too long for an id
    key: str  # what the benchmark's files name the question by: its id, in AlpacaEval its instruction
    category: str
    turns: list[str]  # the user's messages, in order
    row: Record


def need(wanted: Sequence[str], given: Collection[str], what: str) -> None:
    """Raise `UserError` naming the wanted keys that are not given; `what` says who lacks what."""
    if missing := [name for name in wanted if name not in given]:
        raise UserError(f"{what} {len(missing)} of {len(wanted)} questions: {shortened(missing)}; add them")


def match(names: Sequence[str], answered: Collection[str], what: str, where: str = "") -> None:
    """Raise `UserError` unless exactly these are answered; `what` they are, such as "instructions", and `where`."""
    if missing := [name for name in names if name not in answered]:
        raise UserError(f"{where}no answer to {len(missing)} of {len(names)} {what}: {shortened(missing)}; answer all")
    if unknown := sorted(set(answered) - set(names)):
        raise UserError(f"{where}{len(unknown)} answers to unknown {what}: {shortened(unknown)}; remove them")


def read_questions(benchmark: str, path: Path) -> list[Question]:
    """The questions of a benchmark's file, in its order. Raises `UserError` naming the place of an invalid row."""
    questions: list[Question] = []
    for row, name, key, turns in _read_texts(benchmark, path, answers=False):
        alpaca = name == "instruction"  # its tool needs no "dataset", and outputs of many models have none
        category = row.content.get("dataset", "") if alpaca else row.value("category", kind=FULL_TEXT)
        questions.append(Question(f"{len(questions):04}" if alpaca else key, key, str(category), turns, row.content))
    if not questions:
        raise UserError(f"{path}: no questions; name the benchmark's file of them")
    return questions


def read_answers(benchmark: str, path: Path, questions: Sequence[Question]) -> tuple[str, dict[str, list[str]]]:
    """A model's name and its answers by `Question.key`, a text for each turn; the file may have more than asked."""
    answers, models = dict[str, list[str]](), set[str]()
    for row, name, key, texts in _read_texts(benchmark, path, answers=True):
        answers[key] = texts
        models.add(str(row.value(FORMS[name][2], kind=NAME)))
    need([question.key for question in questions], answers, f"{path}: no answer to")
    if len(models) > 1:
        raise UserError(f"{path}: answers of {len(models)} models, {shortened(sorted(models))}; give each its file")
    return models.pop(), answers


def _read_texts(benchmark: str, path: Path, answers: bool) -> Iterator[tuple[Row, str, str, list[str]]]:
    """(row, key that names its question, name, a text for each turn) of each row."""
    seen = set[str]()
    for row in read_rows(path):
        name = "instruction" if benchmark == ALPACA_EVAL else "question_id"
        name = "uid" if benchmark == ARENA_HARD and "uid" in row.content else name
        place = FORMS[name][answers]
        key, texts = str(row.value(name, kind=NAME)), row.value(*place)
        if name != "question_id":
            texts = [texts]
        elif not isinstance(texts, list) or len(texts) != TURNS[benchmark]:
            turns = f"{'.'.join(map(str, place))} of {benchmark}"
            raise UserError(f"{row.where}: {turns} must be a list of {TURNS[benchmark]}; mend the row")
        elif benchmark == ARENA_HARD:
            texts = [Row(row.where, turn).value("content") for turn in texts]
        if key in seen or not all(isinstance(text, str) and (text.strip() or answers) for text in texts):
            raise UserError(f"{row.where}: {key[:60]!r} came before, or a text is missing or empty; mend the row")
        seen.add(key)
        yield row, name, key, texts


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
