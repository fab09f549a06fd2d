"""Golden iterations: invented texts whose pairs were worked out by hand from the method's description.

Each file of tests/golden is one iteration, whose prompts state the reasoning (`why`).
"""

import tomllib
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from records import BYTES_CHAT, actor_pairs, decided, judge_pairs, make_settings

from judging.judge import read_score
from judging.judge_pairs import elo_rows, position_wins
from judging.metajudge import choose_meta_judged, metajudge_items, read_winner
from judging.scores import ACTOR_REASONS, GUARD_REASONS, JUDGE_REASONS, Reason, response_scores, to_number
from sampling.request import Completion, Sampling
from sampling.worker import Item
from stages.records import group_by
from stages.settings import Guards, Judge, Metajudge

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.toml"))}
PROMPTS = {(name, prompt["id"]): prompt for name, table in GOLDEN.items() for prompt in table["prompt"]}
RULES = ("rho", "length_control", "max_response_characters", "max_judgment_characters")


def completed(name: str, output, record: dict) -> dict:
    """The row of a finished request, from a text or {text, finish_reason}."""
    output = output if isinstance(output, dict) else {"text": output}
    item = Item(name, list, Sampling(0.8, 0.95, 100), 0, "", {"id": name, **record})
    ids = list(output["text"].encode())
    return item.row(Completion(name, ids, output.get("finish_reason", "stop"), 0.0), BYTES_CHAT)


@cache
def worked(name: str) -> dict:
    """The code's results for a file: scores, pairs and reasons by prompt, wins by position, Elo by judgment."""
    table = GOLDEN[name]
    rule = table["rule"]
    judge = Judge(minimum_valid=rule["minimum_valid"], fractions=rule["fractions"])
    guards = Guards(**table.get("guards", {}))
    settings = replace(make_settings(**{key: rule[key] for key in RULES if key in rule}), judge=judge, guards=guards)
    responses, judged, battles = [], {}, {}
    for prompt in table["prompt"]:
        names = [f"{prompt['id']}/r{k}" for k in range(len(prompt["response"]))]
        for own, response in zip(names, prompt["response"], strict=True):
            row = {"id": own, "prompt_id": prompt["id"], "prompt": prompt["question"], "text": response["text"]}
            responses.append(row | {"finish_reason": response.get("finish_reason", "stop"), "ids": [0]})
            for i, output in enumerate(response.get("judgments", ())):
                row = completed(f"{own}/j{i}", output, {"response_id": own, "index": i})
                judged.setdefault(own, []).append(row | read_score(row, settings.judge))
        for m, n, output in prompt.get("comparisons", ()):
            winner = read_winner(completed("c", output, {}), Metajudge())["winner"]
            battles.setdefault(names[allowed(prompt["judge"]["response"])[0]], []).append((m, n, winner))
    scores = response_scores(judged, settings.judge.minimum_valid)
    tested = [row for row in responses if "judge" in PROMPTS[name, row["prompt_id"]]]
    contests = decided(tested, judged, battles, settings)
    chosen = list(choose_meta_judged(tested, judged, settings, 1))
    actor = actor_pairs(group_by(responses, "prompt_id"), scores, settings)
    by_id = {row["id"]: row for row in tested}
    return {
        "scores": scores,
        "actor": actor,
        "judge": judge_pairs(contests, settings, sum(not isinstance(pair, Reason) for pair in actor.values())),
        "asked": group_by(map(vars, metajudge_items(chosen, by_id, judged, BYTES_CHAT, settings, 1)), "group"),
        "meta_judged": {row["prompt_id"]: row["response_id"] for row in chosen},
        "wins": position_wins(battles),
        "elo": group_by(elo_rows(contests), "response_id"),
    }


def allowed(value) -> list[int]:
    """The numbers that the seed may draw."""
    return [value] if isinstance(value, int) else value


@pytest.mark.parametrize("name", GOLDEN)
def test_positions(name: str):
    """Wins by position over the whole iteration, and their weights."""
    stated, wins = GOLDEN[name]["positions"], worked(name)["wins"]
    assert all(wins[place] == stated[place] for place in ("first", "second", "neither"))
    if total := wins["first"] + wins["second"]:
        assert (Fraction(stated["w1"]) * total, Fraction(stated["w2"]) * total) == (wins["second"], wins["first"])


@pytest.mark.parametrize("key", PROMPTS)
def test_actor_and_judge(key):
    prompt, made = PROMPTS[key], worked(key[0])
    for kind, letter in (("actor", "r"), ("judge", "j")):
        stated, pair = prompt.get(kind, {}), made[kind].get(key[1])
        if "reason" in stated or (isinstance(pair, Reason) and "or_reason" in stated):
            assert pair == Reason(stated.get("reason") or stated["or_reason"]), prompt["why"]
        elif stated:
            assert not isinstance(pair, Reason), f"{pair}\n{prompt['why']}"
            for side in ("chosen", "rejected"):
                assert int(pair[f"{side}_id"].rsplit(f"/{letter}", 1)[1]) in allowed(stated[side]), prompt["why"]
    for side in ("chosen", "rejected") if "reason" not in prompt["actor"] else ():
        score, pair = Fraction(prompt["actor"][f"{side}_score"]), made["actor"][key[1]]
        assert made["scores"][pair[f"{side}_id"]] == score, prompt["why"]
        assert pair[f"{side}_score"] == to_number(score), prompt["why"]
    stated, response = prompt.get("judge", {}), made["meta_judged"].get(key[1])
    if "response" in stated:
        assert int(response.rsplit("/r", 1)[1]) in allowed(stated["response"]), prompt["why"]
    if "elo" in stated:
        elo = [row["elo"] for row in made["elo"][response]]
        assert elo == pytest.approx(stated["elo"], abs=1e-4), prompt["why"]


@pytest.mark.parametrize("name", [name for name, table in GOLDEN.items() if "guards" in table])
def test_guards(name: str):
    """How many pairs each guard removes, and what the meta-judge reads of judgments with hidden scores."""
    removed = Counter(pair for pair in worked(name)["judge"].values() if pair in GUARD_REASONS)
    assert {str(reason): count for reason, count in removed.items()} == GOLDEN[name]["removed"]
    for prompt in (prompt for prompt in GOLDEN[name]["prompt"] if "shown" in prompt):
        for item in worked(name)["asked"][prompt["id"]]:
            a, b = (prompt["shown"][item["record"][place]] for place in ("first", "second"))
            text = item["messages"]()[-1]["content"]
            assert f"<judgment_a>\n{a}\n</judgment_a>\n\n<judgment_b>\n{b}\n</judgment_b>" in text


def test_the_iterations_are_many_and_show_every_reason():
    assert len(PROMPTS) >= 40 and all(len(prompt["why"]) > 40 for prompt in PROMPTS.values())
    for kind, pairs, reasons in (
        ("actor", 15, {*ACTOR_REASONS}),
        ("judge", 10, {*JUDGE_REASONS, *GUARD_REASONS} - {Reason.NO_NEAR_SCORES}),
    ):
        stated = [prompt.get(kind, {}) for prompt in PROMPTS.values()]
        shown = Counter(own.get("reason") or own.get("or_reason", "pair") for own in stated)
        assert shown["pair"] >= pairs and set(shown) >= reasons
