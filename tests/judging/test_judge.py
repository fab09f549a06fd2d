"""Judge requests and judgment records, without a model: the judged responses, their requests, and the scores read."""

import json

import pytest
from records import BYTES_CHAT as CHAT
from records import response

from judging.judge import JUDGE, judge_items, read_score
from judging.rubric import judge_prompt
from judging.scores import distinct_responses
from sampling.request import Completion, Sampling
from stages.seeds import request_seed
from stages.settings import Iteration, Judge, Model, Respond, Settings


def make_settings(**judge) -> Settings:
    return Settings(
        name="test",
        model=Model(path="m"),
        respond=Respond(prompts="p", prompts_per_iteration=1),
        judge=Judge(**{"N": 3, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 50} | judge),
        iteration=[Iteration()],
        seed=5,
    )


RESPONSES = [
    response(1, 0, "a"),
    response(1, 1, "b", "length"),
    response(1, 2, "a"),
    response(1, 3, "", "too_long"),
    response(2, 0, "a"),
]
ONCE = distinct_responses(RESPONSES)


def test_each_distinct_response_is_judged_n_times():
    items = list(judge_items(ONCE, CHAT, make_settings(), 1, 3))
    assert [item.name for item in items] == [f"{name}/j{i}" for name in ("p1/r0", "p1/r1", "p2/r0") for i in range(3)]
    assert [item.group for item in items] == ["p1"] * 6 + ["p2"] * 3
    assert items[4].record == {"id": "p1/r1/j1", "response_id": "p1/r1", "prompt_id": "p1", "index": 1}
    assert items[0].sampling == Sampling(0.7, 0.9, 50, frozenset({0}))


@pytest.mark.parametrize(("form", "verdict"), [("full", "last"), ("compact", "first")])
def test_the_request_is_the_rubrics_prompt(form, verdict):
    items = list(judge_items(ONCE, CHAT, make_settings(prompt_style=form, verdict_position=verdict), 1, 3))
    assert items[3].request(CHAT).ids == CHAT.prompt_ids(judge_prompt("question 1", "b", form, verdict))


def test_no_two_judgments_share_their_noise():
    seeds = [item.seed for t in (1, 2) for item in judge_items(ONCE, CHAT, make_settings(), t, 3)]
    assert len(set(seeds)) == len(seeds) == 18
    assert seeds[1] == request_seed(5, 1, "judge", "p1/r0/j1")


@pytest.mark.parametrize(
    ("text", "finish_reason", "score", "failure"),
    [
        ("Good.\nScore: 4", "stop", 4, None),
        ("Good.\nScore: 0", "stop", 0, None),
        ("Good.\nScore: 4.5", "stop", None, "fraction"),
        ("Good.\nScore: 4", "length", None, "truncated"),
        ("", "too_long", None, "too_long"),
        ("", "stop", None, "empty"),
        ("Score: 4\nGood.", "stop", None, "missing"),
    ],
)
def test_judgment_records(text: str, finish_reason, score, failure):
    item = list(judge_items(ONCE, CHAT, make_settings(), 1, 3))[1]
    ids = [*text.encode(), 0] if finish_reason == "stop" else list(text.encode())
    row = item.row(Completion("p1/r0/j1", ids, finish_reason, -2.5), CHAT)
    row |= read_score(row, Judge())
    assert row == {
        "id": "p1/r0/j1",
        "response_id": "p1/r0",
        "prompt_id": "p1",
        "index": 1,
        "ids": ids,
        "text": text,
        "finish_reason": finish_reason,
        "logprob": -2.5,
        "seed": item.seed,
        "score": score,
        "failure": failure,
    }
    assert json.loads(json.dumps(row)) == row
    assert type(row["failure"]) in (str, type(None))


def test_settings_reach_the_reading():
    def score(text: str, judge: Judge):
        return read_score({"text": text, "finish_reason": "stop"}, judge)["score"]

    assert score("Score: 4.5", Judge(fractions=True)) == 4.5
    assert score("Score: 4.0", Judge(fractions=True)) == 4
    assert score("Score: 3\nScore: 4", Judge(verdict_position="first")) == 3
    assert score("Score: 3\nScore: 4", Judge(verdict_position="last")) == 4


def test_the_key_knows_model_inputs_and_settings(tmp_path):
    for name in ("m1", "m2", "r1", "r2"):
        (tmp_path / name).write_text(name)

    def key(settings=make_settings(), model="m1", responses="r1", t=1) -> str:  # noqa: B008
        return JUDGE.job(settings, tmp_path, t, model=tmp_path / model, responses=tmp_path / responses).key

    keys = {key(), key(t=2), key(model="m2"), key(responses="r2"), key(make_settings(N=4))}
    assert len(keys) == 5 and key() in keys
