"""prepare/seed_prompts.py: first questions of conversations become seed prompts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prepare import seed_prompts as seeds
from prepare.new_prompts import read_seeds
from stages.files import UserError
from stages.settings import load_settings

ROOT = Path(__file__).parents[2]


def reply(name: str, rank: int, **fields) -> dict:
    return {"message_id": name, "text": f"answer {name}", "role": "assistant", "lang": "en", "rank": rank} | fields


def tree(name: str, text: str, *replies: dict, **fields) -> dict:
    root = {"message_id": name, "text": text, "role": "prompter", "lang": "en", "replies": list(replies)} | fields
    return {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": root}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    further = {"message_id": "q1b", "text": "And then?", "role": "prompter", "lang": "en"}
    further["replies"] = [reply("x", 0), reply("y", 1)]
    rows = [
        tree("q1", "Why is the sky blue?\n", reply("a", 0, replies=[further]), reply("b", 1)),
        tree("q2", "Pourquoi ?", reply("c", 0), reply("d", 1), lang="fr"),
        tree("q3", "Only one answer", reply("e", 0)),
        tree("q4", "Why is the sky blue?", reply("f", 0), reply("g", 1)),
        tree("q5", "Write a poem.", reply("h", 0), reply("i", 1)),
        tree("q6", "Name a river.", reply("j", 0), reply("k", 1)),
    ]
    (tmp_path / "trees.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = 'name = "t"\niteration = []\n[model]\npath = "m"\n[respond]\nprompts_per_iteration = 1\n'
    text += '[eft]\nsources = ["trees.jsonl"]\n[prompts]\nseeds = "seeds.jsonl"\nshots = 2\ngenerated_shots = 0\n'
    (tmp_path / "config.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def main(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["seeds", "--config", "config.toml"])
    seeds.main()


def test_first_questions_that_people_ranked_answers_to(place, monkeypatch):
    main(monkeypatch)
    settings = load_settings(place / "config.toml")
    assert [(row["id"], row["prompt"]) for row in read_seeds(settings.prompts)] == [
        ("q1", "Why is the sky blue?"),
        ("q5", "Write a poem."),
        ("q6", "Name a river."),
    ]
    with pytest.raises(UserError, match=r"seeds\.jsonl: exists already"):
        main(monkeypatch)


def test_a_draw_by_the_seed(place):
    settings = load_settings(place / "config.toml")
    draws = {tuple(row["id"] for row in seeds.seed_prompts(replace(settings, seed=i), 2)) for i in range(20)}
    assert draws == {("q1", "q5"), ("q1", "q6"), ("q5", "q6")}
    with pytest.raises(UserError, match="only 3 first questions, but 4 are wanted"):
        seeds.seed_prompts(settings, 4)


def test_a_config_without_sources(place, monkeypatch):
    text = (place / "config.toml").read_text()
    (place / "config.toml").write_text(text.replace('["trees.jsonl"]', "[]"))
    with pytest.raises(UserError, match="must both name files"):
        main(monkeypatch)
