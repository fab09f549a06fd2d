"""Meta-judge requests and comparison records without a model; and from responses to pairs with a mock engine."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from records import BYTES_CHAT as CHAT
from records import response

import judging.pairs
import sampling.worker
from judging.judge import JUDGE
from judging.metajudge import METAJUDGE, choose_meta_judged, metajudge_items, read_winner
from judging.pairs import PAIRS
from judging.rubric import meta_prompt
from sampling.request import Completion, Sampling
from stages.files import read_jsonl, read_manifest, read_shards, write_jsonl, write_manifest
from stages.records import group_by
from stages.seeds import request_seed
from stages.settings import Iteration, Metajudge, Model, Respond, Settings


def make_settings(**metajudge) -> Settings:
    return Settings(
        name="test",
        model=Model(path="m"),
        respond=Respond(prompts="p", prompts_per_iteration=1),
        metajudge=Metajudge(**{"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 50} | metajudge),
        iteration=[Iteration()],
        seed=5,
    )


def judgment(response_id: str, index: int, score, text: str) -> dict:
    return {"response_id": response_id, "index": index, "score": score, "text": text}


RESPONSES = [response(1, 0, "a"), response(1, 1, "b"), response(2, 0, "c"), response(3, 0, "", "too_long")]
JUDGMENTS = group_by(
    [
        judgment("p1/r0", 0, 4, "w"),
        judgment("p1/r0", 1, 4, "x"),
        judgment("p1/r1", 0, 1, "u"),
        judgment("p1/r1", 1, None, "?"),
        judgment("p1/r1", 2, 5, "v"),
        judgment("p1/r1", 3, 5, "v"),
        judgment("p1/r1", 4, 3, "y"),
        judgment("p2/r0", 0, 3, "only one"),
    ],
    "response_id",
)


def items_of(settings: Settings) -> list:
    chosen = choose_meta_judged(RESPONSES, JUDGMENTS, settings, 1)
    return list(metajudge_items(chosen, {row["id"]: row for row in RESPONSES}, JUDGMENTS, CHAT, settings, 1))


def test_which_response_is_meta_judged_is_recorded():
    few = {"response_id": None, "judgments": [], "reason": "too_few_judgments"}
    assert list(choose_meta_judged(RESPONSES, JUDGMENTS, make_settings(), 1)) == [
        {"prompt_id": "p1", "response_id": "p1/r1", "judgments": [0, 2, 4], "reason": None},
        {"prompt_id": "p2"} | few,
        {"prompt_id": "p3"} | few,
    ]


def test_all_ordered_pairs_of_the_most_varied_responses_distinct_judgments():
    items = items_of(make_settings())
    orders = [(0, 2), (0, 4), (2, 0), (2, 4), (4, 0), (4, 2)]
    assert [(item.record["first"], item.record["second"]) for item in items] == orders
    assert [item.name for item in items] == [f"p1/r1/m{m}-{n}" for m, n in orders]
    assert {item.group for item in items} == {"p1"}
    assert items[1].record == {
        "id": "p1/r1/m0-4",
        "response_id": "p1/r1",
        "prompt_id": "p1",
        "first": 0,
        "second": 4,
    }
    assert items[0].sampling == Sampling(0.7, 0.9, 50, frozenset({0}))
    assert len({item.seed for item in items}) == 6
    assert items[1].seed == request_seed(5, 1, "metajudge", "p1/r1/m0-4")


@pytest.mark.parametrize(("form", "verdict"), [("full", "last"), ("compact", "first")])
def test_the_first_judgment_is_shown_as_a(form, verdict):
    items = items_of(make_settings(prompt_style=form, verdict_position=verdict))
    assert items[2].request(CHAT).ids == CHAT.prompt_ids(meta_prompt("question 1", "b", "v", "u", form, verdict))


@pytest.mark.parametrize(
    ("text", "finish_reason", "winner", "failure"),
    [
        ("A.\nWinner: Judgment A", "stop", "first", None),
        ("B.\nWinner: [Judgement B]", "stop", "second", None),
        ("Both.\nWinner: Tie", "stop", "tie", None),
        ("Both.\nWinner: A or B", "stop", None, "ambiguous"),
        ("A.\nWinner: Judgment A", "length", None, "truncated"),
        ("", "too_long", None, "too_long"),
        ("Winner: A\nIt is closer.", "stop", None, "missing"),
    ],
)
def test_comparison_records(text: str, finish_reason, winner, failure):
    item = items_of(make_settings())[1]
    ids = [*text.encode(), 0] if finish_reason == "stop" else list(text.encode())
    row = item.row(Completion(item.name, ids, finish_reason, -2.5), CHAT)
    assert row | read_winner(row, Metajudge()) == item.record | {
        "ids": ids,
        "text": text,
        "finish_reason": finish_reason,
        "logprob": -2.5,
        "seed": item.seed,
        "winner": winner,
        "failure": failure,
    }
    row = {"text": "Winner: B\nA", "finish_reason": "stop"}
    assert read_winner(row, Metajudge(verdict_position="first"))["winner"] == "second"


def test_the_key_knows_model_inputs_and_settings(tmp_path):
    for name in ("m", "r", "j", "other"):
        (tmp_path / name).write_text(name)
    paths = [tmp_path / name for name in ("m", "r", "j")]

    def key(settings, model: Path, responses: Path, judgments: Path, iteration: int = 1, **more: Path) -> str:
        inputs = {"model": model, "responses": responses, "judgments": judgments, **more}
        return METAJUDGE.job(settings, tmp_path, iteration, **inputs).key

    keys = {key(make_settings(), *paths), key(make_settings(), *paths, 2), key(make_settings(top_p=1.0), *paths)}
    for i in range(3):
        keys.add(key(make_settings(), *paths[:i], tmp_path / "other", *paths[i + 1 :]))
    keys.add(key(make_settings(), *paths, scores=tmp_path / "other"))
    assert len(keys) == 7


class MockEngine:
    """Scores a response by its letters and prefers the judgment that scores higher, shown first or second."""

    computed_tokens = 0

    def run(self, requests, on_step=None):
        for request in reversed(list(requests)):
            prompt = bytes(request.ids[1:]).decode()
            if "Judgment A:\n" in prompt:
                a, b = (prompt.split(f"Judgment {x}:\nScore: ")[1][0] for x in "AB")
                text = "Winner: " + ("A" if a > b else "B" if b > a else "Tie")
            else:
                noise = request.seed % 3 - 1
                text = f"Score: {prompt.split('Response:')[1].count('x') + noise}\nSeed {request.seed}."
            yield Completion(request.id, [*text.encode(), 0], "stop", -1.0)


CONFIG = """
name = "test"
[model]
path = "m"
[engine]
shard_requests = 20
[respond]
prompts = "p"
prompts_per_iteration = 2
[judge]
prompt_style = "compact"
verdict_position = "first"
[metajudge]
prompt_style = "compact"
verdict_position = "first"
[[iteration]]
"""


def test_from_responses_to_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling.worker, "load_engine", lambda settings, model_dir, log: MockEngine())
    for module in (sampling.worker, judging.pairs):
        monkeypatch.setattr(module, "load_chat", lambda folder: CHAT)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    rows = [response(p, s, "x" * (s + 1) + f" by {s}") for p in range(5) for s in range(4)]
    shard = tmp_path / "responses" / "shards" / "0.jsonl"
    write_jsonl(shard, rows)
    write_manifest(tmp_path / "responses", "respond", "key", [shard], shards=["shards/0.jsonl"])

    def command(stage, out: str, *inputs: str):
        flags = ["--config", str(tmp_path / "config.toml"), "--model", str(tmp_path / "model"), "--iteration", "1"]
        for name in inputs:
            flags += [f"--{name}", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["command", *flags, "--out", str(tmp_path / out)])
        stage.main()

    command(JUDGE, "judgments", "responses")
    command(METAJUDGE, "comparisons", "responses", "judgments")
    command(PAIRS, "pairs", "responses", "judgments", "comparisons")

    judged = list(read_shards(tmp_path / "judgments"))
    assert len(judged) == 5 * 4 * 11 and all(row["failure"] is None for row in judged)
    compared = list(read_shards(tmp_path / "comparisons"))
    assert Counter(row["prompt_id"] for row in compared) == {f"p{p}": 110 for p in range(5)}
    actor = list(read_jsonl(tmp_path / "pairs" / "actor.jsonl"))
    assert [(row["chosen_id"], row["rejected_id"]) for row in actor] == [(f"p{p}/r3", f"p{p}/r0") for p in range(5)]
    score = {row["id"]: row["score"] for row in judged}
    pairs = list(read_jsonl(tmp_path / "pairs" / "judge.jsonl"))
    assert [row["response_id"] for row in pairs] == list(dict.fromkeys(row["response_id"] for row in compared))
    for pair in pairs:
        own = [row["score"] for row in judged if row["response_id"] == pair["response_id"]]
        assert (score[pair["chosen_id"]], score[pair["rejected_id"]]) == (max(own), min(own))
    assert read_manifest(tmp_path / "pairs")["counts"]["judge"] == 5
