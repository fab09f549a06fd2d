"""MT-Bench scores from a judge's ratings: `python -m evaluation.mtbench --judgments FILE --questions FILE`.

The judgments are a file by FastChat's gen_judgment.py (gpt-4_single.jsonl) or by evaluation/annotate.py: {question_id,
model, judge, score, turn}, of one or more models, with both turns of all questions. Means are over the readable scores
(-1 and null are not), as in FastChat's show_result.py. Scores are from 1 to 10, or have another "scale".
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks import MT_BENCH, Question, caveats, need, print_tables, read_questions
from evaluation.statistics import bootstrap
from stages.command import UserError, arguments, command
from stages.records import Record
from stages.rows import NAME, NUMBER, RATING, Kind, read_rows

JUDGE, QUESTIONS, SCALE = "gpt-4", 80, [1, 10]  # the benchmark's own
ENDS = Kind("a list of two numbers", lambda ends: type(ends) is list and len(ends) == 2 and all(map(NUMBER.fits, ends)))

Scores = dict[str, float | None]  # by question and turn, as "81, turn 1"; None for an unreadable score


def read_scores(path: Path, questions: Sequence[Question]) -> tuple[dict[str, dict[str, Scores]], list[float]]:
    """The scores by judge and model, and their scale."""
    wanted = [f"{question.id}, turn {turn}" for question in questions for turn in (1, 2)]
    by_judge: dict[str, dict[str, Scores]] = {}
    scales: list[list[float]] = []
    for row in read_rows(path):
        judge = row.content.get("judge")
        place = ("judge", 0) if isinstance(judge, list) else ("judge",)  # FastChat's has the prompt
        judge, model = (str(row.value(*keys, kind=NAME)) for keys in (place, ("model",)))
        part = f"{row.value('question_id')}, turn {row.value('turn')}"
        scores = by_judge.setdefault(judge, {}).setdefault(model, {})
        if part not in wanted or part in scores:
            fault = "comes twice; keep one row" if part in scores else "is not in --questions; name the file judged"
            raise UserError(f"{row.where}: question {part}, of {model} {fault}")
        score = row.value("score", kind=RATING)
        scores[part] = None if score == -1 else score
        scales.append(row.value("scale", kind=ENDS) if "scale" in row.content else [*SCALE])
        low, high = scales[-1]
        if "scale" in row.content and scores[part] is not None and not low <= score <= high:
            raise UserError(f"{row.where}: score is {score!r}; it must lie in {scales[-1]}, or be null if unreadable")
    if not scales or any(scale != scales[0] for scale in scales):
        raise UserError(f"{path}: {'several scales; give each a file' if scales else 'no judgments'}")
    for judge, models in by_judge.items():
        for model, scores in models.items():
            need(wanted, scores, f"{path}: {judge} did not judge {model} on")
    return by_judge, scales[0]


def score_model(scores: Scores, questions: Sequence[Question]) -> Record:
    """Means by turn, of both turns, and by category, None without a readable score; the interval is over questions."""
    given = [[scores[f"{question.id}, turn {turn}"] for turn in (1, 2)] for question in questions]
    table, categories = np.array(given, dtype=float), np.array([question.category for question in questions])

    def mean(values: NDArray[np.float64]) -> float | None:  # NaN is an unreadable score
        return None if np.isnan(values).all() else float(np.nanmean(values))

    interval = bootstrap([row[~np.isnan(row)] for row in table])
    row: Record = {"turn_1": mean(table[:, 0]), "turn_2": mean(table[:, 1]), "mean": mean(table)}
    row |= {"low": interval["low"], "high": interval["high"], "unreadable": int(np.isnan(table).sum())}
    own = {name: mean(table[categories == name]) for name in dict.fromkeys(categories.tolist())}
    if taken := [name for name in own if name.replace(" ", "_") in {"model", *row}]:
        raise UserError(f"--questions: category {taken[0]!r} has the name of a column; give it another")
    return row | own


def report(by_judge: dict[str, dict[str, Scores]], scale: list[float], questions: Sequence[Question]) -> list[Record]:
    """A table for each judge, the best model first; its notes say how it differs from the benchmark's own."""
    tables, (low, high) = [], scale
    for judge, models in sorted(by_judge.items()):
        notes = caveats({
            f"the judge is {judge}, not {JUDGE}": judge != JUDGE,
            f"{len(questions)} questions, not {QUESTIONS}": len(questions) != QUESTIONS,
            f"scores are from {low} to {high}, not {SCALE[0]} to {SCALE[1]}": scale != SCALE,
        })  # fmt: skip
        given = [score for scores in models.values() for score in scores.values() if score is not None]
        if outside := sum(not low <= score <= high for score in given):  # FastChat's rows have no scale
            notes.append(f"{outside} scores lie outside of {low} to {high}, and count")
        rows = [{"model": model} | score_model(scores, questions) for model, scores in models.items()]
        rows.sort(key=lambda row: row["mean"] or 0.0, reverse=True)
        title = f"{MT_BENCH}: {len(questions)} questions, judged by {judge}"
        tables.append({"title": title, "notes": notes, "rows": rows})
    return tables


def main() -> None:
    given = arguments(__doc__, "judgments", "questions")
    questions = read_questions(MT_BENCH, given.questions)
    print_tables(report(*read_scores(given.judgments, questions), questions), 2)


if __name__ == "__main__":
    command(main)
