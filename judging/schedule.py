"""The comparisons that the meta-judge is asked for: every ordered pair of a response's judgments (the paper).

`metajudge.opponents` takes a balanced share of them; `metajudge.max_score_gap` leaves out pairs whose scores are far
apart, which a meta-judge can decide by naming the higher score.
"""

import random
from collections.abc import Sequence
from itertools import combinations, permutations

from judging.scores import Row, exact, exact_scores
from stages.settings import Metajudge


def scheduled(judgments: Sequence[Row], meta: Metajudge, seed: int) -> list[tuple[Row, Row]]:
    """The ordered pairs (shown first, shown second) of one response's distinct judgments, sorted by the first."""
    pairs = list(permutations(range(len(judgments)), 2))
    if meta.max_score_gap is not None:
        scores, gap = exact_scores(judgments), exact(meta.max_score_gap)
        pairs = [(m, n) for m, n in pairs if abs(scores[m] - scores[n]) <= gap]
    elif meta.opponents:
        edges = balanced_edges(len(judgments), meta.opponents, random.Random(seed))
        pairs = sorted({*edges, *((n, m) for m, n in edges)})
    return [(judgments[m], judgments[n]) for m, n in pairs]


def balanced_edges(size: int, degree: int, draw: random.Random) -> list[tuple[int, int]]:
    """Edges of a connected graph on 0 ... size - 1 with `degree` (even) edges a node; all pairs if there are fewer.
    Nodes stand in a circle in random order, and each meets the nodes 1, s_2, s_3 ... places on, with random s."""
    if degree >= size - 1:
        return list(combinations(range(size), 2))
    circle = draw.sample(range(size), size)
    steps = [1, *draw.sample(range(2, (size - 1) // 2 + 1), degree // 2 - 1)]
    return [(circle[i], circle[(i + step) % size]) for step in steps for i in range(size)]


def comparable_groups(judgments: Sequence[Row], meta: Metajudge) -> list[list[int]]:
    """Indices of one response's judgments, in groups within which Elo scores can be compared: all in one group. With
    `max_score_gap`, a group ends where the next score is too far away, and no comparison connects two groups."""
    if meta.max_score_gap is None:
        return [list(range(len(judgments)))]
    scores, groups = exact_scores(judgments), list[list[int]]()
    for i in sorted(range(len(judgments)), key=scores.__getitem__):
        if not groups or scores[i] - scores[groups[-1][-1]] > exact(meta.max_score_gap):
            groups.append([])
        groups[-1].append(i)
    return [sorted(group) for group in groups]
