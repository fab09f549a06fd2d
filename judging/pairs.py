"""Preference pairs: `python -m judging.pairs` turns scores and comparisons into what DPO trains on.

Actor pairs say which response to a prompt is better (`judging/length_control.py`), judge pairs which judgment of a
response (`judging/contests.py`). A prompt that gives no pair has a reason, and each reason is counted.
"""

import argparse
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from judging.contests import Contest, choose_judgments, contests, elo_rows, position_collapse, position_wins
from judging.elo import Battle, position_weights
from judging.expected import spreads
from judging.length_control import Scored, choose_responses
from judging.reasons import ACTOR_REASONS, JUDGE_REASONS, Reason
from judging.rubric import judge_prompt
from judging.scores import Draw, Record, distinct_responses, group_by, read_scores, response_scores, seeded_draw
from model.chat import ChatFormat, Message, load_chat
from sampling.generate import read_units
from stages.files import UserError, command, digest, is_complete, read_jsonl, stage_key, write_jsonl, write_manifest
from stages.settings import Iteration, Settings, as_dict, load_settings


def actor_pair(
    responses: Sequence[Record], scores: Mapping[str, Fraction], rule: Iteration, draw: Draw, chat: ChatFormat
) -> Record | Reason:
    """The actor pair of one prompt's distinct responses; `scores` by response id, of those that have one."""
    if len(responses) < 2:
        return Reason.TOO_FEW_RESPONSES
    scored = [Scored(row["id"], len(row["text"]), scores[row["id"]]) for row in responses if row["id"] in scores]
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
    contest: Contest, weights: tuple[float, float], settings: Settings, rule: Iteration, draw: Draw, chat: ChatFormat
) -> Record | Reason:
    """The judge pair of a meta-judged response."""
    choice = choose_judgments(contest, weights, settings.metajudge, rule, draw)
    if isinstance(choice, Reason):
        return choice
    response, judge = contest.response, settings.judge
    prompt = judge_prompt(response["prompt"], response["text"], judge.prompt_style, judge.verdict_position)
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


Missing = dict[str, Reason]
"""Why prompts gave no pair, by prompt id."""


def actor_pairs(
    prompts: Mapping[str, Sequence[Record]],
    scores: Mapping[str, Fraction],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> tuple[list[Record], Missing]:
    """All actor pairs, and why the other prompts gave none; `prompts` are the responses by prompt id."""
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)
    return _split(
        (name, actor_pair(distinct_responses(responses), scores, rule, draw, chat))
        for name, responses in prompts.items()
    )


def judge_pairs(
    contests: Mapping[str, Contest | Reason],
    wins: Mapping[str, int],
    settings: Settings,
    iteration: int,
    chat: ChatFormat,
) -> tuple[list[Record], Missing]:
    """All judge pairs, and why the other prompts gave none; `wins` are the iteration's, by position."""
    rule, draw = settings.iteration[iteration - 1], seeded_draw(settings.seed, iteration)
    weights, collapsed = position_weights(wins["first"], wins["second"]), position_collapse(wins)

    def make(contest: Contest | Reason) -> Record | Reason:
        if isinstance(contest, Reason):
            return contest
        return Reason.POSITION_COLLAPSE if collapsed else judge_pair(contest, weights, settings, rule, draw, chat)

    return _split((name, make(contest)) for name, contest in contests.items())


def _split(made: Iterable[tuple[str, Record | Reason]]) -> tuple[list[Record], Missing]:
    pairs: list[Record] = []
    missing: Missing = {}
    for name, item in made:
        if isinstance(item, Reason):
            missing[name] = item
        else:
            pairs.append(item)
    return pairs, missing


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


@dataclass(frozen=True)
class Sources:
    """The finished stages that pairs are made from. What the responses score say `scores`, expected scores, if they are
    there, else the `judgments`; or else a file. Without `comparisons` there are no judge pairs."""

    responses: Path
    judgments: Path | None = None
    scores: Path | None = None
    scores_file: Path | None = None
    comparisons: Path | None = None

    def paths(self) -> dict[str, Path | str]:
        """Those that are there, by name."""
        return {name: path for name, path in vars(self).items() if path}

    def arguments(self) -> tuple[str | Path, ...]:
        """The same for a command line."""
        return tuple(word for name, path in self.paths().items() for word in (f"--{name.replace('_', '-')}", path))

    @property
    def scoring(self) -> Path:
        """The stage whose rows say what a response scores, where no file does."""
        found = self.scores or self.judgments
        assert found is not None
        return found

    def spreads(self) -> dict[str, Fraction] | None:
        """The variance of each response's expected score, by response id; None where judgments are sampled alone."""
        return spreads(read_units(self.scores)) if self.scores else None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The options that `arguments` writes and `read` reads."""
        parser.add_argument("--responses", required=True, type=Path)
        parser.add_argument("--judgments", type=Path)
        parser.add_argument("--scores", type=Path, help="the stage of expected scores")
        parser.add_argument("--scores-file", type=Path, help="JSON lines of {id, score, text} in their place")
        parser.add_argument("--comparisons", type=Path, help="not needed in an iteration without judge pairs")

    @classmethod
    def read(cls, arguments: argparse.Namespace) -> "Sources":
        """From a command line. Raises `UserError` for one that says the scores twice, or not at all."""
        found = cls(**{name: getattr(arguments, name) for name in cls.__dataclass_fields__})
        if bool(found.scores_file) == bool(found.scores or found.judgments):
            raise UserError("scores come from --judgments or --scores, or else from --scores-file; name one of the two")
        return found


def pairs_key(settings: Settings, iteration: int, model_dir: Path, sources: Sources) -> str:
    """The identity of the pairs' work."""
    judge = settings.judge
    facts = {
        "rule": {key: value for key, value in as_dict(settings.iteration[iteration - 1]).items() if key != "epoch"},
        "judge": [judge.prompt_style, judge.verdict_position, judge.scores_needed],
        "metajudge": [settings.metajudge.max_score_gap, settings.metajudge.elo_penalty],
        "seed": settings.seed,
        "iteration": iteration,
    }
    return stage_key("pairs", facts, {"model": model_dir, **sources.paths()})


def write_pairs(settings: Settings, iteration: int, model_dir: Path, sources: Sources, out: Path) -> None:
    """Write `out`/actor.jsonl, judge.jsonl, elo.jsonl, none.jsonl (why a prompt gave no pair) and the manifest.

    Manifest: `counts`, by kind and reason; `positions`, how often each position won, and what a win weighs.
    """
    key = pairs_key(settings, iteration, model_dir, sources)
    if is_complete(out, key):
        return
    started = time.monotonic()
    chat = load_chat(model_dir)
    prompts = group_by(read_units(sources.responses), "prompt_id")
    judged = group_by(read_judgments(sources.judgments), "response_id") if sources.judgments else {}
    if file := sources.scores_file:
        scores = read_scores(file, (row for rows in prompts.values() for row in rows))
        if bare := sum("text" not in row for row in read_jsonl(file)):
            print(
                f"warning: {file}: {bare} rows have no text, so nothing says that they score these responses "
                "and not those of an earlier run",
                file=sys.stderr,
            )
    else:
        scoring = group_by(read_units(sources.scores), "response_id") if sources.scores else judged
        scores = response_scores(scoring, settings.judge.scores_needed)
    actor, missing = actor_pairs(prompts, scores, settings, iteration, chat)
    none = _none_rows("actor", missing)
    counts = {"prompts": len(prompts), "actor": len(actor)} | _counted("actor", missing, ACTOR_REASONS)
    judge: list[Record] = []
    elos: list[Record] = []
    facts: dict[str, Any] = {
        "rule": as_dict(settings.iteration[iteration - 1]),
        "minimum_valid": settings.judge.scores_needed,
        "elo_penalty": settings.metajudge.elo_penalty,
        "sources": {name: {"path": str(path), "digest": digest(path)} for name, path in sources.paths().items()},
    }
    if sources.comparisons:
        battles = read_battles(sources.comparisons)
        wins = position_wins(battles)
        held = contests(prompts, judged, battles, settings, iteration, sources.spreads())
        judge, missing = judge_pairs(held, wins, settings, iteration, chat)
        none += _none_rows("judge", missing)
        elos = list(elo_rows(held, wins, settings.metajudge))
        counts |= {"judge": len(judge)} | _counted("judge", missing, JUDGE_REASONS)
        facts["positions"] = _positions(wins)
    written = {"actor": actor, "judge": judge, "elo": elos, "none": none}
    for name, rows in written.items():
        write_jsonl(out / f"{name}.jsonl", rows)
    outputs = [out / f"{name}.jsonl" for name in written]
    seconds = round(time.monotonic() - started, 1)
    write_manifest(out, "pairs", key, outputs, counts=counts, seconds=seconds, **facts)


def _none_rows(kind: str, missing: Missing) -> list[Record]:
    return [{"prompt_id": name, "kind": kind, "reason": str(reason)} for name, reason in missing.items()]


def _counted(kind: str, missing: Missing, reasons: Iterable[Reason]) -> dict[str, int]:
    found = Counter(missing.values())
    return {f"{kind}.{reason}": found[reason] for reason in reasons}


def _positions(wins: Mapping[str, int]) -> dict[str, float]:
    """How often each position won and what its wins weigh; where one never won this is said loudly."""
    w1, w2 = position_weights(wins["first"], wins["second"])
    if position_collapse(wins):
        print(
            f"warning: position collapse: one position won all of {wins['first'] + wins['second']} decided "
            "comparisons, so this iteration has no judge pairs",
            file=sys.stderr,
        )
    return {**{place: wins[place] for place in ("first", "second", "neither")}, "w1": w1, "w2": w2}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the preference pairs of one iteration.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--iteration", required=True, type=int)
    Sources.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings, sources = load_settings(arguments.config), Sources.read(arguments)
    if not 1 <= arguments.iteration <= len(settings.iteration):
        raise UserError(
            f"--iteration {arguments.iteration}: {arguments.config} has iterations 1 to {len(settings.iteration)}"
        )
    wanted = settings.iteration[arguments.iteration - 1].judge_pairs
    if wanted and sources.scores_file:
        raise UserError(
            f"--scores-file: {arguments.config} wants judge pairs in this iteration; set judge_pairs = false"
        )
    for name in ("judgments", "comparisons") if wanted else ():
        if not getattr(sources, name):
            raise UserError(f"--{name} is missing: {arguments.config} wants judge pairs in this iteration; add it")
    sources = sources if wanted else replace(sources, comparisons=None)
    write_pairs(settings, arguments.iteration, arguments.model, sources, arguments.out)


if __name__ == "__main__":
    command(main)
