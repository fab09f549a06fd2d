"""Which of two responses is better? By two protocols: mean "scores" decide, or a judge compares "pairwise".

The method scores each response alone; benchmarks, and people who label data, compare two, here in both orders.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from statistics import mean
from typing import Any, Literal, NamedTuple

from judging.judge import read_score
from judging.rubric import judge_prompt, pairwise_prompt
from judging.scores import Row, mean_score
from judging.verdict import Failure, parse_winner
from model.chat import ChatFormat
from sampling.worker import Item, Worker, sampling_of
from stages.files import read_shards
from stages.records import Prompt, Record
from stages.seeds import request_seed
from stages.settings import Judge, Protocol, Settings
from stages.stage import Job

Preference = Literal["first", "second", "tie"]
SHARES = {"first": Fraction(1), "second": Fraction(0), "tie": Fraction(1, 2), None: None}  # of a win, the first's


def prefer(first: Any, second: Any) -> Preference:
    """The position of the higher number."""
    return "tie" if first == second else "first" if first > second else "second"


class Duel(NamedTuple):
    id: str
    prompt: Prompt
    first: str
    second: str


def duel_items(
    duels: Iterable[Duel], protocol: Protocol, N: int, chat: ChatFormat, settings: Settings
) -> Iterator[Item]:
    """N judgments of each response, or N comparisons in each order; none of equal texts, which tie."""
    judge, sampling = settings.judge, sampling_of(settings.judge, chat)
    form = (judge.prompt_style, judge.verdict_position)
    for duel in (duel for duel in duels if duel.first != duel.second):
        for shown, texts in enumerate(((duel.first, duel.second), (duel.second, duel.first))):
            if protocol == "scores":
                messages = partial(judge_prompt, duel.prompt, texts[0], *form)
            else:
                messages = partial(pairwise_prompt, duel.prompt, *texts, *form)
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
    failed = isinstance(winner, Failure)
    return {"winner": None if failed else winner, "failure": str(winner) if failed else None}


def compare(worker: Worker, duels: Iterable[Duel], N: int, job: Job) -> list[Record]:
    """A model's comparisons of each duel, N in each order."""
    items = duel_items(duels, "pairwise", N, worker.chat, worker.settings)
    worker.run(job, items, partial(read_duel, protocol="pairwise", judge=worker.settings.judge))
    return list(read_shards(job.out))


class Decision(NamedTuple):  # of a duel, as the first response's share of wins in [0, 1]; None without a verdict
    first: Fraction | None
    orders: tuple[Fraction | None, Fraction | None] | None = None  # with it shown first, and second; None for scores

    @property
    def preference(self) -> Preference | None:
        return None if self.first is None else prefer(2 * self.first, 1)

    @property
    def consistent(self) -> bool | None:
        """Whether both orders prefer the same response, or both neither; None where an order has no verdict."""
        if self.orders is None or None in self.orders:
            return None
        return len({Decision(share).preference for share in self.orders}) == 1


def decide(duel: Duel, rows: Sequence[Record], protocol: Protocol) -> Decision:
    """The decision of a duel from its records: by the higher mean score, if both sides have one; or by the share of
    wins in each order, a tie counting half, averaged over the orders with a verdict.
    """
    if duel.first == duel.second:
        return Decision(SHARES["tie"])  # whatever was said in the orders
    sides = [[row for row in rows if row["shown"] == shown] for shown in (0, 1)]
    if protocol == "scores":
        a, b = (mean_score(side, 1) for side in sides)
        return Decision(None if a is None or b is None else SHARES[prefer(a, b)])
    first, second = (mean_share(SHARES[row["winner"]] for row in side) for side in sides)
    orders = (first, None if second is None else 1 - second)
    return Decision(mean_share(orders), orders)


def mean_share(shares: Iterable[Fraction | None]) -> Fraction | None:
    """The mean of shares, without missing ones; None if there are no others."""
    known = [share for share in shares if share is not None]
    return mean(known) if known else None
