"""Which of two responses is better? Asked of a model, in both orders, or decided by two mean scores.

The method scores each response alone. Benchmarks, and people who label data, compare two: so a judge is measured, and
used as an annotator, in either way. "pairwise" shows it both responses and is asked in both orders; "scores" has it
score each alone, as in the loop, and compares the means.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal

from judging.judge import read_score
from judging.rubric import judge_prompt, pairwise_prompt
from judging.scores import Row, mean_score
from judging.verdict import Failure, parse_winner
from model.chat import ChatFormat
from sampling.worker import Item, sampling_of
from stages.seeds import request_seed
from stages.settings import Judge, Protocol, Settings

Record = dict[str, Any]
Preference = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Duel:
    """Two responses to one prompt."""

    id: str
    prompt: str
    first: str
    second: str


def duel_items(
    duels: Iterable[Duel], protocol: Protocol, N: int, chat: ChatFormat, settings: Settings
) -> Iterator[Item]:
    """The requests that decide the duels: N judgments of each response, or N comparisons in each order.

    Equal texts of one duel are not asked about: they tie.
    """
    judge, sampling = settings.judge, sampling_of(settings.judge, chat)
    for duel in duels:
        if duel.first == duel.second:
            continue
        texts = (duel.first, duel.second)
        for shown in (0, 1):  # the response that is scored, or the one that is shown first
            if protocol == "scores":
                messages = partial(judge_prompt, duel.prompt, texts[shown], judge.prompt_style, judge.verdict_position)
            else:
                asked = (duel.prompt, texts[shown], texts[1 - shown])
                messages = partial(pairwise_prompt, *asked, judge.prompt_style, judge.verdict_position)
            for index in range(N):
                name = f"{duel.id}/{shown}/{protocol[0]}{index}"
                record = {"id": name, "duel": duel.id, "shown": shown, "index": index}
                seed = request_seed(settings.seed, 0, f"duel-{protocol}", name)
                yield Item(name, messages, sampling, seed, duel.id, record)


def read_duel(row: Row, protocol: Protocol, judge: Judge) -> Record:
    """A judgment's "score", or a comparison's "winner" by place; or the "failure" instead."""
    if protocol == "scores":
        return read_score(row, judge)
    winner = parse_winner(row["text"], row["finish_reason"], judge.verdict_position, "responses")
    if isinstance(winner, Failure):
        return {"winner": None, "failure": str(winner)}
    return {"winner": winner, "failure": None}


@dataclass(frozen=True)
class Decision:
    """What a judge makes of a duel."""

    first: Fraction | None
    """Share of the first response, in [0, 1]; 1/2 is a tie; None where no verdict could be read."""
    orders: tuple[Fraction | None, Fraction | None] | None = None
    """The same by order: as the duel has it, and the other way round. None of a judge who scores each alone."""

    @property
    def preference(self) -> Preference | None:
        if self.first is None:
            return None
        return "tie" if 2 * self.first == 1 else "first" if 2 * self.first > 1 else "second"

    @property
    def consistent(self) -> bool | None:
        """Whether both orders prefer the same response, or both neither; None where an order has no verdict."""
        if self.orders is None or None in self.orders:
            return None
        a, b = (Decision(share).preference for share in self.orders)
        return a == b


def decide(duel: Duel, rows: Sequence[Record], protocol: Protocol, minimum_valid: int = 1) -> Decision:
    """The decision of a duel by its records.

    Scores: the higher mean wins; without `minimum_valid` scores on both sides there is no decision. Pairwise: the mean
    over the orders that have a verdict of the mean share of the first response in it, a tie counting half.
    """
    if duel.first == duel.second:
        half = Fraction(1, 2)
        return Decision(half, (half, half) if protocol == "pairwise" else None)
    sides = [[row for row in rows if row["shown"] == shown] for shown in (0, 1)]
    if protocol == "scores":
        a, b = (mean_score(side, minimum_valid) for side in sides)
        if a is None or b is None:
            return Decision(None)
        return Decision(Fraction(1, 2) if a == b else Fraction(int(a > b)))
    orders = (_share(sides[0], "first"), _share(sides[1], "second"))
    known = [share for share in orders if share is not None]
    return Decision(sum(known, Fraction(0)) / len(known) if known else None, orders)


def _share(rows: Sequence[Record], place: str) -> Fraction | None:
    """How often the response at `place` wins one order's comparisons."""
    won = [
        Fraction(1, 2) if row["winner"] == "tie" else Fraction(row["winner"] == place) for row in rows if row["winner"]
    ]
    return sum(won, Fraction(0)) / len(won) if won else None
