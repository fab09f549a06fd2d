"""Which of two responses is better? A judge compares them in both orders, or two mean scores decide.

The method scores each response alone; benchmarks, and people who label data, compare two. So a judge is measured, and
used as an annotator, by either protocol. With "pairwise" the judge sees both responses, in both orders; with "scores"
the judge scores each alone, as in the loop, and the means are compared.
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

    A duel of equal texts is a tie and has no request.
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
    """A judge's decision of a duel."""

    first: Fraction | None
    """The first response's share of wins, in [0, 1]; 1/2 is a tie; None if no verdict could be read."""
    orders: tuple[Fraction | None, Fraction | None] | None = None
    """The same share with the first response shown first, and shown second; None if responses are scored alone."""

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
    """The decision of a duel from its records.

    Scores: the higher mean wins; without `minimum_valid` scores on both sides there is no decision. Pairwise: the first
    response's share of wins in each order, a tie counting half, averaged over the orders with a verdict.
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
    shares = [share for share in orders if share is not None]
    return Decision(sum(shares, Fraction(0)) / len(shares) if shares else None, orders)


def _share(rows: Sequence[Record], place: str) -> Fraction | None:
    """The share of one order's comparisons that the response at `place` wins; None without any verdict."""
    won = [
        Fraction(1, 2) if row["winner"] == "tie" else Fraction(row["winner"] == place) for row in rows if row["winner"]
    ]
    return sum(won, Fraction(0)) / len(won) if won else None
