"""Judge pairs: which two judgments of a response make a preference pair, by Elo (section 2.3 of the paper)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from judging.elo import Battle, battle_matrix, elo, position_weights
from judging.rubric import judge_prompt
from judging.schedule import comparable_groups
from judging.scores import Draw, Reason, Row
from model.chat import ChatFormat
from stages.files import UserError
from stages.records import EloScore, JudgePair, preference
from stages.settings import Iteration, Metajudge, Settings

_EQUAL = 1e-9
"""Elo scores that differ by less count as equal."""


@dataclass(frozen=True)
class Contest:
    """One prompt's meta-judged response, its distinct judgments, and their battles."""

    response: Row
    judgments: list[Row]
    battles: Sequence[Battle]

    def elo(
        self, weights: tuple[float, float], penalty: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Elo scores of the judgments and their standard errors; None when no battle has weight."""
        place = {row["index"]: i for i, row in enumerate(self.judgments)}
        placed = ((place[m], place[n], winner) for m, n, winner in self.battles)
        B = battle_matrix(len(self.judgments), placed, *weights)
        return elo(B, penalty) if B.any() else None


def contests(
    meta_judged: Iterable[Row],
    responses: Mapping[str, Row],
    judgments: Mapping[str, Sequence[Row]],
    battles: Mapping[str, Sequence[Battle]],
) -> dict[str, Contest | Reason]:
    """Each prompt's contest, or the reason for none, by prompt id; `meta_judged` are the choices of judging.metajudge.

    `responses` are by id, `judgments` and `battles` by response id. Raises `UserError` where battles and judgments do
    not belong together.
    """

    def contest(row: Row) -> Contest | Reason:
        if row["reason"]:
            return Reason(row["reason"])
        name, compared = row["response_id"], set(row["judgments"])
        distinct = [judgment for judgment in judgments.get(name, ()) if judgment["index"] in compared]
        own = battles.get(name, ())
        if not own or len(distinct) < len(compared) or any(m not in compared or n not in compared for m, n, _ in own):
            raise UserError(f"comparisons of {name} are missing or of different judgments; run judging.metajudge")
        return Contest(responses[name], distinct, own)

    return {row["prompt_id"]: contest(row) for row in meta_judged}


def choose_judgments(
    contest: Contest, weights: tuple[float, float], meta: Metajudge, rule: Iteration, draw: Draw
) -> tuple[tuple[Row, float], tuple[Row, float]] | Reason:
    """(chosen, rejected), each with its Elo score: the best and the worst of one response's distinct judgments.

    The pair comes from the group of comparable judgments (`comparable_groups`; one group in the paper) with the widest
    spread of Elo scores.
    """
    scores, groups = contest.elo(weights, meta.elo_penalty), comparable_groups(contest.judgments, meta)
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
    chosen = contest.judgments[best]
    if rule.max_judgment_characters is not None and len(chosen["text"]) > rule.max_judgment_characters:
        return Reason.CHOSEN_TOO_LONG
    return (chosen, float(eps[best])), (contest.judgments[worst], float(eps[worst]))


def judge_pair(
    contest: Contest, weights: tuple[float, float], settings: Settings, rule: Iteration, draw: Draw, chat: ChatFormat
) -> JudgePair | Reason:
    """The judge pair of a meta-judged response, or the reason for none."""
    choice = choose_judgments(contest, weights, settings.metajudge, rule, draw)
    if isinstance(choice, Reason):
        return choice
    (chosen, chosen_elo), (rejected, rejected_elo) = choice
    response, judge = contest.response, settings.judge
    prompt = judge_prompt(response["prompt"], response["text"], judge.prompt_style, judge.verdict_position)
    return {
        "id": f"judge/{response['id']}",
        "kind": "judge",
        **preference(response["prompt_id"], prompt, chat.prompt_ids(prompt), chosen, rejected),
        "response_id": response["id"],
        "chosen_elo": round(chosen_elo, 6),
        "rejected_elo": round(rejected_elo, 6),
    }


def elo_rows(contests: Mapping[str, Contest | Reason], wins: Mapping[str, int], meta: Metajudge) -> Iterator[EloScore]:
    """Each compared judgment's Elo score, its standard error, and the numbers of battles won and lost."""
    weights = position_weights(wins["first"], wins["second"])
    for contest in contests.values():
        scores = None if isinstance(contest, Reason) else contest.elo(weights, meta.elo_penalty)
        if isinstance(contest, Reason) or scores is None:
            continue
        groups = comparable_groups(contest.judgments, meta)
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
    """Numbers of battles won by the judgment shown "first", by the one shown "second", and by "neither"."""
    return Counter(
        winner if winner in ("first", "second") else "neither" for own in battles.values() for *_, winner in own
    )


def position_collapse(wins: Mapping[str, int]) -> bool:
    """Whether only one of the positions ever won."""
    return (wins["first"] == 0) != (wins["second"] == 0)
