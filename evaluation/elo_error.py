"""What fewer comparisons cost in Elo: `python -m evaluation.elo_error runs/NAME/iter1 --opponents 2 4 6`.

Of an iteration whose judgments were all compared, printed is a JSON line for each number of opponents
(`metajudge.opponents`), and one for all comparisons. Two questions:

- How far is Elo from the truth? A meta-judge is simulated that follows true scores, with the iteration's taste for the
  first position and as often undecided, and compares all judgments anew. `elo_rms_error` is how far the scores from all
  its comparisons, or from a balanced share of them, are from the true ones, `spearman` the rank correlation,
  `pair_in_order` how often the pair is truly in its order. True scores are those of the iteration, drawn together until
  the simulated ones spread no wider than the iteration's do: those hold the noise of the comparisons besides the truth.
  A coin's are drawn together to nothing, and its pairs are in order half of the time.
- Do the real comparisons that were left out agree? `pair_in_order_by_the_rest` is how often the pair of a share is in
  the same order by the Elo scores of the other comparisons. A coin would give 1/2; the fewer are left out, the less
  they can tell.

Means over several draws; intervals are bootstrap percentiles over responses.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import bootstrap, spearman
from judging.contests import position_wins
from judging.elo import Battle, battle_matrix, elo, position_weights
from judging.pairs import read_battles
from judging.schedule import balanced_edges, schedule_seed
from stages.files import UserError, command, read_manifest

Battles = Mapping[str, Sequence[Battle]]
"""By response; judgments are numbered from 0."""
Elos = dict[str, NDArray[np.float64]]
DRAWS = 5


@dataclass(frozen=True)
class Measured:
    """An iteration whose judgments were all compared."""

    battles: Battles
    sizes: Mapping[str, int]
    """Judgments of each response."""
    penalty: float
    """`metajudge.elo_penalty`."""

    def elo(self, battles: Battles) -> Elos:
        """The Elo scores [judgments] of each response, by these battles."""
        wins = position_wins(battles)
        weights = position_weights(wins["first"], wins["second"])
        return {
            name: elo(battle_matrix(self.sizes[name], own, *weights), self.penalty)[0] for name, own in battles.items()
        }


def split(battles: Battles, sizes: Mapping[str, int], opponents: int, seed: int) -> tuple[Battles, Battles]:
    """The battles that `metajudge.opponents` asks for, and the others."""
    share: dict[str, list[Battle]] = {}
    rest: dict[str, list[Battle]] = {}
    for name, own in battles.items():
        edges = balanced_edges(sizes[name], opponents, random.Random(schedule_seed(seed, 0, name)))
        wanted = set(map(frozenset, edges))
        share[name] = [battle for battle in own if frozenset(battle[:2]) in wanted]
        rest[name] = [battle for battle in own if frozenset(battle[:2]) not in wanted]
    return share, rest


def simulated(battles: Battles, truth: Elos, taste: float, seed: int) -> dict[str, list[Battle]]:
    """The comparisons with a winner, decided anew: the first wins with probability sigmoid(eps_m - eps_n + taste)."""
    draw = np.random.default_rng(seed)
    return {
        name: [
            (m, n, "first" if draw.random() < _sigmoid(truth[name][m] - truth[name][n] + taste) else "second")
            for m, n, winner in own
            if winner in ("first", "second")
        ]
        for name, own in battles.items()
    }


def position_taste(battles: Battles, truth: Elos) -> float:
    """The log-odds for the first position that make `simulated` prefer it as often as the battles do."""
    gaps = np.array([truth[name][m] - truth[name][n] for name, own in battles.items() for m, n, w in own if _won(w)])
    wanted = np.mean([winner == "first" for own in battles.values() for *_, winner in own if _won(winner)])
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(gaps + middle).mean() < wanted else (low, middle)
    return (low + high) / 2


def true_scores(measured: Measured) -> tuple[Elos, float]:
    """Scores that a simulated iteration's would spread around as widely as the measured ones do, and the taste."""
    seen = measured.elo(measured.battles)

    def spread_beyond(shrink: float) -> float:
        truth = {name: shrink * eps for name, eps in seen.items()}
        taste = position_taste(measured.battles, truth)
        anew = [measured.elo(simulated(measured.battles, truth, taste, seed)) for seed in range(DRAWS)]
        return float(np.mean([rms(eps) for eps in anew])) - rms(seen)

    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if spread_beyond(middle) < 0 else (low, middle)
    truth = {name: low * eps for name, eps in seen.items()}
    return truth, position_taste(measured.battles, truth)


def measure(measured: Measured, truth: Elos, taste: float, opponents: int | None) -> dict[str, Any]:
    """The two answers for a number of opponents; None: all."""
    battles, sizes = measured.battles, measured.sizes
    found: dict[str, dict[str, list[float]]] = {
        key: {name: [] for name in battles} for key in ("square", "spearman", "order", "by_rest")
    }
    taken = 0
    for seed in range(DRAWS):
        anew = simulated(battles, truth, taste, seed)
        for name, eps in measured.elo(split(anew, sizes, opponents, seed)[0] if opponents else anew).items():
            found["square"][name] += list((eps - truth[name]) ** 2)
            rank = spearman(eps, truth[name])
            found["spearman"][name] += [] if rank is None else [rank]
            found["order"][name].append(_in_order(eps, truth[name]))
        if opponents:
            share, rest = split(battles, sizes, opponents, seed)
            taken += sum(map(len, share.values()))
            others = measured.elo(rest)
            for name, eps in measured.elo(share).items():
                if any(_won(w) for *_, w in share[name]) and any(_won(w) for *_, w in rest[name]):
                    found["by_rest"][name].append(_in_order(eps, others[name]))
    square = bootstrap(list(found["square"].values()))
    return {
        "opponents": opponents or "all",
        "comparisons": round(taken / DRAWS / sum(map(len, battles.values())), 4) if opponents else 1.0,
        "elo_rms": round(rms(measured.elo(battles)), 4),
        "true_rms": round(rms(truth), 4),
        "elo_rms_error": {key: round(square[key] ** 0.5, 4) for key in ("value", "low", "high")},
        "spearman": bootstrap(list(found["spearman"].values())),
        "pair_in_order": bootstrap(list(found["order"].values())),
        "pair_in_order_by_the_rest": bootstrap(list(found["by_rest"].values())) if opponents else None,
    }


def rms(scores: Elos) -> float:
    """How large scores are, root mean square."""
    return float(np.sqrt(np.mean(np.concatenate(list(scores.values())) ** 2)))


def _in_order(eps: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Whether the best judgment by `eps` is above the worst by `other` too; 1/2 where it has them equal."""
    gap = other[int(eps.argmax())] - other[int(eps.argmin())]
    return 0.5 if abs(gap) < 1e-9 else float(gap > 0)


def _won(winner: str | None) -> bool:
    return winner in ("first", "second")


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def read_complete(iteration: Path) -> Measured:
    """An iteration's battles, judgments numbered from 0.

    Raises `UserError` where the judgments of a response were not all compared, or no comparison has a winner.
    """
    battles: dict[str, list[Battle]] = {}
    sizes = {}
    for name, own in read_battles(iteration / "comparisons").items():
        place = {m: i for i, m in enumerate(sorted({m for m, *_ in own}))}
        sizes[name] = len(place)
        if len(own) != len(place) * (len(place) - 1):
            raise UserError(f"{iteration}: the judgments of {name} were not all compared; take a run of all")
        battles[name] = [(place[m], place[n], winner) for m, n, winner in own]
    if not any(_won(winner) for own in battles.values() for *_, winner in own):
        raise UserError(f"{iteration}: no comparison with a winner; take another iteration")
    pairs = read_manifest(iteration / "pairs")
    if pairs is None:
        raise UserError(f"{iteration}/pairs: not a finished stage; run iterate.py to its end first")
    return Measured(battles, sizes, pairs["elo_penalty"])


def main() -> None:
    parser = argparse.ArgumentParser(description="The Elo error of balanced shares of an iteration's comparisons.")
    parser.add_argument("iteration", type=Path, help="an iteration's folder whose judgments were all compared")
    parser.add_argument("--opponents", type=int, nargs="+", default=[2, 4, 6], help="even numbers")
    arguments = parser.parse_args()
    if odd := [count for count in arguments.opponents if count < 2 or count % 2]:
        raise UserError(f"--opponents {odd[0]}: it must be even and at least 2")
    measured = read_complete(arguments.iteration)
    truth, taste = true_scores(measured)
    for opponents in (*arguments.opponents, None):
        print(json.dumps(measure(measured, truth, taste, opponents)), flush=True)


if __name__ == "__main__":
    command(main)
