"""SFT examples: the verdict's tokens are found, cut-off answers get no end, lessons keep their order."""

import json
from pathlib import Path

import pytest

from files import UserError
from judging.examples import constructed_rows, evidence_text, labelled_rows, render
from model.chat import load_chat
from model.prepare import make_tiny
from settings import load_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder)
    return load_chat(folder)


@pytest.fixture
def settings():
    return load_settings(ROOT / "configs" / "tiny.toml")


def test_the_verdict_is_what_weighs_more(chat, settings):
    rows = [
        {"kind": "judge", "prompt": "q", "response": "r", "score": 3, "justification": "Score: 5 would be wrong."},
        {
            "kind": "metajudge",
            "prompt": "q",
            "response": "r",
            "judgments": [{"score": 1, "justification": "x"}, {"score": 4, "justification": "y"}],
            "winner": "second",
            "reason": "z",
        },
    ]
    judge, meta = render(rows, chat, settings)
    for example, value in ((judge, "3"), (meta, "B")):
        start, end = example["verdict_tokens"]
        assert chat.text(example["completion_ids"][start:end]).strip() == value
        assert example["completion_ids"][-1] in chat.stop_ids
    assert judge["completion"] == "Score: 3\nScore: 5 would be wrong."
    assert "Score: 1\nx" in meta["prompt"][-1]["content"]


def test_an_answer_that_was_cut_off_gets_no_end(chat, settings):
    rows = [{"kind": "respond", "prompt": "q", "response": "r", "finished": done} for done in (True, False)]
    done, cut = render(rows, chat, settings)
    assert done["completion_ids"][-1] in chat.stop_ids
    assert cut["completion_ids"] == done["completion_ids"][:-1]


def test_lessons_keep_their_order(settings, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = list(constructed_rows(load_settings(ROOT / "configs" / "smollm2-135m.toml")))
    kinds = [row["kind"] if row.get("justification", "x") else "decision" for row in rows]
    lessons = [kind for kind in kinds if kind != "respond"]
    assert set(lessons[:1120]) == {"decision"} and "decision" not in lessons[1120:]
    assert set(kinds[:12]) == {"decision", "respond"}


def test_labelled_files(tmp_path):
    evidence = {"asked": "a list", "given": "a poem", "missing": "the list"}
    assert evidence_text(evidence) == "Asked: a list; given: a poem; missing: the list."
    assert evidence_text(evidence | {"missing": ""}) == "Asked: a list; given: a poem."
    path = tmp_path / "rows.jsonl"
    responses = [{"text": "r", "score": 1, "evidence": evidence}]
    path.write_text(json.dumps({"id": "1", "prompt": "q", "responses": responses}) + "\n")
    assert [row["score"] for row in labelled_rows(path)] == [1]
    path.write_text(json.dumps({"id": "1", "prompt": "q"}) + "\n")
    with pytest.raises(UserError, match="neither 'responses' nor a 'kind'"):
        list(labelled_rows(path))
