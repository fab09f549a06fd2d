"""Is a model's answer better than the seed's? `torchrun -m evaluation.duel` has a judge compare them, prompt by prompt.

Both models have answered the config's `evaluation.prompts` (`evaluation/held_out.py`). The judge is the model itself,
M_0, or another (`evaluation.judge`), so the win rate is *self-judged*: it says what the loop believes of itself and is
no benchmark's number. `evaluation.way` says how: "scores" compares the means of `evaluation.duel_N` judgments of each
answer, "pairwise" shows both, in both orders, `duel_N` times in each.
"""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.held_out import answers_of
from evaluation.pairwise import Decision, Duel, decide, duel_items, duel_record
from evaluation.statistics import bootstrap
from files import UserError, command, is_complete, write_json, write_manifest
from judging.judge import judge_section
from judging.scores import group_by
from model.chat import load_chat
from sampling.generate import generation_key, read_units, run_units
from settings import Settings, load_settings

Record = dict[str, Any]


def duels_of(answers: Mapping[str, Record], others: Mapping[str, Record]) -> list[Duel]:
    """A duel a prompt, the model's answer first. Raises `UserError` naming a prompt that only one has answered."""
    for name in answers.keys() ^ others.keys():
        raise UserError(f"prompt {name!r}: answered by one of the two models alone; answer the same prompts again")
    return [Duel(name, row["prompt"], row["text"], others[name]["text"]) for name, row in answers.items()]


def report(duels: Sequence[Duel], rows: Iterable[Record], settings: Settings) -> Record:
    """Win rate, a tie counting half, of the prompts with a verdict; how often both orders, where there are two, agree.

    Intervals are bootstrap percentiles over prompts. `by_id` has each prompt's share, None without a verdict.
    """
    way, found = settings.evaluation.way, group_by(rows, "duel")
    decisions: dict[str, Decision] = {duel.id: decide(duel, found.get(duel.id, []), way) for duel in duels}
    shares = {name: None if it.first is None else float(it.first) for name, it in decisions.items()}
    parsed = [[float(row["failure"] is None) for row in asked] for asked in found.values()]
    first = [
        [float(row["winner"] == "first") for row in asked if row.get("winner") in ("first", "second")]
        for asked in found.values()
    ]
    return {
        "way": way,
        "duels": len(duels),
        "win_rate": bootstrap([[share] for share in shares.values() if share is not None]),
        "ties": bootstrap([[float(share == 0.5)] for share in shares.values() if share is not None]),
        "parse_rate": bootstrap(parsed),
        "consistency": bootstrap([[float(it.consistent)] for it in decisions.values() if it.consistent is not None]),
        "first_position": bootstrap(first),
        "by_id": shares,
    }


def duel_key(settings: Settings, judge: Path, answers: Path, against: Path) -> str:
    """The identity of a comparison of two models' answers."""
    evaluation = settings.evaluation
    section = judge_section(settings) | {"way": evaluation.way, "N": evaluation.duel_N}
    inputs: dict[str, Path | str] = {"judge": judge, "answers": answers, "against": against}
    return generation_key("duel", settings, section, 0, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a model's answers to held-out prompts with the seed's.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--judge", required=True, type=Path, help="Hugging Face directory of who compares")
    parser.add_argument("--answers", required=True, type=Path, help="the model's, OUT/answers of evaluation.held_out")
    parser.add_argument("--against", required=True, type=Path, help="the seed's")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings, out = load_settings(arguments.config), arguments.out
    key = duel_key(settings, arguments.judge, arguments.answers, arguments.against)
    if is_complete(out, key):
        return
    chat, evaluation = load_chat(arguments.judge), settings.evaluation
    duels = duels_of(answers_of(arguments.answers), answers_of(arguments.against))
    run_units(
        "duel",
        list(duel_items(duels, evaluation.way, evaluation.duel_N, chat, settings)),
        partial(duel_record, way=evaluation.way, chat=chat, judge=settings.judge),
        chat=chat,
        settings=settings,
        model_dir=arguments.judge,
        out=out / "verdicts",
        key=key,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # every rank knows the same; one writes it
    write_json(out / "report.json", report(duels, read_units(out / "verdicts"), settings))
    write_manifest(out, "duel", key, [out / "report.json"], counts={"duels": len(duels)})


if __name__ == "__main__":
    command(main)
