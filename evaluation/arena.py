"""Arena-Hard scores from a judge's verdicts: `python -m evaluation.arena --judgments FILE...`.

Files are those of arena-hard-auto's gen_judgment.py, public ones and evaluation/annotate.py's, for v0.1 ({question_id,
model, judge, games}) or v2.0 ({uid, category, ...}): of each question two games {score: "A>>B" ... "B>>A"}, the first
with the baseline's answer as A, the second with the model's. A tie is half a win, a verdict with >> counts three times.
An unreadable verdict takes its game out in v0.1, and both games of the question in v2.0.

Everyone plays against the baseline alone. So the likelihood of Bradley-Terry is highest where each model's rate is its
share of what it could win, and needs no search: the rating is 1000 + 400 log10(share / (1 - share)), the baseline's is
1000. A model that wins all, or nothing, has none: infinite, null in JSON.

The interval is the benchmark's, from 100 resamples of single verdicts, where a >> is three of them:

- v0.1: the 2.5th and the 97.5th percentile of the ratings, over resamples of all models' verdicts together. It is what
  `show_result.py` shows without style control, and with the same files in the same order it is the same draw.
- v2.0: the 5th and the 95th percentile of the win rate, over each model's own resamples, as `show_result.py` does
  without --control-features. It draws without a seed and shows the resamples' mean, which scatters about our score.

As a question's verdicts go together, the interval is too narrow: the one beside it resamples questions.

Not built: style control, which the headline of v2.0 has. It takes every model to the average style of the table's
models, so that a number depends on who else is in it. And judges are not pooled: each has its own table. So nothing of
v2.0 is said to be the benchmark's own number.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.answers import ARENA_HARD, read_questions
from evaluation.matches import shortened
from evaluation.statistics import bootstrap, columns
from stages.files import UserError, command, read_numbered_jsonl

ROUNDS = 100
SEED = 42
"""Both the benchmark's."""

_PLACES = ("first", "second")
"""Where the model's answer was shown."""
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
    """What the benchmark fixes, and how its tool counts."""

    name: str
    id: str
    """The key of a question's id."""
    judges: tuple[str, ...]
    baselines: dict[str, str]
    """By category; in v0.1 there is one category, ""."""
    questions: dict[str, int]
    verdicts: dict[str, list[float]]
    """What a verdict is to A, as often as it counts; any other text is unreadable."""
    both: bool
    """An unreadable verdict takes the question's other game with it."""
    ratings: bool
    """Models are resampled together, and percentiles are those of the ratings."""
    tail: float
    """Percent below the interval, and above it."""


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
    # Only v2.0 reads a verdict from right to left as well: B<<A is A>>B.
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
    """With the baseline's answer as A, and with the model's; None where it is unreadable."""

    def battles(self, edition: Edition, game: int) -> list[float]:
        """What the model has of each battle that a game stands for: 1, 1/2 or 0; empty where it does not count."""
        verdict = self.verdicts[game]
        if verdict is None or (edition.both and None in self.verdicts):
            return []
        wins = edition.verdicts[verdict]
        return wins if game else [1 - win for win in wins]


@dataclass(frozen=True, order=True)
class Board:
    """Whose scores may stand in one table."""

    edition: str
    category: str
    judge: str
    baseline: str


Models = dict[str, list[Judgment]]
"""A board's judgments by model."""


def read_judgments(paths: Sequence[Path], baseline: str | None = None) -> dict[Board, Models]:
    """The judgments of all files, in their order.

    The baseline is the row's; rows of v0.1 have none in public files: then `baseline`, or the benchmark's. Raises
    `UserError` naming file and line for what is no such row, a question that is judged twice, or another baseline.
    """
    boards: dict[Board, Models] = {}
    places: dict[tuple[Board, str, str], str] = {}
    for where, row in _rows(paths):
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


def _rows(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        for number, row in read_numbered_jsonl(path):
            yield f"{path}, line {number}", row


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
        raise UserError(f"{where}: {model} is the baseline itself; remove the row, or say who is by --baseline")
    games = row.get("games")
    if not isinstance(games, list) or len(games) != 2:
        raise UserError(f"{where}: 'games' must be a list of two, one an order; have the judge compare in both")
    verdicts = []
    for game in games:  # where a call of the judge failed, v2.0 has null for the game
        if game is not None and (not isinstance(game, dict) or "score" not in game):
            raise UserError(f"{where}: a game holds no 'score'; add the verdict, or null where there is none")
        score = game["score"] if game else None
        verdicts.append(score if isinstance(score, str) and score in edition.verdicts else None)
    board = Board(edition.name, category, text("judge"), baseline)
    return board, Judgment(text(edition.id), model, (verdicts[0], verdicts[1]))


def require(boards: dict[Board, Models], questions: Path | None) -> None:
    """Raise `UserError` naming the questions of which a model has no judgment.

    They are the benchmark's, or without its file those that any model of the same table has.
    """
    asked = read_questions(ARENA_HARD, questions) if questions else []
    for board, models in boards.items():
        expected = [
            question.id for question in asked if board.edition == V1.name or question.category == board.category
        ]
        if not questions:
            expected = list(dict.fromkeys(judged.question for judgments in models.values() for judged in judgments))
        for model, judgments in models.items():
            found = {judgment.question for judgment in judgments}
            if missing := [name for name in expected if name not in found]:
                which = f"{len(missing)} of {len(expected)} questions: {shortened(missing)}"
                raise UserError(
                    f"{model}: {board.judge} did not judge {which}; have it judge them, or leave the model's file out"
                )
            if strange := found - set(expected):
                which = shortened(judgment.question for judgment in judgments if judgment.question in strange)
                raise UserError(
                    f"{model}: {questions} does not have {len(strange)} judged questions: {which}; name theirs"
                )


def rating(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bradley-Terry ratings on Elo's scale, the baseline at 1000; infinite for shares of 0 and 1."""
    with np.errstate(divide="ignore"):
        return 1000 + 400 * (np.log10(share) - np.log10(1 - share))


def win_rate(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often such a rating wins against the baseline, in [0, 1]."""
    return 1 / (1 + 10 ** ((1000 - ratings) / 400))


def resampled(battles: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """Shares [rounds, models] of each model's battles in resamples of them all; NaN where a round has none of its."""
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
    """The low and high end of the win rate, and of the rating, from a model's shares in the resamples that have any."""
    known = shares[~np.isnan(shares)]
    values = rating(known) if edition.ratings else known
    # Nothing lies half-way to an infinite rating.
    method = "linear" if np.isfinite(values).all() else "nearest"
    ends = np.percentile(values, [edition.tail, 100 - edition.tail], method=method)  # type: ignore[call-overload]
    rates = win_rate(ends) if edition.ratings else ends
    return rates.tolist(), (ends if edition.ratings else rating(ends)).tolist()


def score_models(board: Board, models: Models, seed: int = SEED) -> list[dict[str, Any]]:
    """A row a model, the best first. Raises `UserError` for a model of which no verdict could be read."""
    edition = _edition(board)
    battles = {
        model: np.array([win for judgment in judgments for game in (0, 1) for win in judgment.battles(edition, game)])
        for model, judgments in models.items()
    }
    if silent := [model for model, own in battles.items() if not len(own)]:
        raise UserError(f"{shortened(silent)}: no verdict of {board.judge} counts; leave the file out, or judge anew")
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
    """What keeps the scores from being the benchmark's own; empty where nothing does."""
    edition = _edition(board)
    count = len(next(iter(models.values())))
    wanted, baseline = edition.questions.get(board.category), edition.baselines.get(board.category)
    found = []
    if board.judge not in edition.judges:
        found.append(f"the judge is {board.judge}, not {' or '.join(edition.judges)}")
    if board.baseline != baseline:
        found.append(f"the baseline is {board.baseline}, not {baseline or 'one of the benchmark'}")
    if count != wanted:
        found.append(f"{count} questions, not {wanted or 'a category of the benchmark'}")
    if edition is V2:
        found.append("its published tables have style control, or several judges")
    return found


def report(boards: dict[Board, Models], seed: int = SEED) -> list[dict[str, Any]]:
    """A table a board: its judge, whether that makes the scores the benchmark's own, and the models."""
    found = []
    for board, models in sorted(boards.items(), key=lambda item: item[0]):
        differs = differences(board, models)
        found.append(
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
    return found


def table(found: dict[str, Any]) -> str:
    """A board in words."""
    what = found["benchmark"] + (f", {found['category']}" if found["category"] else "")
    lines = [f"{what}, without style control: judged by {found['judge']}, against {found['baseline']} (50.0)"]
    if not found["official"]:
        lines.append(f"not the benchmark's number: {'; '.join(found['differs'])}")
    heads = ["score", f"{found['interval_percent']:.0f}% CI", "over questions", "shown first", "second"]
    rows = [["model", *heads, "questions", "unreadable"]]
    for row in found["models"]:
        score, over = row["score"], row["over_questions"]
        ends = f"({score['low'] - score['value']:+.1f}, {score['high'] - score['value']:+.1f})"
        by_place = [row["by_place"][place] for place in _PLACES]
        shown = ["-" if value is None else f"{value:.1f}" for value in by_place]
        numbers = [f"{score['value']:.1f}", ends, f"[{over['low']:.1f}, {over['high']:.1f}]", *shown]
        rows.append([row["model"], *numbers, str(row["questions"]), str(row["unreadable"])])
    return "\n".join([*lines, *columns(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Score models by Arena-Hard's judgments.")
    parser.add_argument("--judgments", required=True, nargs="+", type=Path, help="JSON lines, of one model or several")
    parser.add_argument(
        "--baseline", help="who it is where rows do not say; default: the benchmark's, gpt-4-0314 in v0.1"
    )
    parser.add_argument(
        "--questions", type=Path, help="the benchmark's own file; of a category that is judged, all must be"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the resamples; default: the benchmark's, {SEED}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of words")
    arguments = parser.parse_args()
    boards = read_judgments(arguments.judgments, arguments.baseline)
    require(boards, arguments.questions)
    found = report(boards, arguments.seed)
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else "\n\n".join(map(table, found)))


if __name__ == "__main__":
    command(main)
