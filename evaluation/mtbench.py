"""MT-Bench scores from a judge's ratings: `python -m evaluation.mtbench --judgments FILE --questions FILE`.

The judgments are a file by FastChat's gen_judgment.py (gpt-4_single.jsonl) or by evaluation/annotate.py: {question_id,
model, judge, score, turn}, of one or more models, with both turns of all questions. Comparisons of two models
(gpt-4_pair.jsonl) are not read. The questions are the benchmark's question.jsonl, which has the categories.

A mean is over the readable scores (-1 and null are unreadable) of a turn, of both, or of a category: as in FastChat's
show_result.py. The interval of the mean resamples questions. The public score is that of the judge gpt-4 over 80
questions; the table says what differs. Scores lie in 1 to 10, or in the row's "scale". FastChat counts any number in
its judge's text, such as 0: so does this module for rows without "scale", and says how many.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.benchmarks import (
    MT_BENCH,
    Question,
    Record,
    once,
    print_tables,
    read_questions,
    read_rows,
    require,
    text,
    value,
)
from evaluation.statistics import bootstrap
from stages.files import UserError, command

JUDGE, QUESTIONS, SCALE = "gpt-4", 80, [1, 10]
"""The benchmark's own judge, number of questions and scale."""

Scores = dict[str, float | None]
"""By question and turn, as "81, turn 1"; None for an unreadable score."""


def parts(questions: Sequence[Question], turns: Sequence[int] = (1, 2)) -> list[str]:
    """The keys of `Scores`."""
    return [f"{question.id}, turn {turn}" for question in questions for turn in turns]


def read_scores(path: Path, questions: Sequence[Question]) -> tuple[dict[str, dict[str, Scores]], list[float]]:
    """The scores by judge and model, and their scale.

    Raises `UserError` naming file and line for a malformed row, an unknown question, a repeated turn and a score
    outside the scale; and naming the questions and turns that a model lacks.
    """
    wanted, scales = parts(questions), []
    by_judge: dict[str, dict[str, Scores]] = {}
    places: dict[Any, str] = {}
    for where, row in read_rows(path):
        key = ("judge", 0) if isinstance(row.get("judge"), list) else ("judge",)  # FastChat's is [model, prompt]
        judge, model = text(row, where, *key), text(row, where, "model")
        part = f"{value(row, where, 'question_id')}, turn {value(row, where, 'turn')}"
        if part not in wanted:
            raise UserError(f"{where}: question {part}, is not in --questions; name the file that was judged")
        once(places, (judge, model, part), f"{part}, of {model}", where)
        by_judge.setdefault(judge, {}).setdefault(model, {})[part] = read_rating(row, where)
        scales.append(row.get("scale", SCALE))
    if not scales or any(scale != scales[0] for scale in scales):
        raise UserError(f"{path}: {'several scales; give each a file' if scales else 'no judgments'}")
    for judge, models in by_judge.items():
        for model, scores in models.items():
            require(wanted, scores, f"{path}: {judge} did not judge {model} on")
    return by_judge, scales[0]


def read_rating(row: Record, where: str) -> float | None:
    """A row's score; None if unreadable. Raises `UserError` for a score outside the row's scale."""
    score, scale = value(row, where, "score"), row.get("scale", [0, sys.float_info.max])
    if not isinstance(scale, list) or len(scale) != 2 or any(type(end) not in (int, float) for end in scale):
        raise UserError(f"{where}: scale is {scale!r}; it must be the lowest and the highest score, such as [1, 10]")
    if score is None or (score == -1 and "scale" not in row):  # FastChat's -1 is a text without a rating
        return None
    if type(score) not in (int, float) or not scale[0] <= score <= scale[1]:
        raise UserError(f"{where}: score is {score!r}; it must lie in {row.get('scale', SCALE)}, or be null")
    return score


def score_model(scores: Scores, questions: Sequence[Question]) -> Record:
    """Means by turn, of both turns with its interval, and by category; None without a readable score."""

    def readable(asked: Sequence[Question], *turns: int) -> list[list[float]]:
        return [[score for part in parts([q], turns) if (score := scores[part]) is not None] for q in asked]

    def mean(asked: Sequence[Question], *turns: int) -> float | None:
        values = [score for own in readable(asked, *turns) for score in own]
        return fmean(values) if values else None

    interval = bootstrap(readable(questions, 1, 2))
    means = {"turn_1": mean(questions, 1), "turn_2": mean(questions, 2), "mean": mean(questions, 1, 2)}
    categories = dict.fromkeys(question.category for question in questions)
    by_category = {name: mean([q for q in questions if q.category == name], 1, 2) for name in categories}
    ends = {"low": interval["low"], "high": interval["high"], "unreadable": list(scores.values()).count(None)}
    return means | ends | by_category


def report(by_judge: dict[str, dict[str, Scores]], scale: list[float], questions: Sequence[Question]) -> list[Record]:
    """A table for each judge, the best model first; its notes say how it differs from the benchmark's own."""
    tables = []
    for judge, models in sorted(by_judge.items()):
        differs = [] if judge == JUDGE else [f"the judge is {judge}, not {JUDGE}"]
        differs += [] if len(questions) == QUESTIONS else [f"{len(questions)} questions, not {QUESTIONS}"]
        differs += [] if scale == SCALE else [f"scores are from {scale[0]} to {scale[1]}, not {SCALE[0]} to {SCALE[1]}"]
        notes = [f"not the benchmark's number: {'; '.join(differs)}"] if differs else []
        given = [score for scores in models.values() for score in scores.values() if score is not None]
        if outside := sum(not scale[0] <= score <= scale[1] for score in given):
            notes.append(f"{outside} scores lie outside of {scale[0]} to {scale[1]}, and count")
        title = f"{MT_BENCH}: {len(questions)} questions, judged by {judge}"
        rows: list[Record] = [{"model": model} | score_model(scores, questions) for model, scores in models.items()]
        rows.sort(key=lambda row: -(row["mean"] or 0.0))
        tables.append({"title": title, "judge": judge, "scale": scale, "notes": notes, "rows": rows})
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description="Score models by MT-Bench's judgments.")
    parser.add_argument("--judgments", required=True, type=Path, help="JSON lines of one or more models")
    parser.add_argument("--questions", required=True, type=Path, help="the benchmark's own question.jsonl")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args()
    questions = read_questions(MT_BENCH, given.questions)
    print_tables(report(*read_scores(given.judgments, questions), questions), 2, given.json)


if __name__ == "__main__":
    command(main)
