"""Golden iterations: invented texts whose pairs were worked out by hand from the method's description.

Each file of tests/golden is one iteration, whose prompts state the reasoning (`why`). The test reads the raw texts and
compares the code's scores, pairs, reasons, position weights and Elo scores.
"""

import tomllib
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from records import CHAT, decided

from judging.actor_pairs import actor_pairs
from judging.judge import read_score
from judging.judge_pairs import elo_rows, judge_pairs, position_wins
from judging.metajudge import choose_meta_judged, read_winner
from judging.scores import ACTOR_REASONS, JUDGE_REASONS, Reason, response_scores, to_number
from sampling.request import Completion, Sampling
from sampling.worker import Item
from stages.records import group_by
from stages.settings import Iteration, Judge, Metajudge, Model, Respond, Settings

FOLDER = Path(__file__).parents[1] / "golden"
FILES = sorted(path.stem for path in FOLDER.glob("*.toml"))
RULES = ("rho", "length_control", "max_response_characters", "max_judgment_characters")


class Texts:
    """A chat format whose ids are the bytes of a text."""

    @staticmethod
    def text(ids) -> str:
        return bytes(ids).decode()


def completed(name: str, output, record: dict) -> dict:
    """The row of a finished request, from a text or {text, finish_reason}."""
    output = output if isinstance(output, dict) else {"text": output}
    item = Item(name, list, Sampling(0.8, 0.95, 100), 0, "", {"id": name, **record})
    completion = Completion(name, list(output["text"].encode()), output.get("finish_reason", "stop"), 0.0)
    return item.row(completion, Texts)


@cache
def golden(name: str) -> dict:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def worked(name: str) -> dict:
    """The code's results for a file: scores, pairs and reasons by prompt, wins by position, Elo by judgment."""
    table = golden(name)
    rule = table["rule"]
    settings = Settings(
        name="golden",
        model=Model(path="m"),
        respond=Respond(prompts="p", prompts_per_iteration=1),
        judge=Judge(minimum_valid=rule["minimum_valid"], fractions=rule["fractions"]),
        iteration=[Iteration(**{key: rule[key] for key in RULES if key in rule})],
    )
    responses, judgments, battles = [], [], {}
    for prompt in table["prompt"]:
        names = [f"{prompt['id']}/r{k}" for k in range(len(prompt["response"]))]
        for response_id, response in zip(names, prompt["response"], strict=True):
            reason = response.get("finish_reason", "stop")
            responses.append({"id": response_id, "prompt_id": prompt["id"], "prompt": prompt["question"],
                              "text": response["text"], "finish_reason": reason, "ids": [0]})  # fmt: skip
            for i, output in enumerate(response.get("judgments", ())):
                row = completed(f"{response_id}/j{i}", output, {"response_id": response_id, "index": i})
                judgments.append(row | read_score(row, settings.judge))
        for m, n, output in prompt.get("comparisons", ()):
            winner = read_winner(completed("c", output, {}), Metajudge())["winner"]
            battles.setdefault(names[_only(prompt["judge"]["response"])], []).append((m, n, winner))
    scores = response_scores(group_by(judgments, "response_id"), settings.judge.minimum_valid)
    tested, judged = (
        [row for row in responses if "judge" in _prompt(table, row["prompt_id"])],
        group_by(judgments, "response_id"),
    )
    contests = decided(tested, judged, battles, settings)
    return {
        "scores": scores,
        "actor": actor_pairs(group_by(responses, "prompt_id"), scores, settings, 1, CHAT),
        "judge": judge_pairs(contests, settings, 1, CHAT),
        "meta_judged": {
            row["prompt_id"]: row["response_id"] for row in choose_meta_judged(tested, judged, settings, 1)
        },
        "wins": position_wins(battles),
        "elo": group_by(elo_rows(contests), "response_id"),
    }


def _prompt(table: dict, name: str) -> dict:
    return next(prompt for prompt in table["prompt"] if prompt["id"] == name)


def _only(value) -> int:
    return value if isinstance(value, int) else value[0]


def _allowed(value) -> list[int]:
    """The numbers that the seed may draw."""
    return [value] if isinstance(value, int) else value


PROMPTS = [(name, prompt["id"]) for name in FILES for prompt in golden(name)["prompt"]]


@pytest.mark.parametrize("name", FILES)
def test_positions(name: str):
    """Wins by position over the whole iteration, and their weights."""
    stated, wins = golden(name)["positions"], worked(name)["wins"]
    assert {place: wins[place] for place in ("first", "second", "neither")} == {
        place: stated[place] for place in ("first", "second", "neither")
    }
    total = wins["first"] + wins["second"]
    if total:
        assert (Fraction(stated["w1"]), Fraction(stated["w2"])) == (
            Fraction(wins["second"], total),
            Fraction(wins["first"], total),
        )


@pytest.mark.parametrize(("name", "prompt_id"), PROMPTS)
def test_actor(name: str, prompt_id: str):
    prompt, made = _prompt(golden(name), prompt_id), worked(name)["actor"][prompt_id]
    expected = prompt["actor"]
    if "reason" in expected:
        assert made == Reason(expected["reason"]), prompt["why"]
        return
    assert not isinstance(made, Reason), f"{made}\n{prompt['why']}"
    for side in ("chosen", "rejected"):
        assert int(made[f"{side}_id"].rsplit("/r", 1)[1]) in _allowed(expected[side]), prompt["why"]
        score = Fraction(expected[f"{side}_score"])
        assert made[f"{side}_score"] == to_number(score), prompt["why"]
        assert worked(name)["scores"][made[f"{side}_id"]] == score, prompt["why"]


@pytest.mark.parametrize(("name", "prompt_id"), [key for key in PROMPTS if "judge" in _prompt(golden(key[0]), key[1])])
def test_judge(name: str, prompt_id: str):
    prompt, all_made = _prompt(golden(name), prompt_id), worked(name)
    expected, made = prompt["judge"], all_made["judge"][prompt_id]
    response = all_made["meta_judged"][prompt_id]
    if "response" in expected:
        assert int(response.rsplit("/r", 1)[1]) in _allowed(expected["response"]), prompt["why"]
    if "elo" in expected:
        elo = [row["elo"] for row in all_made["elo"][response]]
        assert elo == pytest.approx(expected["elo"], abs=1e-4), prompt["why"]
    if "reason" in expected:
        assert made == Reason(expected["reason"]), prompt["why"]
        return
    assert not isinstance(made, Reason), f"{made}\n{prompt['why']}"
    for side in ("chosen", "rejected"):
        assert int(made[f"{side}_id"].rsplit("/j", 1)[1]) in _allowed(expected[side]), prompt["why"]


def test_the_iterations_are_many_and_show_every_reason():
    assert len(PROMPTS) >= 40 and len(set(PROMPTS)) == len(PROMPTS)
    shown = {
        kind: Counter(
            _prompt(golden(name), prompt_id).get(kind, {}).get("reason", "pair") for name, prompt_id in PROMPTS
        )
        for kind in ("actor", "judge")
    }
    assert shown["actor"]["pair"] >= 15 and set(shown["actor"]) >= {*ACTOR_REASONS}
    assert shown["judge"]["pair"] >= 10 and set(shown["judge"]) >= {*JUDGE_REASONS} - {Reason.NO_NEAR_SCORES}
    assert all(len(_prompt(golden(name), prompt_id)["why"]) > 40 for name, prompt_id in PROMPTS)
