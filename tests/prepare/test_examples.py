"""SFT examples: the verdict's tokens weigh more, and cut-off answers have no end token."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from judging.rubric import evidence_text
from model.chat import load_chat
from prepare.examples import EXAMPLES, labelled_rows, render
from prepare.seed_model import make_tiny
from stages.command import UserError
from stages.files import read_jsonl
from stages.settings import Guards, load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder)
    return load_chat(folder)


@pytest.fixture
def settings():
    return load_settings(ROOT / "configs" / "tiny.toml")


def test_decisions_weigh_more(chat, settings):
    rows = [
        {"kind": "judge", "prompt": "q", "response": "r", "score": 3, "justification": "Score: 5 would be wrong."},
        {"kind": "metajudge", "prompt": "q", "response": "r", "winner": "second", "score": 5},
    ]
    rows[1]["judgments"] = [{"score": 1, "justification": "x"}, {"score": 4, "justification": "y"}]
    meta_last = replace(settings.metajudge, verdict_position="last")
    settings = replace(settings, sft=replace(settings.sft, verdict_token_weight=7.0), metajudge=meta_last)
    judge, meta = render(rows, chat, settings)
    for example, decisions in ((judge, ["3"]), (meta, ["5", "B"])):
        ids, weights = example["completion_ids"], example["token_weights"]
        heavy = [chat.text([token]).strip() for token, weight in zip(ids, weights, strict=True) if weight == 7.0]
        assert heavy == decisions and set(weights) == {1.0, 7.0}
        assert ids[-1] in chat.stop_ids
    assert judge["completion"] == "Score: 3\nScore: 5 would be wrong."
    assert "Score: 1\nx" in meta["prompt"][-1]["content"]
    assert meta["completion"] == "Deserved: 5; A gives 1, B gives 4.\nWinner: Judgment B"
    _, hidden = render(rows, chat, replace(settings, guards=Guards(hide_scores=True)))
    assert hidden["prompt"][-1]["content"].endswith("Judgment A:\nx\n\nJudgment B:\ny")
    assert hidden["completion"] == "Deserved: 5.\nWinner: Judgment B"
    assert hidden["token_weights"].count(7.0) == meta["token_weights"].count(7.0)


def test_a_cut_off_answer_has_no_end_token(chat, settings):
    rows = [{"kind": "respond", "prompt": "q", "response": "r", "finished": done} for done in (True, False)]
    done, cut = render(rows, chat, replace(settings, sft=replace(settings.sft, answer_weight=0.25)))
    assert done["completion_ids"][-1] in chat.stop_ids
    assert cut["completion_ids"] == done["completion_ids"][:-1]
    assert set(cut["token_weights"]) == {0.25}


def test_labelled_files(tmp_path):
    evidence = {"asked": "a list", "given": "a poem", "missing": "the list"}
    assert evidence_text(evidence) == "Asked: a list; given: a poem; missing: the list."
    assert evidence_text(evidence | {"missing": ""}) == "Asked: a list; given: a poem."
    path = tmp_path / "rows.jsonl"
    responses = [{"text": "r", "score": 1, "evidence": evidence}]
    path.write_text(json.dumps({"id": "1", "prompt": "q", "responses": responses}) + "\n")
    assert [row["score"] for row in labelled_rows(path)] == [1]
    path.write_text('{"id": "1", "prompt": "q"}\n')
    with pytest.raises(UserError, match=r"line 1: key .kind. is missing; it must be .judge. or"):
        list(labelled_rows(path))


JUDGE = {"kind": "judge", "prompt": "q", "response": "r", "score": 3, "justification": "j"}
META = {"kind": "metajudge", "prompt": "q", "response": "r", "winner": "second", "score": 5}
META["judgments"] = [{"score": 1, "justification": "x"}, {"score": 4, "justification": "y"}]
RESPOND = {"kind": "respond", "prompt": "q", "response": "r", "finished": True}
GROUP = {"prompt": "q", "responses": [{"text": "r", "score": 1}]}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        *((JUDGE | {"score": s}, "score is .*; it must be a number from 0 to 5") for s in (6, -1, "3", None, True)),
        (META | {"winner": "Second"}, """winner is 'Second'; it must be "first" or "second\""""),
        *((META | {"judgments": META["judgments"] * n}, "judgments is .*; it must be a list of 2") for n in (0, 2)),
        *((RESPOND | {"response": no}, "response is .*; it must be a text that is not") for no in ("", "\n", None)),
        *((RESPOND | {"finished": x}, f"finished is {x!r}; it must be true or false") for x in ("yes", 1, 0.0)),
        (RESPOND | {"kind": "answer"}, "kind is 'answer'; it must be"),
        (GROUP, "responses is .*; it must be a list of objects {text: a text, score: a number from 0 to 5, evidence: "),
        *((row | {"prompt": None}, "prompt is None") for row in (JUDGE, META, RESPOND, GROUP)),
    ],
)  # fmt: skip
def test_a_row_of_another_kind_is_one_line(tmp_path, row, complaint):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(RESPOND)}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: {complaint}"):
        list(labelled_rows(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("fractional", [JUDGE | {"score": 3.7}, GROUP | {"responses": [{"text": "r", "score": 0.5}]}])
def test_scores_that_the_judge_could_not_read_are_not_taught(tmp_path, settings, fractional):
    for response in fractional.get("responses", ()):
        response["evidence"] = {"asked": "a", "given": "b", "missing": "c"}
    path, model = tmp_path / "rows.jsonl", tmp_path / "tiny"
    path.write_text(f"{json.dumps(JUDGE | {'score': 3.0})}\n{json.dumps(fractional)}\n")
    make_tiny(model)

    def count(fractions: bool) -> int:
        judge, sft = replace(settings.judge, fractions=fractions), replace(settings.sft, examples=[str(path)])
        job = EXAMPLES.job(replace(settings, judge=judge, sft=sft), tmp_path / "out", model=model)
        EXAMPLES.run(job)
        return len(list(read_jsonl(job.out / "examples.jsonl")))

    assert count(True) == 2
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: score is .*; make it whole, or set judge\.fr"):
        count(False)


def test_a_conversation_may_be_answered_and_judged(chat, settings):
    talk = [("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes?"), ("user", "Why?")]
    prompt = [{"role": role, "content": content} for role, content in talk]
    answered, judged = render([RESPOND | {"prompt": prompt}, JUDGE | {"prompt": prompt}], chat, settings)
    assert answered["prompt"] == prompt and answered["prompt_ids"] == chat.prompt_ids(prompt)
    turns = "\n\n".join(f"{role.capitalize()}:\n{content}" for role, content in talk)
    assert (
        f"Question:\nThe response continues this conversation.\n\n{turns}\n\nResponse:\nr"
        in judged["prompt"][1]["content"]
    )
