"""Judge pairs: which two judgments of a response make a preference pair, by Elo (section 2.3 of the paper)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Any, NamedTuple

import numpy as np

from judging.elo import Array, Battle, battle_matrix, elo, position_weights
from judging.rubric import judge_prompt
from judging.schedule import comparable_groups
from judging.scores import Draw, Reason, Row, exact
from model.chat import ChatFormat
from stages.command import UserError
from stages.records import EloScore, Record, preference
from stages.settings import Guards, Iteration, Judge, Metajudge

POSITIONS = ("first", "second")
_EQUAL = 1e-9  # Elo scores that differ by less count as equal


class Contest(NamedTuple):  # of the judgments of one prompt's meta-judged response
    response: Row
    judgments: list[Row]  # distinct ones
    battles: Sequence[Battle]
    groups: list[list[int]]  # places of the judgments whose Elo scores can be compared (`comparable_groups`)
    eps: Array
    errors: Array  # the standard errors of `eps`


def contests(
    meta_judged: Iterable[Row],
    responses: Mapping[str, Row],
    judgments: Mapping[str, Sequence[Row]],
    battles: Mapping[str, Sequence[Battle]],
    meta: Metajudge,
) -> dict[str, Contest | Reason]:
    """Each prompt's contest, or the reason for none, by prompt id; `meta_judged` are the choices of judging.metajudge.
    `responses` are by id, `judgments` and `battles` by response id; `UserError` where these two do not belong
    together."""
    wins = position_wins(battles)
    weights = position_weights(wins["first"], wins["second"])

    def contest(row: Row) -> Contest | Reason:
        if row["reason"]:
            return Reason(row["reason"])
        name, own = row["response_id"], battles.get(row["response_id"], ())
        distinct = [judgment for judgment in judgments.get(name, ()) if judgment["index"] in row["judgments"]]
        place = {judgment["index"]: i for i, judgment in enumerate(distinct)}
        fought = {index for m, n, _ in own for index in (m, n)}
        if not own or len(place) < len(row["judgments"]) or not fought <= place.keys():
            raise UserError(f"comparisons of {name} are missing or of different judgments; run judging.metajudge")
        B = battle_matrix(len(distinct), ((place[m], place[n], winner) for m, n, winner in own), *weights)
        if not B.any():
            return Reason.POSITION_COLLAPSE if 0 in weights else Reason.NO_DECISIVE_COMPARISON
        return Contest(responses[name], distinct, own, comparable_groups(distinct, meta), *elo(B, meta.elo_penalty))

    return {row["prompt_id"]: contest(row) for row in meta_judged}


def position_wins(battles: Mapping[str, Sequence[Battle]]) -> Counter[str]:
    """Numbers of battles won by the judgment shown "first", by the one shown "second", and by "neither"."""
    winners = (winner for own in battles.values() for *_, winner in own)
    return Counter(winner if winner in POSITIONS else "neither" for winner in winners)


def choose_judgments(contest: Contest, rule: Iteration, draw: Draw) -> tuple[int, int] | Reason:
    """Places of (chosen, rejected), the best and the worst of a contest's judgments, or the reason for no pair. Both
    are of one group, the one with the widest spread of Elo scores. Ties are drawn."""
    eps, name = contest.eps, contest.response["id"]
    widths = [np.ptp(eps[group]) for group in contest.groups]
    if max(widths) <= _EQUAL:
        return Reason.EQUAL_ELO
    widest = [group for group, width in zip(contest.groups, widths, strict=True) if width >= max(widths) - _EQUAL]
    group = draw(widest, f"{name}/group")
    high, low = max(eps[group]), min(eps[group])
    chosen = draw([i for i in group if eps[i] >= high - _EQUAL], f"{name}/chosen")
    rejected = draw([i for i in group if eps[i] <= low + _EQUAL], f"{name}/rejected")
    length, limit = len(contest.judgments[chosen]["text"]), rule.max_judgment_characters
    return Reason.CHOSEN_TOO_LONG if limit is not None and length > limit else (chosen, rejected)


def judge_pair(
    contest: Contest | Reason, judge: Judge, rule: Iteration, draw: Draw, chat: ChatFormat
) -> Record | Reason:
    """The `JudgePair` of one prompt's contest, or the reason for none."""
    if isinstance(contest, Reason):
        return contest
    choice = choose_judgments(contest, rule, draw)
    if isinstance(choice, Reason):
        return choice
    response, (chosen, rejected) = contest.response, (contest.judgments[place] for place in choice)
    prompt = judge_prompt(response["prompt"], response["text"], judge.prompt_style, judge.verdict_position)
    chosen_elo, rejected_elo = (round(float(contest.eps[place]), 6) for place in choice)
    pair = {"id": f"judge/{response['id']}", "kind": "judge"}
    pair |= preference(response["prompt_id"], prompt, chat.prompt_ids(prompt), chosen, rejected)
    return pair | {"response_id": response["id"], "chosen_elo": chosen_elo, "rejected_elo": rejected_elo}


def guarded(
    made: Mapping[str, Any], contests: Mapping[str, Any], actor_pairs: int, guards: Guards, draw: Draw
) -> dict[str, Any]:
    """An iteration's judge pairs by prompt id, with a reason in place of each pair that a guard removes. As many as can
    be stay; the seed draws which, whatever the order of the prompts."""
    pairs = {name: pair for name, pair in made.items() if not isinstance(pair, Reason)}
    score = {row["id"]: row["score"] for name in pairs for row in contests[name].judgments}
    order = sorted(pairs, key=lambda name: draw(range(2**62), f"{name}/guard"))
    chosen, rejected = ({name: score[pairs[name][f"{side}_id"]] for name in order} for side in ("chosen", "rejected"))
    differing = [name for name in order if chosen[name] != rejected[name] or not guards.distinct_scores]
    of_score, of_all = exact(guards.max_score_share), exact(guards.max_judge_pair_share)
    balanced = _balanced(differing, chosen, of_score, len(order))
    most = floor(actor_pairs * of_all / (1 - of_all)) if of_all < 1 else len(order)
    kept = _balanced(balanced, chosen, of_score, most)
    steps = (order, Reason.SAME_SCORE), (differing, Reason.SCORE_SHARE), (balanced, Reason.JUDGE_PAIR_SHARE)
    removed = {name: reason for names, reason in steps for name in names}  # the last guard that a pair came to
    return {**made, **removed, **{name: pairs[name] for name in kept}}


def _balanced(names: Sequence[str], classes: Mapping[str, float], share: Fraction, most: int) -> list[str]:
    """The first of the names, of each class at most `share` of those returned: as many as can be, `most` at most.
    Classes of n_c names allow T in all if sum_c min(n_c, floor(share T)) >= T."""
    sizes, totals = Counter(classes[name] for name in names).values(), range(min(len(names), most) + 1)
    total = max(T for T in totals if sum(min(size, floor(share * T)) for size in sizes) >= T)
    kept, taken = list[str](), Counter[float]()
    for name in names:
        if len(kept) < total and taken[classes[name]] < floor(share * total):
            kept.append(name)
            taken[classes[name]] += 1
    return kept


def elo_rows(contests: Mapping[str, Contest | Reason]) -> Iterator[EloScore]:
    """Each compared judgment's Elo score, its standard error, and the numbers of battles won and lost."""
    for contest in contests.values():
        if isinstance(contest, Reason):
            continue
        pairs = [(m, n) if winner == "first" else (n, m) for m, n, winner in contest.battles if winner in POSITIONS]
        won, lost = (Counter(side) for side in zip(*pairs, strict=True))
        group_of = {place: number for number, group in enumerate(contest.groups) for place in group if len(group) > 1}
        for place, group in sorted(group_of.items()):
            row = contest.judgments[place]
            yield {
                "judgment_id": row["id"],
                "response_id": contest.response["id"],
                "prompt_id": contest.response["prompt_id"],
                "group": group,
                "elo": round(float(contest.eps[place]), 6),
                "standard_error": round(float(contest.errors[place]), 6),
                "won": won[row["index"]],
                "lost": lost[row["index"]],
            }
