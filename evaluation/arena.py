"""Arena-Hard scores from a judge's verdicts: `python -m evaluation.arena --judgments FILE...`.

The files are arena-hard-auto's or evaluation/annotate.py's, of v0.1 or v2.0. A question has two games: in the first, A
is the baseline's answer, in the second the model's. A tie is half a win, and >> counts three times. v2.0's headline has
style control and several judges; both are left out, so no number of v2.0 is the benchmark's own.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks import caveats, need, print_tables
from evaluation.statistics import bootstrap
from stages.command import UserError, arguments, command
from stages.records import Record
from stages.rows import NAME, TEXT, Kind, read_rows

Array = NDArray[np.float64]

ROUNDS, SEED = 100, 42  # of `show_result.py`
V1, V2 = "v0.1", "v2.0"
JUDGES = {V1: ["gpt-4-1106-preview"], V2: ["gpt-4.1", "gemini-2.5"]}
BASELINE, QUESTIONS = "gpt-4-0314", 500  # of v0.1
VERDICTS = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
"""A's results by verdict: one for each time that the verdict counts. Any other text is unreadable."""
GAMES = Kind("a list of two, one an order", lambda value: type(value) is list and len(value) == 2)
REVERSED = {"B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A"}  # only v2.0 reads them


class Judgment(NamedTuple):
    """The model's results, 1, 1/2 or 0, by the place of its answer; the number of unreadable games."""

    second: list[float]
    first: list[float]
    unreadable: int


class Board(NamedTuple):  # what the scores in one table have in common
    version: str
    category: str
    judge: str
    baseline: str


Models = dict[str, dict[str, Judgment]]  # a board's judgments by model and question


def read_judgments(paths: Sequence[Path]) -> dict[Board, Models]:
    """The judgments of all files. Raises `UserError` for a malformed row, and a question judged twice or not at all."""
    boards: dict[Board, Models] = {}
    for row in (row for path in paths for row in read_rows(path)):
        names = ("judge", "model", "uid" if "uid" in row.content else "question_id")
        judge, model, question = (str(row.value(name, kind=NAME)) for name in names)
        # Today's tool gives v0.1's rows, too, a "uid" and a baseline; the category tells the edition.
        second = "uid" in row.content and row.value("category", kind=TEXT) != f"arena-hard-{V1}"
        named = second or "baseline" in row.content
        baseline = str(row.value("baseline", kind=NAME)) if named else BASELINE
        board = Board(V2, row.value("category"), judge, baseline) if second else Board(V1, "", judge, baseline)
        games, own = row.value("games", kind=GAMES), boards.setdefault(board, {}).setdefault(model, {})
        if question in own:
            raise UserError(f"{row.where}: {model} on question {question!r} comes twice; keep one row")
        # A null is a game of v2.0 on which the judge's call failed.
        scores = [str(row.value("games", i, "score")) if game is not None else "" for i, game in enumerate(games)]
        results = [VERDICTS.get(REVERSED.get(score, score) if second else score, []) for score in scores]
        unreadable = results.count([])
        if second and unreadable:  # in v0.1 the other game counts
            results = [[], []]
        own[question] = Judgment([1 - result for result in results[0]], results[1], unreadable)
    if not boards:
        raise UserError(f"{', '.join(map(str, paths))}: no judgments; name files of the folder model_judgment")
    for board, models in boards.items():
        questions = list(dict.fromkeys(chain.from_iterable(models.values())))
        for model, judged in models.items():
            need(questions, judged, f"{model}: no judgment by {board.judge} on")
    return boards


def resampled(battles: Sequence[Array]) -> Array:
    """Each model's share of wins in resamples of all battles [rounds, models]; NaN without a battle of the model."""
    owner, wins = np.repeat(np.arange(len(battles)), [len(own) for own in battles]), np.concatenate(battles)
    # The generator that the benchmark's tool seeds; a model without a battle in a round has 0 / 0.
    rounds = np.random.RandomState(SEED).choice(len(wins), (ROUNDS, len(wins)))
    with np.errstate(invalid="ignore"):
        won = [np.bincount(owner[drawn], wins[drawn], len(battles)) for drawn in rounds]
        return np.stack(won) / np.stack([np.bincount(owner[drawn], minlength=len(battles)) for drawn in rounds])


def interval(shares: Array, version: str) -> Array:
    """Low and high end of a model's win rate: percentiles of its `resampled` shares; in v0.1, of their ratings."""
    shares = shares[~np.isnan(shares)]
    if version == V2:
        return np.percentile(shares, [5, 95])
    with np.errstate(divide="ignore"):
        ratings = np.log(shares / (1 - shares))
    method = "linear" if np.isfinite(ratings).all() else "nearest"  # an infinite rating can't be interpolated
    return 1 / (1 + np.exp(-np.percentile(ratings, [2.5, 97.5], method=method)))  # type: ignore[call-overload]


def score_models(board: Board, models: Models) -> list[Record]:
    """A row for each model, the best first. Raises `UserError` for a model without a readable verdict.

    All play the baseline only, so Bradley-Terry's maximum likelihood has a closed form: the share of battles won. "low"
    and "high" are those of `show_result.py` without style control, in v0.1 from all models' verdicts together. It draws
    single verdicts, though two on a question are correlated: "questions low" and "high" draw questions.
    """
    by_question = {model: [[*j.second, *j.first] for j in own.values()] for model, own in models.items()}
    battles = {model: np.concatenate(own) for model, own in by_question.items()}
    if silent := [model for model, own in battles.items() if not len(own)]:
        raise UserError(f"{silent[0]}: no verdict of {board.judge} counts; leave the file out, or judge again")
    groups = [[*battles.values()]] if board.version == V1 else [[own] for own in battles.values()]
    draws = np.concatenate([resampled(group).T for group in groups])
    rows: list[Record] = []
    for (model, judgments), shares in zip(models.items(), draws, strict=True):
        low, high = (100 * interval(shares, board.version)).tolist()
        questions = bootstrap(by_question[model])
        row: Record = {"model": model, "score": float(100 * battles[model].mean()), "low": low, "high": high}
        row |= {f"questions_{end}": round(100 * questions[end], 2) for end in ("low", "high")}
        for place in ("first", "second"):
            wins = [win for judgment in judgments.values() for win in getattr(judgment, place)]
            row[f"shown_{place}"] = 100 * float(np.mean(wins)) if wins else None
        unreadable = sum(judgment.unreadable for judgment in judgments.values())
        rows.append(row | {"questions": len(judgments), "battles": len(battles[model]), "unreadable": unreadable})
    return sorted(rows, key=lambda row: -row["score"])


def report(boards: dict[Board, Models]) -> list[Record]:
    """A table for each board; its notes say how it differs from the benchmark's own."""
    tables = []
    for board, models in sorted(boards.items(), key=lambda item: item[0]):
        first, judges, count = board.version == V1, JUDGES[board.version], len(next(iter(models.values())))
        notes = caveats({
            f"the judge is {board.judge}, not {' or '.join(judges)}": board.judge not in judges,
            f"the baseline is {board.baseline}, not {BASELINE}": first and board.baseline != BASELINE,
            f"{count} questions, not {QUESTIONS}": first and count != QUESTIONS,
            "its published tables have style control, or several judges": not first,
        })  # fmt: skip
        name = f"arena-hard-{board.version}" + (f", {board.category}" if board.category else "")
        title = f"{name}, without style control: judged by {board.judge}, against {board.baseline} (50.0)"
        tables.append({"title": title, "notes": notes, "rows": score_models(board, models)})
    return tables


def main() -> None:
    given = arguments(__doc__, judgments={"required": True, "nargs": "+", "type": Path})
    print_tables(report(read_judgments(given.judgments)), 1)


if __name__ == "__main__":
    command(main)
