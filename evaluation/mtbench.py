"""MT-Bench scores from a judge's ratings: `python -m evaluation.mtbench --judgments FILE --questions FILE`.

The judgments are a file by FastChat's gen_judgment.py (gpt-4_single.jsonl) or by evaluation/annotate.py: {question_id,
model, judge, score, turn}, of one or more models, with both turns of all questions. The questions are the benchmark's
question.jsonl, which has the categories.

A mean is over the readable scores of both turns (-1 and null are unreadable), as in FastChat's show_result.py, whose
three tables are our first three columns. Intervals resample questions. The public score is that of the judge gpt-4 over
80 questions; the table says what differs.

Scores lie in 1 to 10, or in the row's "scale"; all rows must have the same scale. FastChat counts any number in its
judge's text, such as 0: so does this module for rows without "scale", and says how many. Comparisons of two models
(gpt-4_pair.jsonl) are not read.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.answers import MT_BENCH, Question, read_questions
from evaluation.statistics import bootstrap, columns, shortened
from stages.files import UserError, command, read_numbered_jsonl

JUDGE, QUESTIONS, SCALE = "gpt-4", 80, [1, 10]
"""The benchmark's own judge, number of questions and scale."""

TURNS = (1, 2)
_UNREADABLE = -1
"""FastChat's score for a text without a rating."""

Scores = dict[tuple[str, int], float | None]
"""By question and turn; None for an unreadable score."""


def read_scores(path: Path, questions: Sequence[Question]) -> tuple[dict[tuple[str, str], Scores], list[float]]:
    """The scores by (judge, model), and their scale.

    Raises `UserError` naming file and line for a malformed row, an unknown question, a repeated turn and a score
    outside the scale; and naming the questions and turns that a model lacks.
    """
    asked = {question.id for question in questions}
    by_model: dict[tuple[str, str], Scores] = {}
    scale: list[float] | None = None
    for number, row in read_numbered_jsonl(path):
        where = f"{path}, line {number}"
        if "g1_winner" in row:
            raise UserError(f"{where}: a comparison of two models; name the file whose name ends in _single.jsonl")
        judge, model, name, turn = _fields(row, where)
        if name not in asked:
            raise UserError(f"{where}: question {name!r} is not in --questions; name the file that was judged")
        own = _scale(row, where)
        if scale not in (None, own):
            raise UserError(f"{where}: the scale is {own}, before it was {scale}; give each scale a file")
        scale = own
        scores = by_model.setdefault((judge, model), {})
        if (name, turn) in scores:
            raise UserError(f"{where}: turn {turn} of question {name!r} of {model} came before; keep one of the two")
        scores[name, turn] = _score(row, own, where)
    if scale is None:
        raise UserError(f"{path}: no judgments; name a file of the folder model_judgment")
    for (judge, model), scores in by_model.items():
        wanted = [(question.id, turn) for question in questions for turn in TURNS]
        if missing := [f"{name}, turn {turn}" for name, turn in wanted if (name, turn) not in scores]:
            which = f"{len(missing)} of {len(wanted)} turns: {shortened(missing)}"
            raise UserError(
                f"{path}: {judge} did not judge {which}, of {model}; have it judge them, or remove its rows"
            )
    return by_model, scale


def _fields(row: dict[str, Any], where: str) -> tuple[str, str, str, int]:
    """Judge, model, question and turn of a row."""
    for key in ("question_id", "model", "judge", "score", "turn"):
        if key not in row:
            raise UserError(f"{where}: key {key!r} is missing; add it, or name a file of MT-Bench's judgments")
    # FastChat's judge is a list [model, prompt]; the prompt differs between turns.
    judge = row["judge"][0] if isinstance(row["judge"], list) and row["judge"] else row["judge"]
    for key, value in (("judge", judge), ("model", row["model"])):
        if not isinstance(value, str) or not value:
            raise UserError(f"{where}: {key!r} must be a text that is not empty; mend the row")
    if row["turn"] not in TURNS:
        raise UserError(f"{where}: the turn is {row['turn']!r}; it must be 1 or 2")
    return judge, row["model"], str(row["question_id"]), row["turn"]


def _scale(row: dict[str, Any], where: str) -> list[float]:
    """A row's lowest and highest score."""
    scale = row.get("scale", SCALE)
    if not isinstance(scale, list) or len(scale) != 2 or not all(isinstance(end, int | float) for end in scale):
        raise UserError(f"{where}: 'scale' must be a list of the lowest and the highest score; mend the row")
    return scale


def _score(row: dict[str, Any], scale: list[float], where: str) -> float | None:
    """A row's score; None if unreadable."""
    score = row["score"]
    if score is None or (score == _UNREADABLE and "scale" not in row):
        return None
    least, most = scale if "scale" in row else (0, sys.float_info.max)
    if isinstance(score, bool) or not isinstance(score, int | float) or not least <= score <= most:
        raise UserError(f"{where}: the score is {score!r}; it must lie in {scale}, or be null for an unreadable score")
    return score


def score_model(scores: Scores, questions: Iterable[Question]) -> dict[str, Any]:
    """Means with intervals over questions: by turn, of both turns, and by category; None without a readable score."""

    def mean(wanted: Iterable[Question], turns: Sequence[int]) -> dict[str, Any]:
        groups = [[score for turn in turns if (score := scores[q.id, turn]) is not None] for q in wanted]
        values = [score for group in groups for score in group]
        return bootstrap(groups) | {"value": fmean(values) if values else None}  # not rounded

    asked = list(questions)
    categories = dict.fromkeys(question.category for question in asked)
    return {
        "turn_1": mean(asked, TURNS[:1]),
        "turn_2": mean(asked, TURNS[1:]),
        "mean": mean(asked, TURNS),
        "categories": {name: mean([q for q in asked if q.category == name], TURNS) for name in categories},
        "unreadable": list(scores.values()).count(None),
    }


def report(
    by_model: dict[tuple[str, str], Scores], scale: list[float], questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """A table for each judge: whether the scores are the benchmark's own, and the models, the best first."""
    tables = []
    for judge in sorted({judge for judge, _ in by_model}):
        differs = [] if judge == JUDGE else [f"the judge is {judge}, not {JUDGE}"]
        differs += [] if len(questions) == QUESTIONS else [f"{len(questions)} questions, not {QUESTIONS}"]
        differs += [] if scale == SCALE else [f"scores are from {scale[0]} to {scale[1]}, not {SCALE[0]} to {SCALE[1]}"]
        models = [
            {"model": model} | score_model(scores, questions) for (by, model), scores in by_model.items() if by == judge
        ]
        given = [score for (by, _), scores in by_model.items() if by == judge for score in scores.values()]
        tables.append(
            {
                "benchmark": MT_BENCH,
                "judge": judge,
                "scale": scale,
                "questions": len(questions),
                "official": not differs,
                "differs": differs,
                "outside": sum(score is not None and not scale[0] <= score <= scale[1] for score in given),
                "models": sorted(models, key=lambda row: -(row["mean"]["value"] or 0.0)),
            }
        )
    return tables


def table(judged: dict[str, Any]) -> str:
    """A judge's table as text."""
    lines = [f"{judged['benchmark']}: {judged['questions']} questions, judged by {judged['judge']}"]
    if not judged["official"]:
        lines.append(f"not the benchmark's number: {'; '.join(judged['differs'])}")
    if judged["outside"]:
        lines.append(
            f"{judged['outside']} scores lie outside of {judged['scale'][0]} to {judged['scale'][1]}, and count"
        )
    models = judged["models"]
    rows = [["model", "turn 1", "turn 2", "mean", "95%", "unreadable"]]
    for row in models:
        means = [_shown(row[name]["value"]) for name in ("turn_1", "turn_2", "mean")]
        ends = f"[{_shown(row['mean']['low'])}, {_shown(row['mean']['high'])}]"
        rows.append([row["model"], *means, ends, str(row["unreadable"])])
    names = list(models[0]["categories"])
    by_category = [[row["model"], *(_shown(row["categories"][name]["value"]) for name in names)] for row in models]
    return "\n".join([*lines, *columns(rows), *columns([["model", *names], *by_category])])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Score models by MT-Bench's judgments.")
    parser.add_argument("--judgments", required=True, type=Path, help="JSON lines of one or more models")
    parser.add_argument("--questions", required=True, type=Path, help="the benchmark's own question.jsonl")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    questions = read_questions(MT_BENCH, arguments.questions)
    tables = report(*read_scores(arguments.judgments, questions), questions)
    print(json.dumps(tables, indent=2, ensure_ascii=False) if arguments.json else "\n\n".join(map(table, tables)))


if __name__ == "__main__":
    command(main)
