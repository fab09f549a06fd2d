"""Which comparisons the meta-judge is asked for.

The paper asks for every ordered pair of a response's N judgments: N (N - 1) comparisons. Two settings ask for fewer.
`metajudge.opponents` takes a balanced share of them, so that the cost grows with N and not with its square.
`metajudge.max_score_gap` leaves out judgments whose scores are far apart, where a meta-judge that has learnt to name
the higher score needs no other sense. Whatever is compared is compared in both orders.
"""

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

from judging.scores import Row, exact_scores
from stages.seeds import request_seed
from stages.settings import Metajudge


def scheduled(judgments: Sequence[Row], meta: Metajudge, seed: int) -> list[tuple[Row, Row]]:
    """The ordered pairs (shown first, shown second) of one response's distinct judgments, by what is shown first."""
    if meta.max_score_gap is not None:
        gap = Fraction(str(meta.max_score_gap))
        scores = exact_scores(judgments)
        places = permutations(range(len(judgments)), 2)
        return [(judgments[m], judgments[n]) for m, n in places if abs(scores[m] - scores[n]) <= gap]
    if not meta.opponents:
        return list(permutations(judgments, 2))
    edges = balanced_edges(len(judgments), meta.opponents, random.Random(seed))
    both = sorted({*edges, *((n, m) for m, n in edges)})
    return [(judgments[m], judgments[n]) for m, n in both]


def schedule_seed(seed: int, iteration: int, response_id: str) -> int:
    """The seed of one response's balanced share."""
    return request_seed(seed, iteration, "schedule", response_id)


def balanced_edges(size: int, degree: int, draw: random.Random) -> list[tuple[int, int]]:
    """Pairs of 0 ... size - 1 such that each has `degree` (even) partners and all hang together; all pairs if fewer.

    A circulant graph: the judgments stand in a circle in random order, and each meets those 1, s_2, s_3 ... places on,
    the s drawn at random. The step of 1 connects them.
    """
    if degree >= size - 1:
        return [(m, n) for m in range(size) for n in range(m + 1, size)]
    circle = draw.sample(range(size), size)
    steps = [1, *draw.sample(range(2, (size - 1) // 2 + 1), degree // 2 - 1)]
    return [(circle[i], circle[(i + step) % size]) for step in steps for i in range(size)]


def comparable_groups(judgments: Sequence[Row], meta: Metajudge) -> list[list[int]]:
    """The places of one response's judgments, in groups within which their Elo scores mean something.

    With `max_score_gap` a group of near scores ends where the next score is too far away; no comparison connects two
    groups. Otherwise all judgments are one group.
    """
    if meta.max_score_gap is None:
        return [list(range(len(judgments)))]
    gap = Fraction(str(meta.max_score_gap))
    scores = exact_scores(judgments)
    groups: list[list[int]] = []
    for i in sorted(range(len(judgments)), key=lambda i: scores[i]):
        if groups and scores[i] - scores[groups[-1][-1]] <= gap:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [sorted(group) for group in groups]
