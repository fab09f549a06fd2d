"""Arena-Hard scores from a judge's verdicts: `python -m evaluation.arena --judgments FILE...`.

The files are arena-hard-auto's or evaluation/annotate.py's, of v0.1 ({question_id, model, judge, games}) or v2.0 ({uid,
category, ...}). Each question has two games {score: "A>>B" ... "B>>A"}: in the first, A is the baseline's answer, in
the second the model's. A tie is half a win; a verdict with >> counts three times. In v0.1 an unreadable verdict removes
its game, in v2.0 both games of the question.

All models play against the baseline only. So the maximum likelihood of Bradley-Terry has a closed form: the win rate is
the share of battles won, and the rating is 1000 + 400 log10(share / (1 - share)), with the baseline at 1000. A share of
0 or 1 has an infinite rating, null in JSON.

The interval is that of the benchmark's `show_result.py` without style control, from 100 resamples of single verdicts,
where a >> is three: in v0.1 the 2.5th and 97.5th percentile of the ratings, over resamples of all models' verdicts
together (the same files in the same order give the same resamples); in v2.0 the 5th and 95th percentile of the win
rate, over resamples of each model by itself (the tool sets no seed, and shows the resamples' mean, not our score).

Two verdicts on a question are correlated, so [low, high] is too narrow; "questions low" and "high" resample questions.
There is no style control, which would make a number depend on the other models of the table, and judges aren't pooled;
v2.0's headline has both. So no number of v2.0 is called the benchmark's own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks import Record, once, print_tables, read_rows, require, text, value
from evaluation.statistics import bootstrap, shortened
from stages.files import UserError, command

Array = NDArray[np.float64]

ROUNDS, SEED = 100, 42
"""Both are the benchmark's."""

V1, V2 = "v0.1", "v2.0"
JUDGES = {V1: ["gpt-4-1106-preview"], V2: ["gpt-4.1", "gemini-2.5"]}
SETTINGS = {(V1, ""): ("gpt-4-0314", 500), (V2, "creative_writing"): ("gemini-2.0-flash-001", 250)} | {
    (V2, category): ("o3-mini-2025-01-31", 500 if category == "hard_prompt" else None)
    for category in ("hard_prompt", "coding", "math")
}
"""The baseline and the number of questions, by version and category; v0.1 has a single category, ""."""
TAIL = {V1: 2.5, V2: 5.0}
"""Percent of the resamples below the interval, and above it."""
VERDICTS = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
"""A's results by verdict: one for each time that the verdict counts. Any other text is unreadable."""
REVERSED = {"B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A"}
"""Verdicts that only v2.0 reads."""


@dataclass(frozen=True)
class Judgment:
    """Both games of one question."""

    question: str
    battles: tuple[list[float], list[float]]
    """The model's results, 1, 1/2 or 0, with its answer as B, and as A; empty if the game doesn't count."""
    unreadable: int


@dataclass(frozen=True, order=True)
class Board:
    """What the scores in one table have in common."""

    version: str
    category: str
    judge: str
    baseline: str


Models = dict[str, list[Judgment]]
"""A board's judgments by model."""


def read_judgments(paths: Sequence[Path], baseline: str | None = None) -> dict[Board, Models]:
    """The judgments of all files, in their order.

    The baseline is the row's, or else `baseline`, or else the benchmark's; public rows of v0.1 have none. Raises
    `UserError` naming file and line for a malformed row, a question that is judged twice, or another baseline; and
    naming the questions of a table on which a model has no judgment.
    """
    boards: dict[Board, Models] = {}
    places: dict[Any, str] = {}
    for where, row in (entry for path in paths for entry in read_rows(path)):
        version = V2 if "uid" in row else V1
        category, model = text(row, where, "category") if version == V2 else "", text(row, where, "model")
        own = baseline or SETTINGS.get((version, category), ("",))[0]
        own = text(row, where, "baseline") if "baseline" in row else own
        if not own or baseline not in (None, own) or model == own:
            raise UserError(f"{where}: the baseline of {model} is {own or 'unknown'}; name the rows' own by --baseline")
        board, judgment = Board(version, category, text(row, where, "judge"), own), _judgment(row, version, where)
        once(places, (board, model, judgment.question), judgment.question, where)
        boards.setdefault(board, {}).setdefault(model, []).append(judgment)
    if not boards:
        raise UserError(f"{', '.join(map(str, paths))}: no judgments; name files of the folder model_judgment")
    for board, models in boards.items():
        judged = {model: [judgment.question for judgment in own] for model, own in models.items()}
        names = list(dict.fromkeys(name for own in judged.values() for name in own))
        for model, questions in judged.items():
            require(names, questions, f"{model}: no judgment by {board.judge} on")
    return boards


def _judgment(row: Record, version: str, where: str) -> Judgment:
    games = value(row, where, "games")
    if not isinstance(games, list) or len(games) != 2:
        raise UserError(f"{where}: games must be a list of two, one an order; have the judge compare in both")
    # v2.0 has null for a game on which the judge's call failed.
    scores = [None if game is None else value(row, where, "games", i, "score") for i, game in enumerate(games)]
    scores = [REVERSED.get(str(score), score) if version == V2 else score for score in scores]
    wins = [VERDICTS.get(str(score)) for score in scores]
    unreadable = wins.count(None)
    as_b, as_a = ([] if own is None or (version == V2 and unreadable) else own for own in wins)
    name = text(row, where, "uid" if version == V2 else "question_id")
    return Judgment(name, ([1 - win for win in as_b], as_a), unreadable)


def rating(share: Array) -> Array:
    """Bradley-Terry ratings on Elo's scale, with the baseline at 1000; infinite for shares of 0 and 1."""
    with np.errstate(divide="ignore"):
        return 1000 + 400 * (np.log10(share) - np.log10(1 - share))


def resampled(battles: Sequence[Array]) -> Array:
    """Each model's share of wins in resamples of all battles [rounds, models]; NaN without a battle of the model."""
    owner, wins = np.repeat(np.arange(len(battles)), [len(own) for own in battles]), np.concatenate(battles)
    draw = np.random.RandomState(SEED)  # the generator that the benchmark's tool seeds
    rounds = []
    for _ in range(ROUNDS):
        chosen = draw.choice(len(wins), len(wins))
        counts = np.bincount(owner[chosen], minlength=len(battles))
        won = np.bincount(owner[chosen], wins[chosen], len(battles))
        rounds.append(np.divide(won, counts, out=np.full(len(battles), np.nan), where=counts > 0))
    return np.stack(rounds)


def interval(shares: Array, version: str) -> tuple[Array, Array]:
    """The low and high ends of the win rate, and of the rating, from a model's shares in the resamples."""
    shares = shares[~np.isnan(shares)]
    values = rating(shares) if version == V1 else shares
    # An infinite rating can't be interpolated.
    method = "linear" if np.isfinite(values).all() else "nearest"
    ends = np.percentile(values, [TAIL[version], 100 - TAIL[version]], method=method)  # type: ignore[call-overload]
    return (1 / (1 + 10 ** ((1000 - ends) / 400)), ends) if version == V1 else (ends, rating(ends))


def score_models(board: Board, models: Models) -> list[Record]:
    """A row for each model, the best first. Raises `UserError` for a model without a readable verdict."""
    by_question = {model: [[*j.battles[0], *j.battles[1]] for j in judgments] for model, judgments in models.items()}
    battles = [np.array([win for wins in own for win in wins]) for own in by_question.values()]
    if silent := [model for model, own in zip(models, battles, strict=True) if not len(own)]:
        raise UserError(f"{shortened(silent)}: no verdict of {board.judge} counts; leave the file out, or judge again")
    draws = resampled(battles).T if board.version == V1 else [resampled([own])[:, 0] for own in battles]
    rows: list[Record] = []
    for (model, judgments), own, shares in zip(models.items(), battles, draws, strict=True):
        rates, ratings = interval(shares, board.version)
        score, over_questions = own.mean(keepdims=True), bootstrap(by_question[model])
        second, first = ([win for judged in judgments for win in judged.battles[game]] for game in (0, 1))
        numbers = np.array([*(100 * score), *(100 * rates), *rating(score), *ratings]).tolist()
        names = ("score", "low", "high", "rating", "rating_low", "rating_high")
        finite = [number if np.isfinite(number) else None for number in numbers]
        questions = {f"questions_{end}": round(100 * over_questions[end], 2) for end in ("low", "high")}
        places = {
            f"shown_{name}": 100 * float(np.mean(wins)) if wins else None
            for name, wins in (("first", first), ("second", second))
        }
        unreadable = sum(judged.unreadable for judged in judgments)
        counts = {"questions": len(judgments), "battles": len(own), "unreadable": unreadable}
        rows.append({"model": model} | dict(zip(names, finite, strict=True)) | questions | places | counts)
    return sorted(rows, key=lambda row: -row["score"])


def differences(board: Board, count: int) -> list[str]:
    """The differences from the benchmark's own setting; `count` is the number of questions."""
    judges = JUDGES[board.version]
    baseline, wanted = SETTINGS.get((board.version, board.category), (None, None))
    checks = {
        f"the judge is {board.judge}, not {' or '.join(judges)}": board.judge in judges,
        f"the baseline is {board.baseline}, not {baseline or 'one of the benchmark'}": board.baseline == baseline,
        f"{count} questions, not {wanted or 'a category of the benchmark'}": count == wanted,
        "its published tables have style control, or several judges": board.version == V1,
    }
    return [difference for difference, same in checks.items() if not same]


def report(boards: dict[Board, Models]) -> list[Record]:
    """A table for each board; its notes say how it differs from the benchmark's own."""
    tables = []
    for board, models in sorted(boards.items(), key=lambda item: item[0]):
        name = f"arena-hard-{board.version}" + (f", {board.category}" if board.category else "")
        title = f"{name}, without style control: judged by {board.judge}, against {board.baseline} (50.0)"
        differs = differences(board, len(next(iter(models.values()))))
        notes = [f"not the benchmark's number: {'; '.join(differs)}"] if differs else []
        tables.append({"title": title, **vars(board), "notes": notes, "rows": score_models(board, models)})
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description="Score models by Arena-Hard's judgments.")
    parser.add_argument("--judgments", required=True, nargs="+", type=Path, help="JSON lines of one or more models")
    parser.add_argument("--baseline", help="for rows without a baseline; default: the benchmark's, gpt-4-0314 in v0.1")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args()
    print_tables(report(read_judgments(given.judgments, given.baseline)), 1, given.json)


if __name__ == "__main__":
    command(main)
