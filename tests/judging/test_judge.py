"""Requests and records of the judge and the meta-judge; and from responses to pairs with a mock engine."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import records
from made_runs import stage
from mock_engine import mock_model
from records import BYTES_CHAT as CHAT
from records import judgments, response

import judging.pairs
from judging.judge import JUDGE, judge_items, read_score
from judging.metajudge import METAJUDGE, choose_meta_judged, metajudge_items, read_winner
from judging.pairs import PAIRS
from judging.rubric import judge_prompt, meta_prompt
from judging.scores import distinct_responses
from sampling.request import Completion, Sampling
from stages.files import read_jsonl, read_shards
from stages.records import group_by
from stages.seeds import request_seed
from stages.settings import EngineOptions, Judge, Metajudge, Settings

RESPONSES = [response(1, 0, "a"), response(1, 1, "b"), response(1, 2, "a"), response(2, 0, "c")]
RESPONSES += [response(3, 0, "", "too_long")]
JUDGMENTS = group_by(
    judgments("p1/r0", [4, 4], "wx") + judgments("p1/r1", [1, None, 5, 5, 3], "u?vvy") + judgments("p2/r0", [3]),
    "response_id",
)
DRAWN = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 50}


def make_settings(form=("full", "last"), seed=5, **meta) -> Settings:
    drawn = DRAWN | dict(zip(("prompt_style", "verdict_position"), form, strict=True))
    return replace(records.make_settings(seed=seed), judge=Judge(**drawn), metajudge=Metajudge(**drawn, **meta))


def judged(*form, iteration: int = 1) -> list:
    return list(judge_items(distinct_responses(RESPONSES), CHAT, make_settings(*form), iteration, 3))


def compared(*form, judgments=JUDGMENTS, **changes) -> list:
    settings, by_id = make_settings(*form, **changes), {row["id"]: row for row in RESPONSES}
    chosen = choose_meta_judged(RESPONSES, judgments, settings, 1)
    return list(metajudge_items(chosen, by_id, judgments, CHAT, settings, 1))


def test_each_distinct_response_is_judged_n_times():
    items = judged()
    assert [item.name for item in items] == [f"{name}/j{i}" for name in ("p1/r0", "p1/r1", "p2/r0") for i in range(3)]
    assert [item.group for item in items] == ["p1"] * 6 + ["p2"] * 3
    assert items[4].record == {"id": "p1/r1/j1", "response_id": "p1/r1", "prompt_id": "p1", "index": 1}
    assert items[0].sampling == Sampling(0.7, 0.9, 50, frozenset({0}))
    seeds = [item.seed for t in (1, 2) for item in judged(iteration=t)]
    assert len(set(seeds)) == len(seeds) == 18 and seeds[1] == request_seed(5, 1, "judge", "p1/r0/j1")


def test_all_ordered_pairs_of_the_most_varied_responses_distinct_judgments():
    few = {"response_id": None, "judgments": [], "reason": "too_few_judgments"}
    assert list(choose_meta_judged(RESPONSES, JUDGMENTS, make_settings(), 1)) == [
        {"prompt_id": "p1", "response_id": "p1/r1", "judgments": [0, 2, 4], "reason": None},
        {"prompt_id": "p2"} | few,
        {"prompt_id": "p3"} | few,
    ]
    items = compared()
    orders = [(0, 2), (0, 4), (2, 0), (2, 4), (4, 0), (4, 2)]
    assert [(item.record["first"], item.record["second"]) for item in items] == orders
    assert [item.name for item in items] == [f"p1/r1/m{m}-{n}" for m, n in orders]
    assert {item.group for item in items} == {"p1"} and len({item.seed for item in items}) == 6
    record = {"id": "p1/r1/m0-4", "response_id": "p1/r1", "prompt_id": "p1", "first": 0, "second": 4}
    assert items[1].record == record and items[0].sampling == Sampling(0.7, 0.9, 50, frozenset({0}))
    assert items[1].seed == request_seed(5, 1, "metajudge", "p1/r1/m0-4")


def test_the_seed_and_the_response_draw_the_share_of_opponents():
    def share(sample: int, seed: int) -> tuple:
        name = f"p1/r{sample}"
        items = compared(judgments={name: judgments(name, [1, 2, 3, 4, 5, 5, 5])}, seed=seed, opponents=2)
        return tuple((item.record["first"], item.record["second"]) for item in items)

    assert len({share(sample, seed) for sample in (0, 1) for seed in range(4)}) == 8 and len(share(0, 0)) == 14


@pytest.mark.parametrize("form", [("full", "last"), ("compact", "first")])
def test_the_requests_are_the_rubrics_prompts(form):
    assert judged(form)[3].request(CHAT).ids == CHAT.prompt_ids(judge_prompt("question 1", "b", *form))
    assert compared(form)[2].request(CHAT).ids == CHAT.prompt_ids(meta_prompt("question 1", "b", "v", "u", *form))


@pytest.mark.parametrize(
    ("text", "finish_reason", "verdict", "asked"),
    [
        ("Good.\nScore: 4", "stop", 4, Judge()),
        ("Good.\nScore: 4.5", "stop", "fraction", Judge()),
        ("Score: 4.5", "stop", 4.5, Judge(fractions=True)),
        ("Score: 3\nScore: 4", "stop", 3, Judge(verdict_position="first")),
        ("Good.\nScore: 4", "length", "truncated", Judge()),
        ("", "too_long", "too_long", Judge()),
        ("B.\nWinner: [Judgement B]", "stop", "second", Metajudge()),
        ("Winner: B\nA", "stop", "second", Metajudge(verdict_position="first")),
        ("Both.\nWinner: A or B", "stop", "ambiguous", Metajudge()),
        ("A.\nWinner: Judgment A", "length", "truncated", Metajudge()),
    ],
)
def test_records(text: str, finish_reason, verdict, asked):
    scores = isinstance(asked, Judge)
    item, name, read = (judged()[1], "score", read_score) if scores else (compared()[1], "winner", read_winner)
    ids = [*text.encode(), 0] if finish_reason == "stop" else list(text.encode())
    row = item.row(Completion(item.name, ids, finish_reason, -2.5), CHAT)
    row |= read(row, asked)
    good = verdict in ("first", "second") or not isinstance(verdict, str)
    sampled = {"ids": ids, "text": text, "finish_reason": finish_reason, "logprob": -2.5, "seed": item.seed}
    assert row == item.record | sampled | {name: verdict if good else None, "failure": None if good else verdict}
    assert json.loads(json.dumps(row)) == row


def speak(prompt: str, seed: int) -> tuple[str, str]:
    """Scores a response by its letters and prefers the judgment that scores higher, shown first or second."""
    if "Judgment A:\n" in prompt:
        a, b = (prompt.split(f"Judgment {x}:\nScore: ")[1][0] for x in "AB")
        return "Winner: " + ("A" if a > b else "B" if b > a else "Tie"), "stop"
    return f"Score: {prompt.split('Response:')[1].count('x') + seed % 3 - 1}\nSeed {seed}.", "stop"


def test_from_responses_to_pairs(tmp_path, monkeypatch):
    mock_model(monkeypatch, tmp_path / "model", speak)
    monkeypatch.setattr(judging.pairs, "load_chat", lambda folder: CHAT)
    settings = replace(make_settings(("compact", "first")), engine=EngineOptions(shard_requests=20))
    stage(tmp_path / "responses", [response(p, s, "x" * (s + 1) + f" by {s}") for p in range(5) for s in range(4)])
    inputs = {name: tmp_path / name for name in ("model", "responses")}
    for one, name in ((JUDGE, "judgments"), (METAJUDGE, "comparisons"), (PAIRS, "pairs")):
        one.run(one.job(settings, tmp_path / name, 1, **inputs))
        inputs[name] = tmp_path / name

    judged, compared = (list(read_shards(inputs[name])) for name in ("judgments", "comparisons"))
    assert len(judged) == 5 * 4 * 11 and all(row["failure"] is None for row in judged)
    assert Counter(row["prompt_id"] for row in compared) == {f"p{p}": 110 for p in range(5)}
    actor, pairs = (list(read_jsonl(tmp_path / "pairs" / f"{kind}.jsonl")) for kind in ("actor", "judge"))
    assert [(row["chosen_id"], row["rejected_id"]) for row in actor] == [(f"p{p}/r3", f"p{p}/r0") for p in range(5)]
    score = {row["id"]: row["score"] for row in judged}
    assert [row["response_id"] for row in pairs] == list(dict.fromkeys(row["response_id"] for row in compared))
    for pair in pairs:
        own = [row["score"] for row in judged if row["response_id"] == pair["response_id"]]
        assert (score[pair["chosen_id"]], score[pair["rejected_id"]]) == (max(own), min(own))
