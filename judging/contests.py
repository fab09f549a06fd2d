"""Contests of judgments: which two judgments of a response make a judge pair (section 2.3 of the paper)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from judging.elo import Battle, battle_matrix, elo, position_weights
from judging.reasons import Reason
from judging.schedule import chains
from judging.scores import Draw, Record, distinct_responses, meta_judged, seeded_draw
from stages.files import UserError
from stages.settings import Iteration, Metajudge, Settings

_EQUAL = 1e-9
"""Elo scores closer than this are equal."""


@dataclass(frozen=True)
class Contest:
    """One prompt's meta-judged response, its distinct judgments, and what the meta-judge said of them."""

    response: Record
    judgments: list[Record]
    battles: Sequence[Battle]

    def elo(
        self, weights: tuple[float, float], penalty: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Elo scores of the judgments and their standard errors; None where no battle has weight."""
        place = {row["index"]: i for i, row in enumerate(self.judgments)}
        placed = ((place[m], place[n], winner) for m, n, winner in self.battles)
        B = battle_matrix(len(self.judgments), placed, *weights)
        return elo(B, penalty) if B.any() else None


@dataclass(frozen=True)
class JudgePair:
    """The judgments of highest and lowest Elo."""

    chosen: Record
    rejected: Record
    chosen_elo: float
    rejected_elo: float


def contests(
    prompts: Mapping[str, Sequence[Record]],
    judgments: Mapping[str, Sequence[Record]],
    battles: Mapping[str, Sequence[Battle]],
    settings: Settings,
    iteration: int,
    spreads: Mapping[str, Fraction] | None = None,
) -> dict[str, Contest | Reason]:
    """What was meta-judged of each prompt, or why nothing was; `judgments`, `battles` and `spreads` by response id.

    Raises `UserError` when the battles are not those of these judgments.
    """
    draw = seeded_draw(settings.seed, iteration)

    def contest(responses: Sequence[Record]) -> Contest | Reason:
        picked = meta_judged(distinct_responses(responses), judgments, draw, spreads)
        if picked is None:
            return Reason.TOO_FEW_JUDGMENTS
        response, distinct = picked
        if all(len(chain) == 1 for chain in chains(distinct, settings.metajudge)):
            return Reason.NO_NEAR_SCORES
        known = {row["index"] for row in distinct}
        own = battles.get(response["id"], ())
        if not own or any(m not in known or n not in known for m, n, _ in own):
            raise UserError(
                f"comparisons of {response['id']} are missing or of other judgments; run judging.metajudge again"
            )
        return Contest(response, distinct, own)

    return {name: contest(responses) for name, responses in prompts.items()}


def choose_judgments(
    contest: Contest,
    weights: tuple[float, float],
    meta: Metajudge,
    rule: Iteration,
    draw: Draw,
) -> JudgePair | Reason:
    """The best and the worst of one response's distinct judgments.

    Judgments that were compared with one another are a group (`judging.schedule.chains`), for the paper all of them:
    the pair comes from the group in which the Elo scores lie widest apart.
    """
    scores, groups = contest.elo(weights, meta.elo_penalty), chains(contest.judgments, meta)
    if scores is None:
        return Reason.NO_DECISIVE_COMPARISON
    eps, name = scores[0], contest.response["id"]
    spreads = [np.ptp(eps[group]) for group in groups]
    if max(spreads) <= _EQUAL:
        return Reason.EQUAL_ELO
    widest = [group for group, spread in zip(groups, spreads, strict=True) if spread >= max(spreads) - _EQUAL]
    group = draw(widest, f"{name}/group")
    high, low = max(eps[group]), min(eps[group])
    best = draw([i for i in group if eps[i] >= high - _EQUAL], f"{name}/chosen")
    worst = draw([i for i in group if eps[i] <= low + _EQUAL], f"{name}/rejected")
    chosen, rejected = contest.judgments[best], contest.judgments[worst]
    if rule.max_judgment_characters is not None and len(chosen["text"]) > rule.max_judgment_characters:
        return Reason.CHOSEN_TOO_LONG
    return JudgePair(chosen, rejected, float(eps[best]), float(eps[worst]))


def elo_rows(contests: Mapping[str, Contest | Reason], wins: Mapping[str, int], meta: Metajudge) -> Iterator[Record]:
    """The Elo score of each compared judgment, with its standard error and how many battles it won and lost.

    "group" numbers the response's groups of judgments that were compared with one another; others can't be compared.
    """
    weights = position_weights(wins["first"], wins["second"])
    for contest in contests.values():
        scores = None if isinstance(contest, Reason) else contest.elo(weights, meta.elo_penalty)
        if isinstance(contest, Reason) or scores is None:
            continue
        groups = chains(contest.judgments, meta)
        group_of = {place: number for number, group in enumerate(groups) for place in group if len(group) > 1}
        won: Counter[int] = Counter()
        lost: Counter[int] = Counter()
        for m, n, winner in contest.battles:
            if winner in ("first", "second"):
                won[m if winner == "first" else n] += 1
                lost[n if winner == "first" else m] += 1
        for place, (row, eps, error) in enumerate(zip(contest.judgments, *scores, strict=True)):
            if place not in group_of:
                continue
            yield {
                "judgment_id": row["id"],
                "response_id": contest.response["id"],
                "prompt_id": contest.response["prompt_id"],
                "group": group_of[place],
                "elo": round(float(eps), 6),
                "standard_error": round(float(error), 6),
                "won": won[row["index"]],
                "lost": lost[row["index"]],
            }


def position_wins(battles: Mapping[str, Sequence[Battle]]) -> Counter[str]:
    """How often the judgment shown "first" won, and the one shown "second", and "neither", over all responses."""
    return Counter(
        winner if winner in ("first", "second") else "neither" for own in battles.values() for *_, winner in own
    )


def position_collapse(wins: Mapping[str, int]) -> bool:
    """Whether one position won, and the other never did."""
    return (wins["first"] == 0) != (wins["second"] == 0)
