"""The Elo error from fewer comparisons: `python -m evaluation.elo_error runs/NAME/iter1 --opponents 2 4 6`.

The iteration must have compared all its judgments. The command prints a JSON line for each number of opponents
(`metajudge.opponents`), and one for all comparisons. They answer two questions:

- How far is Elo from the truth? A simulated meta-judge follows true scores, with the iteration's position bias and its
  share of undecided comparisons. `elo_rms_error` is the distance between the true scores and the Elo scores from all
  its comparisons, or from a balanced share of them; `spearman` is their rank correlation; `pair_in_order` is how often
  the best judgment by Elo is truly better than the worst. The iteration's own Elo scores hold noise besides the truth.
  So the true scores are these, shrunk until simulated comparisons reproduce their spread. The scores of a coin shrink
  to nothing, and its pairs are in order half of the time.
- Do the real comparisons that were left out agree? `pair_in_order_by_the_rest` is how often the pair of a share is in
  the same order by the Elo scores of the other comparisons. A coin gives 1/2. The fewer comparisons are left out, the
  noisier is this number.

Numbers are means over several draws; intervals are bootstrap percentiles over responses.
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
from judging.elo import Battle, battle_matrix, elo, position_weights
from judging.judge_pairs import position_wins
from judging.pairs import read_battles
from judging.schedule import balanced_edges, schedule_seed
from stages.files import UserError, command, read_manifest

Battles = Mapping[str, Sequence[Battle]]
"""By response; its judgments are numbered from 0."""
Elos = dict[str, NDArray[np.float64]]
"""By response: the scores [judgments]."""
DRAWS = 5


@dataclass(frozen=True)
class ComparedIteration:
    """An iteration whose judgments were all compared with each other."""

    battles: Battles
    sizes: Mapping[str, int]
    """Number of judgments of each response."""
    penalty: float
    """`metajudge.elo_penalty`."""

    def elo(self, battles: Battles) -> Elos:
        """The Elo scores from these battles."""
        wins = position_wins(battles)
        weights = position_weights(wins["first"], wins["second"])
        return {
            name: elo(battle_matrix(self.sizes[name], own, *weights), self.penalty)[0] for name, own in battles.items()
        }


def split(battles: Battles, sizes: Mapping[str, int], opponents: int, seed: int) -> tuple[Battles, Battles]:
    """The battles that `metajudge.opponents` keeps, and the rest."""
    share: dict[str, list[Battle]] = {}
    rest: dict[str, list[Battle]] = {}
    for name, own in battles.items():
        edges = balanced_edges(sizes[name], opponents, random.Random(schedule_seed(seed, 0, name)))
        kept = set(map(frozenset, edges))
        share[name] = [battle for battle in own if frozenset(battle[:2]) in kept]
        rest[name] = [battle for battle in own if frozenset(battle[:2]) not in kept]
    return share, rest


def simulated(battles: Battles, truth: Elos, bias: float, seed: int) -> dict[str, list[Battle]]:
    """The decided battles with new winners: the first wins with probability sigmoid(eps_m - eps_n + bias)."""
    draw = np.random.default_rng(seed)
    return {
        name: [
            (m, n, "first" if draw.random() < _sigmoid(truth[name][m] - truth[name][n] + bias) else "second")
            for m, n, winner in own
            if _decided(winner)
        ]
        for name, own in battles.items()
    }


def position_bias(battles: Battles, truth: Elos) -> float:
    """The log-odds with which `simulated` prefers the first position as often as the battles do, by bisection."""
    gaps = np.array(
        [truth[name][m] - truth[name][n] for name, own in battles.items() for m, n, w in own if _decided(w)]
    )
    first_wins = np.mean([winner == "first" for own in battles.values() for *_, winner in own if _decided(winner)])
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(gaps + middle).mean() < first_wins else (low, middle)
    return (low + high) / 2


def true_scores(iteration: ComparedIteration) -> tuple[Elos, float]:
    """The measured Elo scores, shrunk until simulated ones spread as widely as the measured ones; the position bias."""
    measured = iteration.elo(iteration.battles)

    def spread_beyond(shrink: float) -> float:
        truth = {name: shrink * eps for name, eps in measured.items()}
        bias = position_bias(iteration.battles, truth)
        draws = [iteration.elo(simulated(iteration.battles, truth, bias, seed)) for seed in range(DRAWS)]
        return float(np.mean([rms(eps) for eps in draws])) - rms(measured)

    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if spread_beyond(middle) < 0 else (low, middle)
    truth = {name: low * eps for name, eps in measured.items()}
    return truth, position_bias(iteration.battles, truth)


def measure(iteration: ComparedIteration, truth: Elos, bias: float, opponents: int | None) -> dict[str, Any]:
    """The two answers for a number of opponents; None: all."""
    battles, sizes = iteration.battles, iteration.sizes
    values: dict[str, dict[str, list[float]]] = {
        key: {name: [] for name in battles} for key in ("square", "spearman", "order", "by_rest")
    }
    taken = 0
    for seed in range(DRAWS):
        draw = simulated(battles, truth, bias, seed)
        for name, eps in iteration.elo(split(draw, sizes, opponents, seed)[0] if opponents else draw).items():
            values["square"][name] += list((eps - truth[name]) ** 2)
            rank = spearman(eps, truth[name])
            values["spearman"][name] += [] if rank is None else [rank]
            values["order"][name].append(_in_order(eps, truth[name]))
        if opponents:
            share, rest = split(battles, sizes, opponents, seed)
            taken += sum(map(len, share.values()))
            rest_elo = iteration.elo(rest)
            for name, eps in iteration.elo(share).items():
                if any(_decided(w) for *_, w in share[name]) and any(_decided(w) for *_, w in rest[name]):
                    values["by_rest"][name].append(_in_order(eps, rest_elo[name]))
    square = bootstrap(list(values["square"].values()))
    return {
        "opponents": opponents or "all",
        "comparisons": round(taken / DRAWS / sum(map(len, battles.values())), 4) if opponents else 1.0,
        "elo_rms": round(rms(iteration.elo(battles)), 4),
        "true_rms": round(rms(truth), 4),
        "elo_rms_error": {key: round(square[key] ** 0.5, 4) for key in ("value", "low", "high")},
        "spearman": bootstrap(list(values["spearman"].values())),
        "pair_in_order": bootstrap(list(values["order"].values())),
        "pair_in_order_by_the_rest": bootstrap(list(values["by_rest"].values())) if opponents else None,
    }


def rms(scores: Elos) -> float:
    """Root mean square of all scores."""
    return float(np.sqrt(np.mean(np.concatenate(list(scores.values())) ** 2)))


def _in_order(eps: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """1 if the best judgment by `eps` is above the worst by `reference` too, 1/2 if the two are equal there, or 0."""
    gap = reference[int(eps.argmax())] - reference[int(eps.argmin())]
    return 0.5 if abs(gap) < 1e-9 else float(gap > 0)


def _decided(winner: str | None) -> bool:
    return winner in ("first", "second")


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def read_complete(folder: Path) -> ComparedIteration:
    """The iteration in `folder`.

    Raises `UserError` where the judgments of a response were not all compared, or no comparison has a winner.
    """
    battles: dict[str, list[Battle]] = {}
    sizes = {}
    for name, own in read_battles(folder / "comparisons").items():
        place = {m: i for i, m in enumerate(sorted({m for m, *_ in own}))}
        sizes[name] = len(place)
        if len(own) != len(place) * (len(place) - 1):
            raise UserError(
                f"{folder}: the judgments of {name} were not all compared; name a run without metajudge.opponents"
            )
        battles[name] = [(place[m], place[n], winner) for m, n, winner in own]
    if not any(_decided(winner) for own in battles.values() for *_, winner in own):
        raise UserError(f"{folder}: no comparison with a winner; name another iteration")
    pairs = read_manifest(folder / "pairs")
    if pairs is None:
        raise UserError(f"{folder}/pairs: not a finished stage; run iterate.py to its end first")
    return ComparedIteration(battles, sizes, pairs["elo_penalty"])


def main() -> None:
    parser = argparse.ArgumentParser(description="The Elo error from balanced shares of an iteration's comparisons.")
    parser.add_argument("iteration", type=Path, help="folder of an iteration that compared all its judgments")
    parser.add_argument("--opponents", type=int, nargs="+", default=[2, 4, 6], help="even numbers")
    arguments = parser.parse_args()
    if odd := [count for count in arguments.opponents if count < 2 or count % 2]:
        raise UserError(f"--opponents {odd[0]}: it must be even and at least 2")
    iteration = read_complete(arguments.iteration)
    truth, bias = true_scores(iteration)
    for opponents in (*arguments.opponents, None):
        print(json.dumps(measure(iteration, truth, bias, opponents)), flush=True)


if __name__ == "__main__":
    command(main)
