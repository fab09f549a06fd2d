"""A benchmark's questions, joined with a model's answers and a baseline's.

The files are written by `evaluation/answers.py`, or published by the benchmarks for other models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.answers import ALPACA_EVAL, ARENA_HARD, TURNS, Question, read_questions, read_rows
from evaluation.statistics import shortened
from stages.files import UserError


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question."""

    model: str
    texts: list[str]
    """One text for each turn; a text may be empty."""


@dataclass(frozen=True)
class Match:
    """A question with its answers."""

    question: Question
    answer: Answer
    baseline: Answer | None
    """None in MT-Bench, which doesn't compare answers."""


def read_matches(benchmark: str, answers: Path, baseline: Path | None, questions: Path | None) -> list[Match]:
    """The questions with their answers, in the questions' order.

    AlpacaEval's questions are those of the baseline's file, and both files must have the same ones. In the other
    benchmarks `questions` is the file of questions to judge; there may be more answers. Raises `UserError` naming file
    and line for missing, repeated and malformed rows.
    """
    source = baseline if benchmark == ALPACA_EVAL else questions
    assert source is not None
    asked = read_questions(benchmark, source)
    own = read_answers(benchmark, answers)
    require(asked, own, benchmark, answers)
    if benchmark == ALPACA_EVAL and (unasked := own.keys() - {question_key(benchmark, q) for q in asked}):
        few = shortened(name for name in own if name in unasked)
        raise UserError(f"{answers}: {len(unasked)} answers to what {source} does not have: {few}; name its baseline")
    if len(models := {answer.model for answer in own.values()}) > 1:
        raise UserError(f"{answers}: answers of {len(models)} models, {shortened(sorted(models))}; give each its file")
    against = read_answers(benchmark, baseline) if baseline else {}
    if baseline:
        require(asked, against, benchmark, baseline)
    keys = [question_key(benchmark, question) for question in asked]
    return [Match(question, own[key], against.get(key)) for question, key in zip(asked, keys, strict=True)]


def question_key(benchmark: str, question: Question) -> str:
    """The key of a question in the benchmark's files: its id; in AlpacaEval its text."""
    return question.turns[0] if benchmark == ALPACA_EVAL else question.id


def require(questions: Sequence[Question], answers: dict[str, Answer], benchmark: str, path: Path) -> None:
    """Raise `UserError` naming the questions to which a file has no answer."""
    names = [question_key(benchmark, question) for question in questions]
    if missing := [name for name in names if name not in answers]:
        few = shortened(missing)
        raise UserError(f"{path}: no answer to {len(missing)} of {len(names)} questions: {few}; answer them all first")


def read_answers(benchmark: str, path: Path) -> dict[str, Answer]:
    """The answers of a file, by `question_key`.

    Raises `UserError` naming file and line, or the entry of a JSON list, for a missing key, a text that is no text, and
    a question that is answered twice.
    """
    answers: dict[str, Answer] = {}
    places: dict[str, str] = {}
    for where, row in read_rows(benchmark, path, "AlpacaEval's model_outputs.json of a model"):
        name, model, texts = _fields(benchmark, row, where)
        if name in answers:
            raise UserError(f"{where}: {name[:60]!r} was answered before ({places[name]}); keep one of the two")
        if len(texts) != TURNS[benchmark] or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: the answer to {name[:60]!r} must be {TURNS[benchmark]} texts; mend the row")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise UserError(f"{where}: the answer to {name[:60]!r} holds half a character (\\ud...); mend the row")
        answers[name], places[name] = Answer(model, texts), where
    return answers


def _fields(benchmark: str, row: dict[str, Any], where: str) -> tuple[str, str, list[Any]]:
    """Question, model, and one text for each turn."""

    def at(*keys: str | int) -> Any:
        value: Any = row
        for depth, key in enumerate(keys, 1):
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                name = ".".join(map(str, keys[:depth]))
                raise UserError(
                    f"{where}: {name} is missing; add it, or name a file of answers to {benchmark}"
                ) from None
        return value

    if benchmark == ALPACA_EVAL:
        return str(at("instruction")), str(at("generator")), [at("output")]
    if benchmark == ARENA_HARD and "uid" in row:
        return str(at("uid")), str(at("model")), [at("messages", -1, "content", "answer")]
    turns = at("choices", 0, "turns")
    count = len(turns) if isinstance(turns, list) else 0
    inner = ("content",) if benchmark == ARENA_HARD else ()
    texts = [at("choices", 0, "turns", turn, *inner) for turn in range(count)]
    return str(at("question_id")), str(at("model_id")), texts
