"""Preference pairs: `python -m judging.pairs` turns scores and comparisons into what DPO trains on.

Actor pairs say which response to a prompt is better (section 2.2 of the paper, with length control), judge pairs which
judgment of a response (section 2.3). A prompt that gives no pair has a reason, and each reason is counted.
"""

import argparse
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from files import UserError, command, is_complete, stage_key, write_jsonl, write_manifest
from judging.elo import Battle, battle_matrix, elo, position_weights
from judging.rubric import judge_prompt
from judging.scores import Draw, Record, distinct_responses, group_by, mean_score, meta_judged, seeded_draw
from model.chat import ChatFormat, Message, load_chat
from sampling.generate import read_units
from settings import Iteration, Judge, Settings, as_dict, load_settings


class Reason(StrEnum):
    """Why a prompt gives no actor pair, or no judge pair."""

    TOO_FEW_RESPONSES = "too_few_responses"
    """Actor: fewer than two distinct responses."""
    TOO_FEW_SCORED = "too_few_scored"
    """Actor: fewer than two of them have a score."""
    EQUAL_SCORES = "equal_scores"
    """Actor: all scores are equal."""
    SAME_RESPONSE = "same_response"
    """Actor: the tiers meet, and one response is both the chosen and the rejected one."""
    NOT_BETTER = "not_better"
    """Actor: the tiers meet, and the chosen response's score is not above the rejected one's."""
    CHOSEN_TOO_LONG = "chosen_too_long"
    """Actor, judge: the chosen text is longer than the iteration allows."""
    TOO_FEW_JUDGMENTS = "too_few_judgments"
    """Judge: no response has two distinct parsed judgments."""
    NO_DECISIVE_COMPARISON = "no_decisive_comparison"
    """Judge: every comparison is a tie, failed or missing."""
    EQUAL_ELO = "equal_elo"
    """Judge: the comparisons balance."""
    POSITION_COLLAPSE = "position_collapse"
    """Judge: in the whole iteration one position never won, so that no comparison says anything."""


ACTOR_REASONS = tuple(Reason)[:6]
JUDGE_REASONS = tuple(Reason)[5:]
_EQUAL = 1e-9
"""Elo scores closer than this are equal."""


@dataclass(frozen=True)
class Scored:
    """What length control knows of a response: `length` in characters of its text."""

    id: str
    length: int
    score: Fraction


@dataclass(frozen=True)
class JudgePair:
    """The judgments of highest and lowest Elo."""

    chosen: Record
    rejected: Record
    chosen_elo: float
    rejected_elo: float


def choose_responses(
    responses: Sequence[Scored], rule: Iteration, draw: Draw, prompt_id: str
) -> tuple[Scored, Scored] | Reason:
    """(chosen, rejected) of one prompt's distinct scored responses.

    With length control: the shortest response of the top tier, scores in [(1 - rho) S_max + rho S_min, S_max], against
    the longest of the bottom tier, [S_min, (1 - rho) S_min + rho S_max]. Among equally long ones the better (the worse)
    score counts, then the earlier response. Without: best against worst, drawn among equals; rho has no say.
    """
    if len(responses) < 2:
        return Reason.TOO_FEW_SCORED
    scores = [response.score for response in responses]
    high, low = max(scores), min(scores)
    if high == low:
        return Reason.EQUAL_SCORES
    if rule.length_control:
        margin = Fraction(str(rule.rho)) * (high - low)  # the decimal that the config says, not its nearest double
        top = [response for response in responses if response.score >= high - margin]
        bottom = [response for response in responses if response.score <= low + margin]
        chosen = min(top, key=lambda response: (response.length, -response.score))
        rejected = min(bottom, key=lambda response: (-response.length, response.score))
    else:
        chosen = draw([response for response in responses if response.score == high], f"{prompt_id}/chosen")
        rejected = draw([response for response in responses if response.score == low], f"{prompt_id}/rejected")
    if chosen is rejected:
        return Reason.SAME_RESPONSE
    if chosen.score <= rejected.score:
        return Reason.NOT_BETTER
    if rule.max_response_characters is not None and chosen.length > rule.max_response_characters:
        return Reason.CHOSEN_TOO_LONG
    return chosen, rejected


def choose_judgments(
    judgments: Sequence[Record],
    battles: Iterable[Battle],
    weights: tuple[float, float],
    rule: Iteration,
    draw: Draw,
    response_id: str,
) -> JudgePair | Reason:
    """The best and the worst of one response's distinct judgments; `battles` name them by their "index"."""
    place = {row["index"]: i for i, row in enumerate(judgments)}
    B = battle_matrix(len(judgments), ((place[m], place[n], winner) for m, n, winner in battles), *weights)
    if not B.any():
        return Reason.NO_DECISIVE_COMPARISON
    eps, _ = elo(B)
    if eps.max() - eps.min() <= _EQUAL:
        return Reason.EQUAL_ELO
    best = draw([i for i, score in enumerate(eps) if score >= eps.max() - _EQUAL], f"{response_id}/chosen")
    worst = draw([i for i, score in enumerate(eps) if score <= eps.min() + _EQUAL], f"{response_id}/rejected")
    chosen, rejected = judgments[best], judgments[worst]
    if rule.max_judgment_characters is not None and len(chosen["text"]) > rule.max_judgment_characters:
        return Reason.CHOSEN_TOO_LONG
    return JudgePair(chosen, rejected, float(eps[best]), float(eps[worst]))


def actor_pair(
    responses: Sequence[Record],
    judgments: Mapping[str, Sequence[Record]],
    minimum_valid: int,
    rule: Iteration,
    draw: Draw,
    chat: ChatFormat,
) -> Record | Reason:
    """The actor pair of one prompt's distinct responses; `judgments` by response id."""
    if len(responses) < 2:
        return Reason.TOO_FEW_RESPONSES
    scores = {row["id"]: mean_score(judgments.get(row["id"], ()), minimum_valid) for row in responses}
    scored = [Scored(row["id"], len(row["text"]), s) for row in responses if (s := scores[row["id"]]) is not None]
    prompt_id = responses[0]["prompt_id"]
    choice = choose_responses(scored, rule, draw, prompt_id)
    if isinstance(choice, Reason):
        return choice
    texts = {row["id"]: row for row in responses}
    chosen, rejected = choice
    prompt = [{"role": "user", "content": responses[0]["prompt"]}]
    return {
        **_pair(f"actor/{prompt_id}", "actor", prompt, texts[chosen.id], texts[rejected.id], chat),
        "chosen_score": str(chosen.score),
        "rejected_score": str(rejected.score),
    }


def judge_pair(
    response: Record,
    judgments: Sequence[Record],
    battles: Iterable[Battle],
    weights: tuple[float, float],
    judge: Judge,
    rule: Iteration,
    draw: Draw,
    chat: ChatFormat,
) -> Record | Reason:
    """The judge pair of the meta-judged response and its distinct judgments."""
    choice = choose_judgments(judgments, battles, weights, rule, draw, response["id"])
    if isinstance(choice, Reason):
        return choice
    prompt = judge_prompt(response["prompt"], response["text"], judge.form, judge.verdict)
    return {
        **_pair(f"judge/{response['id']}", "judge", prompt, choice.chosen, choice.rejected, chat),
        "response_id": response["id"],
        "chosen_elo": round(choice.chosen_elo, 6),
        "rejected_elo": round(choice.rejected_elo, 6),
    }


def _pair(name: str, kind: str, prompt: list[Message], chosen: Record, rejected: Record, chat: ChatFormat) -> Record:
    """TRL's conversational preference format, with the token ids that were sampled."""
    return {
        "id": name,
        "kind": kind,
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen["text"]}],
        "rejected": [{"role": "assistant", "content": rejected["text"]}],
        "prompt_ids": chat.prompt_ids(prompt),
        "chosen_ids": list(chosen["ids"]),
        "rejected_ids": list(rejected["ids"]),
        "chosen_id": chosen["id"],
        "rejected_id": rejected["id"],
    }


def actor_pairs(
    prompts: Mapping[str, Sequence[Record]],
    judgments: Mapping[str, Sequence[Record]],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> tuple[list[Record], Counter[Reason]]:
    """All actor pairs, and how many prompts gave none for which reason; `prompts` are the responses by prompt id."""
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)
    made = (
        actor_pair(distinct_responses(responses), judgments, settings.judge.minimum_valid, rule, draw, chat)
        for responses in prompts.values()
    )
    return _split(made)


def judge_pairs(
    prompts: Mapping[str, Sequence[Record]],
    judgments: Mapping[str, Sequence[Record]],
    battles: Mapping[str, Sequence[Battle]],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> tuple[list[Record], Counter[Reason]]:
    """All judge pairs, and how many prompts gave none for which reason; `battles` by response id.

    Raises `UserError` when the battles are not those of these judgments.
    """
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)
    wins = position_wins(battles)
    collapsed, weights = position_collapse(wins), position_weights(wins["first"], wins["second"])

    def make(responses: Sequence[Record]) -> Record | Reason:
        picked = meta_judged(distinct_responses(responses), judgments, draw)
        if picked is None:
            return Reason.TOO_FEW_JUDGMENTS
        response, distinct = picked
        known = {row["index"] for row in distinct}
        own = battles.get(response["id"], ())
        if not own or any(m not in known or n not in known for m, n, _ in own):
            raise UserError(
                f"comparisons of {response['id']} are missing or of other judgments; run judging.metajudge again"
            )
        if collapsed:
            return Reason.POSITION_COLLAPSE
        return judge_pair(response, distinct, own, weights, settings.judge, rule, draw, chat)

    return _split(make(responses) for responses in prompts.values())


def position_wins(battles: Mapping[str, Sequence[Battle]]) -> Counter[str]:
    """How often the judgment shown "first" won, and the one shown "second", and "neither", over all responses."""
    return Counter(
        winner if winner in ("first", "second") else "neither" for own in battles.values() for *_, winner in own
    )


def position_collapse(wins: Mapping[str, int]) -> bool:
    """Whether one position won, and the other never did."""
    return (wins["first"] == 0) != (wins["second"] == 0)


def _split(made: Iterable[Record | Reason]) -> tuple[list[Record], Counter[Reason]]:
    pairs: list[Record] = []
    reasons: Counter[Reason] = Counter()
    for item in made:
        if isinstance(item, Reason):
            reasons[item] += 1
        else:
            pairs.append(item)
    return pairs, reasons


def read_judgments(folder: Path) -> Iterator[Record]:
    """Judgments with what pairs need of them, token ids packed: a full run has hundreds of thousands."""
    for row in read_units(folder):
        kept = {key: row[key] for key in ("id", "response_id", "index", "text", "score")}
        yield kept | {"ids": array("i", row["ids"])}


def read_battles(folder: Path) -> dict[str, list[Battle]]:
    """Comparisons by response id."""
    battles: dict[str, list[Battle]] = {}
    for row in read_units(folder):
        battles.setdefault(row["response_id"], []).append((row["first"], row["second"], row["winner"]))
    return battles


def pairs_key(
    settings: Settings, iteration: int, model_dir: Path, responses: Path, judgments: Path, comparisons: Path | None
) -> str:
    """The identity of the pairs' work."""
    judge = settings.judge
    facts = {
        "rule": as_dict(settings.iteration[iteration - 1]),
        "judge": [judge.form, judge.verdict, judge.minimum_valid],
        "seed": settings.seed,
        "iteration": iteration,
    }
    inputs: dict[str, Path | str] = {"model": model_dir, "responses": responses, "judgments": judgments}
    return stage_key("pairs", facts, inputs | ({"comparisons": comparisons} if comparisons else {}))


def write_pairs(
    settings: Settings,
    iteration: int,
    model_dir: Path,
    responses: Path,
    judgments: Path,
    comparisons: Path | None,
    out: Path,
) -> None:
    """Write `out`/actor.jsonl, judge.jsonl and the manifest. Without comparisons there are no judge pairs.

    Manifest: `counts`, by kind and reason; `positions`, how often each position won, and what a win weighs.
    """
    key = pairs_key(settings, iteration, model_dir, responses, judgments, comparisons)
    if is_complete(out, key):
        return
    started = time.monotonic()
    chat = load_chat(model_dir)
    prompts = group_by(read_units(responses), "prompt_id")
    judged = group_by(read_judgments(judgments), "response_id")
    actor, reasons = actor_pairs(prompts, judged, settings, iteration, chat)
    counts = {"prompts": len(prompts), "actor": len(actor)} | {f"actor.{r}": reasons[r] for r in ACTOR_REASONS}
    judge: list[Record] = []
    facts: dict[str, Any] = {}
    if comparisons:
        battles = read_battles(comparisons)
        judge, reasons = judge_pairs(prompts, judged, battles, settings, iteration, chat)
        counts |= {"judge": len(judge)} | {f"judge.{r}": reasons[r] for r in JUDGE_REASONS}
        wins = position_wins(battles)
        w1, w2 = position_weights(wins["first"], wins["second"])
        facts["positions"] = {**{place: wins[place] for place in ("first", "second", "neither")}, "w1": w1, "w2": w2}
        if position_collapse(wins):
            print(
                f"warning: position collapse: one position won all of {wins['first'] + wins['second']} decided "
                "comparisons, so this iteration has no judge pairs",
                file=sys.stderr,
            )
    write_jsonl(out / "actor.jsonl", actor)
    write_jsonl(out / "judge.jsonl", judge)
    outputs = [out / "actor.jsonl", out / "judge.jsonl"]
    seconds = round(time.monotonic() - started, 1)
    write_manifest(out, "pairs", key, outputs, counts=counts, seconds=seconds, **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the preference pairs of one iteration.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--iteration", required=True, type=int)
    parser.add_argument("--responses", required=True, type=Path)
    parser.add_argument("--judgments", required=True, type=Path)
    parser.add_argument("--comparisons", type=Path, help="not needed in an iteration without judge pairs")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    if not 1 <= arguments.iteration <= len(settings.iteration):
        raise UserError(
            f"--iteration {arguments.iteration}: {arguments.config} has iterations 1 to {len(settings.iteration)}"
        )
    wanted = settings.iteration[arguments.iteration - 1].judge_pairs
    if wanted and arguments.comparisons is None:
        raise UserError(f"--comparisons is missing: {arguments.config} wants judge pairs in this iteration; add it")
    write_pairs(
        settings,
        arguments.iteration,
        arguments.model,
        arguments.responses,
        arguments.judgments,
        arguments.comparisons if wanted else None,
        arguments.out,
    )


if __name__ == "__main__":
    command(main)
