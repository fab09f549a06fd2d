"""What fewer comparisons cost in Elo: `python -m evaluation.elo_error runs/NAME/iter1 --opponents 2 4 6`.

An iteration whose judgments were all compared is decided once more by a balanced share of its own comparisons
(`metajudge.opponents`). Printed is a JSON line for each number of opponents: the share of the comparisons that it
takes; how far the Elo scores move (root mean square), beside the spread of the scores and their mean standard error;
their rank correlation with those of all comparisons; and how often the pair's order is the same by all comparisons.
Means are over several draws of the share, intervals bootstrap percentiles over responses.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import bootstrap, spearman
from files import UserError, command
from judging.contests import position_wins
from judging.elo import Battle, battle_matrix, elo, position_weights
from judging.pairs import read_battles
from judging.schedule import balanced_edges, schedule_seed

Battles = Mapping[str, Sequence[Battle]]
DRAWS = 5


def elo_scores(battles: Battles, places: Mapping[str, dict[int, int]]) -> dict[str, NDArray[np.float64]]:
    """[2, n] for each response: Elo scores and standard errors of its judgments; `places` numbers them."""
    wins = position_wins(battles)
    weights = position_weights(wins["first"], wins["second"])
    return {name: np.stack(elo(_matrix(own, places[name], weights))) for name, own in battles.items()}


def balanced_share(
    battles: Battles, places: Mapping[str, dict[int, int]], opponents: int, seed: int
) -> dict[str, list[Battle]]:
    """The battles that `metajudge.opponents` asks for."""
    kept = {}
    for name, own in battles.items():
        place = places[name]
        edges = balanced_edges(len(place), opponents, random.Random(schedule_seed(seed, 0, name)))
        wanted = set(map(frozenset, edges))
        kept[name] = [battle for battle in own if frozenset((place[battle[0]], place[battle[1]])) in wanted]
    return kept


def measure(battles: Battles, opponents: int) -> dict[str, Any]:
    """The cost of one number of opponents, against all comparisons."""
    places = {name: {m: i for i, m in enumerate(sorted({m for m, *_ in own}))} for name, own in battles.items()}
    whole = elo_scores(battles, places)
    moved: dict[str, list[float]] = {name: [] for name in battles}
    correlation: dict[str, list[float]] = {name: [] for name in battles}
    kept_order: dict[str, list[float]] = {name: [] for name in battles}
    taken = 0
    for seed in range(DRAWS):
        share = balanced_share(battles, places, opponents, seed)
        taken += sum(map(len, share.values()))
        for name, (eps, _) in elo_scores(share, places).items():
            full = whole[name][0]
            moved[name] += list((eps - full) ** 2)
            rank = spearman(eps, full)
            correlation[name] += [rank] if rank is not None else []
            best, worst = int(eps.argmax()), int(eps.argmin())
            kept_order[name] += [0.5 if full[best] == full[worst] else float(full[best] > full[worst])]
    square = bootstrap(list(moved.values()))
    return {
        "opponents": opponents,
        "comparisons": round(taken / DRAWS / sum(map(len, battles.values())), 4),
        "elo_rms_error": {key: round(square[key] ** 0.5, 4) for key in ("value", "low", "high")},
        "elo_rms": round(float(np.sqrt(np.mean([eps**2 for own in whole.values() for eps in own[0]]))), 4),
        "standard_error_mean": round(float(np.mean([error for own in whole.values() for error in own[1]])), 4),
        "spearman": bootstrap(list(correlation.values())),
        "pair_in_order": bootstrap(list(kept_order.values())),
    }


def _matrix(own: Sequence[Battle], place: dict[int, int], weights: tuple[float, float]) -> NDArray[np.float64]:
    return battle_matrix(len(place), ((place[m], place[n], winner) for m, n, winner in own), *weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="The Elo error of balanced shares of an iteration's comparisons.")
    parser.add_argument("iteration", type=Path, help="an iteration's folder whose judgments were all compared")
    parser.add_argument("--opponents", type=int, nargs="+", default=[2, 4, 6], help="even numbers")
    arguments = parser.parse_args()
    battles = read_battles(arguments.iteration / "comparisons")
    for name, own in battles.items():
        size = len({m for m, *_ in own})
        if len(own) != size * (size - 1):
            raise UserError(f"{arguments.iteration}: the judgments of {name} were not all compared; take a run of all")
    if odd := [count for count in arguments.opponents if count < 2 or count % 2]:
        raise UserError(f"--opponents {odd[0]}: it must be even and at least 2")
    for opponents in arguments.opponents:
        print(json.dumps(measure(battles, opponents)), flush=True)


if __name__ == "__main__":
    command(main)
