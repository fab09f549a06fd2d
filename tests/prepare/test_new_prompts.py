"""New prompts: reading and filtering completions by hand, and the whole stage with a mock engine."""

import random
import re
from itertools import groupby

import pytest
import torch.distributed as dist
from mock_engine import mock_model

import sampling.worker
from prepare.new_prompts import NEW_PROMPTS, Dropped, Filter, draw_examples, read_prompt, read_seeds, request_prompt
from stages.command import UserError
from stages.files import read_jsonl, read_manifest, read_shards, write_jsonl
from stages.settings import Prompts


def test_a_request_shows_the_examples_as_they_are():
    [message] = request_prompt(["Use {braces} and %s.", "Two\nlines"])
    assert message["role"] == "user" and message["content"].startswith("Here are 2 tasks")
    assert "\n\nTask 1: Use {braces} and %s.\n\nTask 2: Two\nlines\n\n" in message["content"]
    assert 'Begin with "Task 3:"' in message["content"]


WRITE = ["Task 9: Write it.", "TASK 12: Write it.", "**Task 9:** Write it.", "**Task 9: Write it.**"]
WRITE += ["Task 9: 'Write it.'", "### Task 9:\n\nWrite it.", "**Task 9:** “ Write it. ”", "Sure:\n\nTask 9: Write it."]
WRITE += ["Task 9: Write it.\n**Task 10:** Sing it.\nTask 11: Th", "Task 9: Write it.\n\n---\n***\nTask 10: Sing it."]
WRITE += [
    "Task 9\uff1aWrite it.\nTask \uff11\uff10\uff1aSing it.",
    "**Task \uff19**\uff1a「Write it.」",
    "Task 9: „Write it.“",
]
WRITE += ["Task \uff19:『Write it.』", "**Task \uff19\uff1aWrite it.**", "**Task 9\uff1a** Write it."]


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        *((text, "stop", "Write it.") for text in WRITE),
        *((f"Task 9: {text}", "stop", text) for text in ('"Yes" or "no"?', "A list:\n- one\n\nIs task 3: hard?")),
        ("Task 9: Write it.\n\nTask 10: Si", "length", "Write it."),
        ("Task 9: Write it.\n\nTask 10", "length", Dropped.TRUNCATED),
        ("Task 9: Order these.\nTask 1: buy\nTask 2: rest", "stop", "Order these.\nTask 1: buy\nTask 2: rest"),
        ("**Task 9: A haiku**\n\nWrite one on **rain**.", "stop", "A haiku\n\nWrite one on **rain**."),
        ("Write it.", "stop", Dropped.UNLABELLED),
        *((text, "stop", Dropped.EMPTY) for text in ("\n \n", "Task 9: \n\nTask 10: Sing it.", "Task 9: '...'")),
        ("", "too_long", Dropped.TOO_LONG),
    ],
)
def test_readings_by_hand(text: str, finish_reason: str, expected: str):
    assert read_prompt(text, finish_reason) == expected


@pytest.mark.parametrize("text", [" \n" * 5000, "*" * 20000, "#" * 20000 + "task", "task " * 5000])
def test_reading_takes_no_longer_for_odd_texts(text: str):
    assert read_prompt(text, "length") in (Dropped.TRUNCATED, Dropped.UNLABELLED)


OPTIONS = Prompts(min_words=3, max_words=12, max_repetition=0.25, max_rouge_l=0.7, ngram=5, words=["map", "go to"])
SEEDS = ["Write a poem about the sea."]
COUNT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
EVALUATION = ["Why do cats purr when they sleep?", "Boil four brown eggs", "Name three colours"]


@pytest.mark.parametrize(
    ("expected", "tasks"),
    [
        (Dropped.TOO_FEW_WORDS, ["Explain rain."]),
        (Dropped.TOO_MANY_WORDS, [" ".join(COUNT)]),
        (Dropped.REPETITIVE, ["Say yes or no, say yes or no."]),  # 2 of 6
        (Dropped.WORD, ["Colour the MAP of Spain", "Should I go\nto a dentist?"]),
        (Dropped.EVALUATION, ["Tell me why DO cats purr, when it rains", "How do I boil four brown eggs?"]),
        # The second one's ROUGE-L is 2 * 5 / (6 + 7) = 0.77.
        (Dropped.SIMILAR, ["Write a poem about the moon.", "Write a poem on the deep sea."]),
        (None, ["Explain heavy rain.", " ".join(COUNT[:12]), "Why are maples red, and do they go tomorrow?"]),
        (None, ["Tell me why do cats purr if it rains", "How do I boil four large eggs?"]),
        # Of three words 1 of 6 are repeated; evaluation prompts of fewer than four words do not count; 2 * 5 / (6 + 9).
        (None, ["Say yes or no, but say yes or", "Please name three colours, quickly"]),
        (None, ["Write a short poem on the deep blue sea."]),
    ],
)
def test_the_reasons_by_hand(expected: Dropped | None, tasks: list[str]):
    for text in tasks:
        accept = Filter(OPTIONS, SEEDS, EVALUATION)
        assert accept.read("Task 9: " + text, "stop") == (expected or text)
        if expected is None:
            assert accept.read("Task 9: " + text.lower(), "stop") == Dropped.SIMILAR


ROWS = [{"id": f"s{i}", "prompt": f"seed {i}"} for i in range(10)]
NEW = [{"id": f"new/{i:05}", "prompt": f"new {i}"} for i in range(5)]


def test_examples_are_distinct_and_follow_from_the_seed():
    options = Prompts(shots=6, generated_shots=2)
    drawn = [[row["id"] for row in draw_examples(ROWS, NEW, options, seed)] for seed in range(200)]
    assert {name for ids in drawn for name in ids} == {row["id"] for row in ROWS + NEW}
    assert {ids.index(name) for ids in drawn for name in ids if name.startswith("new/")} == set(range(6))
    assert all(row in ROWS for row in draw_examples(ROWS, NEW[:1], options, 3))


WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "mu", "re") for b in ("lan", "min", "sot", "tek", "vur")]


def task(prompt: str, seed: int) -> tuple[str, str]:
    """A task of random words, sometimes with a defect."""
    draw = random.Random(seed)
    text = "Task 9: " + " ".join(draw.choices(WORDS, k=8))
    kind = draw.randrange(10)
    text = {0: "Hello", 1: "Task 9: ha", 2: "Task 9: plot it on the map"}.get(kind, text)
    return text, "length" if kind == 3 else "stop"


CONFIG = """
name = "test"
model = {path = "m"}
engine = {threads = 1, shard_requests = 7}
respond = {prompts_per_iteration = 2}
[prompts]
seeds = "SEEDS"
count = 40
round_attempts = 20
max_attempts = 90
shots = 4
evaluation = []
[[iteration]]
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the command on a config with lines of CONFIG replaced; returns the folder and its requests by round."""
    engine = mock_model(monkeypatch, tmp_path / "model", task)
    write_jsonl(tmp_path / "seeds.jsonl", ROWS)

    def run(out: str = "out", **options: int | str):
        engine.asked.clear()
        text = CONFIG.replace("SEEDS", str(tmp_path / "seeds.jsonl"))
        for key, value in options.items():
            text = re.sub(rf"^{key} = .*", f"{key} = {value}", text, flags=re.MULTILINE)
        (tmp_path / "config.toml").write_text(text)
        flags = ["--config", tmp_path / "config.toml", "--model", tmp_path / "model", "--out", tmp_path / out]
        NEW_PROMPTS.run(NEW_PROMPTS.read_arguments([*map(str, flags)]))
        return tmp_path / out, [list(own) for _, own in groupby(engine.asked, lambda request: request.id.split("/")[1])]

    return run


def contents(out) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.jsonl")}


def test_rounds_until_there_are_enough(stage):
    out, rounds = stage()
    kept, counts = list(read_jsonl(out / "prompts.jsonl")), dict(read_manifest(out)["counts"])
    sampled = [row for folder in sorted((out / "rounds").iterdir()) for row in read_shards(folder)]
    assert [row["id"] for row in kept] == [f"new/{i:05}" for i in range(40)]
    assert counts["kept"] == 40 and counts["attempts"] == len(sampled) == 20 * len(rounds)
    assert counts.pop("attempts") == sum(counts.values()) and counts.keys() - {"kept"} == set(Dropped)
    assert min(counts[k] for k in ("unlabelled", "truncated", "too_few_words", "word", "not_needed")) > 0
    by_id = {row["id"]: row for row in sampled}
    assert len(by_id) == len(sampled) == len({row["seed"] for row in sampled})
    for row in kept:
        attempt = by_id[row["attempt"]]
        assert row["prompt"] == read_prompt(attempt["text"], attempt["finish_reason"])
        assert (row["round"], row["shots"]) == (attempt["round"], attempt["shots"])
    places = [[*by_id].index(row["attempt"]) for row in kept]
    assert places == sorted(places)
    texts = {row["id"]: row["prompt"] for row in ROWS + kept}
    requests = {request.id: bytes(request.ids[1:]).decode() for own in rounds for request in own}
    round_of = {row["id"]: row["round"] for row in kept}
    for row in sampled:
        new = [name for name in row["shots"] if name.startswith("new/")]
        assert len(set(row["shots"])) == 4 and len(new) == (2 if row["round"] else 0)
        assert all(round_of[name] < row["round"] for name in new)
        assert requests[row["id"]] == request_prompt([texts[name] for name in row["shots"]])[0]["content"]


def test_a_killed_run_ends_in_the_same_bytes(stage):
    out, _ = stage()
    before = contents(out)
    (out / "manifest.json").unlink()
    for number in (1, 2):
        folder = out / "rounds" / f"{number:04}"
        (folder / "manifest.json").unlink()
        sorted(folder.glob("shards-*/*.jsonl"))[1].unlink()
    assert [len(own) for own in stage()[1]] == [5, 5]
    assert contents(out) == before and stage()[1] == []
    reseeded, _ = stage("other", name='"test"\nseed = 1')
    assert contents(reseeded) != before


def test_a_setting_resamples_only_the_rounds_that_it_changes(stage):
    _, rounds = stage()
    assert stage(count=41)[1] == []  # the last round had more
    assert stage(count="40\nmax_words = 140")[1] == []  # no prompt was so long
    assert len(stage(count="40\nmin_words = 1")[1]) >= len(rounds) - 2  # "ha" is kept in the first round
    assert len(stage(count="40\ntemperature = 0.5")[1]) == len(rounds)


def test_a_run_out_of_attempts_says_so(stage, capsys):
    out, rounds = stage(max_attempts=50, count=500)
    kept, counts = list(read_jsonl(out / "prompts.jsonl")), read_manifest(out)["counts"]
    assert [len(own) for own in rounds] == [20, 20, 10]
    assert counts["attempts"] == 50 and counts["kept"] == len(kept) and counts["not_needed"] == 0
    warning = f"warning: {out}: {len(kept)} of the 500 prompts wanted: attempts 50, kept {len(kept)}, "
    assert warning in capsys.readouterr().err
    assert [len(own) for own in stage(max_attempts=60, count=500)[1]] == [20]  # the last round, which has grown


def test_every_rank_filters_and_the_first_writes(stage, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sampling.worker, "rendezvous", lambda stage, key: (dist.HashStore(), 1))
    out, rounds = stage()
    assert len(rounds) > 1 and not (out / "prompts.jsonl").exists() and read_manifest(out) is None
    monkeypatch.setenv("RANK", "0")
    assert stage()[1] == [] and read_manifest(out)["counts"]["kept"] == 40


def test_seeds_that_do_not_do(stage, tmp_path):
    write_jsonl(tmp_path / "seeds.jsonl", [*ROWS, ROWS[2]])
    with pytest.raises(UserError, match=rf"^{tmp_path / 'seeds.jsonl'}, line 11: id 's2' came before; give each"):
        stage()
    with pytest.raises(UserError, match=r"^prompts\.seeds is empty; name a JSON-lines file"):
        read_seeds(Prompts())
