"""Arena-Hard scores from a judge's verdicts: `python -m evaluation.arena --judgments FILE...`.

The files are those of arena-hard-auto's gen_judgment.py, its published ones, and evaluation/annotate.py's, of v0.1
({question_id, model, judge, games}) or v2.0 ({uid, category, ...}). Each question has two games {score: "A>>B" ...
"B>>A"}: in the first, A is the baseline's answer, in the second the model's. A tie is half a win; a verdict with >>
counts three times. In v0.1 an unreadable verdict removes its game, in v2.0 both games of the question.

All models play against the baseline only. So the maximum likelihood of Bradley-Terry has a closed form: the win rate is
the share of battles won, and the rating is 1000 + 400 log10(share / (1 - share)), with the baseline at 1000. A share of
0 or 1 has an infinite rating, null in JSON.

The interval is the benchmark's, from 100 resamples of single verdicts, where a >> is three verdicts:

- v0.1: the 2.5th and 97.5th percentile of the ratings, over resamples of all models' verdicts together. This is what
  `show_result.py` shows without style control; the same files in the same order give the same resamples.
- v2.0: the 5th and 95th percentile of the win rate, over resamples of each model by itself, as in `show_result.py`
  without --control-features. The tool sets no seed and shows the resamples' mean, which scatters around our score.

The two verdicts on a question are correlated, so this interval is too narrow; "over_questions" resamples questions.

Not built: style control, which v2.0's headline has. It adjusts every model to the average style of the models in the
table, so that a number depends on the other models. Judges aren't pooled either; each has its own table. So no number
of v2.0 is called the benchmark's own.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.answers import ARENA_HARD, read_questions
from evaluation.statistics import bootstrap, columns, shortened
from stages.files import UserError, command, read_numbered_jsonl

ROUNDS = 100
SEED = 42
"""Both are the benchmark's."""

_PLACES = ("first", "second")
"""The place at which the model's answer was shown."""
_STRONG = 3
_VERDICTS = {
    "A>>B": [1.0] * _STRONG,
    "A>B": [1.0],
    "A=B": [0.5],
    "B>A": [0.0],
    "B>>A": [0.0] * _STRONG,
}


@dataclass(frozen=True)
class Edition:
    """The fixed parts of a version of the benchmark, and how its tool counts."""

    name: str
    id: str
    """The key that holds a question's id."""
    judges: tuple[str, ...]
    baselines: dict[str, str]
    """By category. v0.1 has a single category, ""."""
    questions: dict[str, int]
    verdicts: dict[str, list[float]]
    """A's results by verdict: one for each time that the verdict counts. Any other text is unreadable."""
    both: bool
    """Whether an unreadable verdict removes the question's other game too."""
    ratings: bool
    """Whether models are resampled together and percentiles are of ratings."""
    tail: float
    """Percent of the resamples below the interval, and above it."""


V1 = Edition(
    "v0.1",
    id="question_id",
    judges=("gpt-4-1106-preview",),
    baselines={"": "gpt-4-0314"},
    questions={"": 500},
    verdicts=_VERDICTS,
    both=False,
    ratings=True,
    tail=2.5,
)
V2 = Edition(
    "v2.0",
    id="uid",
    judges=("gpt-4.1", "gemini-2.5"),
    baselines=dict.fromkeys(("hard_prompt", "coding", "math"), "o3-mini-2025-01-31")
    | {"creative_writing": "gemini-2.0-flash-001"},
    questions={"hard_prompt": 500, "creative_writing": 250},
    # Only v2.0 also reads a verdict from right to left: B<<A is A>>B.
    verdicts=_VERDICTS | {text[::-1].translate(str.maketrans("<>", "><")): wins for text, wins in _VERDICTS.items()},
    both=True,
    ratings=False,
    tail=5.0,
)


@dataclass(frozen=True)
class Judgment:
    """Both games of one question."""

    question: str
    model: str
    verdicts: tuple[str | None, str | None]
    """With the baseline's answer as A, and with the model's as A; None if unreadable."""

    def battles(self, edition: Edition, game: int) -> list[float]:
        """The model's result, 1, 1/2 or 0, in each battle of a game; empty if the game doesn't count."""
        verdict = self.verdicts[game]
        if verdict is None or (edition.both and None in self.verdicts):
            return []
        wins = edition.verdicts[verdict]
        return wins if game else [1 - win for win in wins]


@dataclass(frozen=True, order=True)
class Board:
    """What the scores in one table have in common."""

    edition: str
    category: str
    judge: str
    baseline: str


Models = dict[str, list[Judgment]]
"""A board's judgments by model."""


def read_judgments(paths: Sequence[Path], baseline: str | None = None) -> dict[Board, Models]:
    """The judgments of all files, in their order.

    The baseline is the row's, or else `baseline`, or else the benchmark's; public rows of v0.1 have none. Raises
    `UserError` naming file and line for a malformed row, a question that is judged twice, or another baseline.
    """
    boards: dict[Board, Models] = {}
    places: dict[tuple[Board, str, str], str] = {}
    rows = ((f"{path}, line {number}", row) for path in paths for number, row in read_numbered_jsonl(path))
    for where, row in rows:
        edition = V2 if "uid" in row else V1
        board, judgment = _judgment(row, edition, baseline, where)
        place = (board, judgment.model, judgment.question)
        if place in places:
            twice = f"{judgment.question!r} of {judgment.model} was judged by {board.judge} before ({places[place]})"
            raise UserError(f"{where}: {twice}; keep one of the two")
        places[place] = where
        boards.setdefault(board, {}).setdefault(judgment.model, []).append(judgment)
    if not boards:
        raise UserError(f"{', '.join(map(str, paths))}: no judgments; name files of the folder model_judgment")
    return boards


def _judgment(row: dict[str, Any], edition: Edition, given: str | None, where: str) -> tuple[Board, Judgment]:
    def text(key: str) -> str:
        if not isinstance(row.get(key), str) or not row[key]:
            raise UserError(f"{where}: {key!r} must be a text that is not empty; mend the row of Arena-Hard")
        return row[key]

    category = text("category") if edition is V2 else ""
    baseline = text("baseline") if "baseline" in row else given or edition.baselines.get(category)
    if baseline is None:
        raise UserError(f"{where}: neither the row nor the benchmark has a baseline for {category!r}; add --baseline")
    if given not in (None, baseline):
        raise UserError(f"{where}: the baseline is {baseline}, not {given}; leave --baseline out, or name another file")
    model = text("model")
    if model == baseline:
        raise UserError(f"{where}: {model} is the baseline itself; remove the row, or name the baseline by --baseline")
    games = row.get("games")
    if not isinstance(games, list) or len(games) != 2:
        raise UserError(f"{where}: 'games' must be a list of two, one an order; have the judge compare in both")
    verdicts = []
    for game in games:  # v2.0 has null for a game on which the judge's call failed
        if game is not None and (not isinstance(game, dict) or "score" not in game):
            raise UserError(f"{where}: a game holds no 'score'; add the verdict, or null where there is none")
        score = game["score"] if game else None
        verdicts.append(score if isinstance(score, str) and score in edition.verdicts else None)
    board = Board(edition.name, category, text("judge"), baseline)
    return board, Judgment(text(edition.id), model, (verdicts[0], verdicts[1]))


def require(boards: dict[Board, Models], questions: Path | None) -> None:
    """Raise `UserError` naming the questions on which a model has no judgment.

    Required are the questions of the benchmark's file, or without it those of any model in the same table.
    """
    asked = read_questions(ARENA_HARD, questions) if questions else []
    for board, models in boards.items():
        expected = [
            question.id for question in asked if board.edition == V1.name or question.category == board.category
        ]
        if not questions:
            expected = list(dict.fromkeys(judged.question for judgments in models.values() for judged in judgments))
        for model, judgments in models.items():
            judged = {judgment.question for judgment in judgments}
            if missing := [name for name in expected if name not in judged]:
                which = f"{len(missing)} of {len(expected)} questions: {shortened(missing)}"
                raise UserError(
                    f"{model}: {board.judge} did not judge {which}; have it judge them, or leave the model's file out"
                )
            if strange := judged - set(expected):
                which = shortened(judgment.question for judgment in judgments if judgment.question in strange)
                raise UserError(
                    f"{model}: {questions} does not have {len(strange)} judged questions: {which}; name theirs"
                )


def rating(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bradley-Terry ratings on Elo's scale, with the baseline at 1000; infinite for shares of 0 and 1."""
    with np.errstate(divide="ignore"):
        return 1000 + 400 * (np.log10(share) - np.log10(1 - share))


def win_rate(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """The win rate of such ratings against the baseline, in [0, 1]."""
    return 1 / (1 + 10 ** ((1000 - ratings) / 400))


def resampled(battles: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """Each model's share of wins in resamples of all battles [rounds, models]; NaN without a battle of the model."""
    owner = np.repeat(np.arange(len(battles)), [len(own) for own in battles])
    wins = np.concatenate(battles)
    draw = np.random.RandomState(seed)  # the generator that the benchmark's tool seeds
    rounds = []
    for _ in range(ROUNDS):
        chosen = draw.choice(len(wins), len(wins))
        counts = np.bincount(owner[chosen], minlength=len(battles))
        won = np.bincount(owner[chosen], wins[chosen], len(battles))
        rounds.append(np.divide(won, counts, out=np.full(len(battles), np.nan), where=counts > 0))
    return np.stack(rounds)


def interval(shares: NDArray[np.float64], edition: Edition) -> tuple[list[float], list[float]]:
    """The low and high ends of the win rate, and of the rating, from a model's shares in the resamples."""
    shares = shares[~np.isnan(shares)]
    values = rating(shares) if edition.ratings else shares
    # An infinite rating can't be interpolated.
    method = "linear" if np.isfinite(values).all() else "nearest"
    ends = np.percentile(values, [edition.tail, 100 - edition.tail], method=method)  # type: ignore[call-overload]
    rates = win_rate(ends) if edition.ratings else ends
    return rates.tolist(), (ends if edition.ratings else rating(ends)).tolist()


def score_models(board: Board, models: Models, seed: int = SEED) -> list[dict[str, Any]]:
    """A row for each model, the best first. Raises `UserError` for a model without a readable verdict."""
    edition = _edition(board)
    battles = {
        model: np.array([win for judgment in judgments for game in (0, 1) for win in judgment.battles(edition, game)])
        for model, judgments in models.items()
    }
    if silent := [model for model, own in battles.items() if not len(own)]:
        raise UserError(f"{shortened(silent)}: no verdict of {board.judge} counts; leave the file out, or judge again")
    together = list(battles.values())
    draws = resampled(together, seed).T if edition.ratings else [resampled([own], seed)[:, 0] for own in together]
    rows = [
        _row(model, models[model], edition, own, shares)
        for (model, own), shares in zip(battles.items(), draws, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["score"]["value"])


def _row(
    model: str, judgments: list[Judgment], edition: Edition, own: NDArray[np.float64], shares: NDArray[np.float64]
) -> dict[str, Any]:
    share = own.mean(keepdims=True)
    rates, ratings = interval(shares, edition)
    questions = [[win for game in (0, 1) for win in judged.battles(edition, game)] for judged in judgments]
    by_question = bootstrap(questions)
    orders = [[win for judgment in judgments for win in judgment.battles(edition, game)] for game in (0, 1)]
    return {
        "model": model,
        "score": _ends([float(share[0]), *rates], lambda value: 100 * value),
        "over_questions": {end: round(100 * by_question[end], 2) for end in ("low", "high")},
        "rating": _ends([float(rating(share)[0]), *ratings], lambda value: value if np.isfinite(value) else None),
        "by_place": {
            place: 100 * float(np.mean(wins)) if wins else None
            for place, wins in zip(reversed(_PLACES), orders, strict=True)
        },
        "questions": len(judgments),
        "battles": len(own),
        "unreadable": sum(verdict is None for judgment in judgments for verdict in judgment.verdicts),
    }


def _ends(values: Sequence[float], plain: Callable[[float], float | None]) -> dict[str, float | None]:
    return dict(zip(("value", "low", "high"), map(plain, values), strict=True))


def _edition(board: Board) -> Edition:
    return V1 if board.edition == V1.name else V2


def differences(board: Board, models: Models) -> list[str]:
    """The differences from the benchmark's own setting; empty if there are none."""
    edition = _edition(board)
    count = len(next(iter(models.values())))
    wanted, baseline = edition.questions.get(board.category), edition.baselines.get(board.category)
    differs = []
    if board.judge not in edition.judges:
        differs.append(f"the judge is {board.judge}, not {' or '.join(edition.judges)}")
    if board.baseline != baseline:
        differs.append(f"the baseline is {board.baseline}, not {baseline or 'one of the benchmark'}")
    if count != wanted:
        differs.append(f"{count} questions, not {wanted or 'a category of the benchmark'}")
    if edition is V2:
        differs.append("its published tables have style control, or several judges")
    return differs


def report(boards: dict[Board, Models], seed: int = SEED) -> list[dict[str, Any]]:
    """A table for each board: its judge, whether the scores are the benchmark's own, and the models."""
    tables = []
    for board, models in sorted(boards.items(), key=lambda item: item[0]):
        differs = differences(board, models)
        tables.append(
            {
                "benchmark": f"arena-hard-{board.edition}",
                "category": board.category or None,
                "judge": board.judge,
                "baseline": board.baseline,
                "style_control": False,
                "official": not differs,
                "differs": differs,
                "interval_percent": 100 - 2 * _edition(board).tail,
                "models": score_models(board, models, seed),
            }
        )
    return tables


def table(board: dict[str, Any]) -> str:
    """One of the tables as text."""
    name = board["benchmark"] + (f", {board['category']}" if board["category"] else "")
    lines = [f"{name}, without style control: judged by {board['judge']}, against {board['baseline']} (50.0)"]
    if not board["official"]:
        lines.append(f"not the benchmark's number: {'; '.join(board['differs'])}")
    heads = ["score", f"{board['interval_percent']:.0f}% CI", "over questions", "shown first", "second"]
    rows = [["model", *heads, "questions", "unreadable"]]
    for row in board["models"]:
        score, interval_ends = row["score"], row["over_questions"]
        ends = f"({score['low'] - score['value']:+.1f}, {score['high'] - score['value']:+.1f})"
        by_place = [row["by_place"][place] for place in _PLACES]
        shown = ["-" if value is None else f"{value:.1f}" for value in by_place]
        numbers = [f"{score['value']:.1f}", ends, f"[{interval_ends['low']:.1f}, {interval_ends['high']:.1f}]", *shown]
        rows.append([row["model"], *numbers, str(row["questions"]), str(row["unreadable"])])
    return "\n".join([*lines, *columns(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Score models by Arena-Hard's judgments.")
    parser.add_argument("--judgments", required=True, nargs="+", type=Path, help="JSON lines of one or more models")
    parser.add_argument("--baseline", help="for rows without a baseline; default: the benchmark's, gpt-4-0314 in v0.1")
    parser.add_argument("--questions", type=Path, help="the benchmark's own file; a judged category must be complete")
    parser.add_argument(
        "--seed", type=int, default=SEED, help=f"seed of the resamples; default: the benchmark's, {SEED}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    boards = read_judgments(arguments.judgments, arguments.baseline)
    require(boards, arguments.questions)
    tables = report(boards, arguments.seed)
    print(json.dumps(tables, indent=2, ensure_ascii=False) if arguments.json else "\n\n".join(map(table, tables)))


if __name__ == "__main__":
    command(main)
