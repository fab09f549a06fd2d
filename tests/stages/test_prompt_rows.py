"""Files of prompts: texts and conversations from the row to the pair, and rows that are refused, whoever reads them."""

import json
from pathlib import Path

import pytest
from mock_engine import mock_model
from questions import refused
from records import BYTES_CHAT

import judging.pairs
from dpo.data import read_examples
from evaluation.verifiable import read_instructions
from judging.judge import JUDGE
from judging.pairs import PAIRS
from model.chat import load_chat
from prepare.new_prompts import read_seeds
from prepare.pool import draw_prompts
from prepare.seed_model import make_tiny
from sampling.respond import RESPOND
from stages.files import read_jsonl, read_shards, write_jsonl
from stages.rows import conversation_text, messages_of, read_prompts
from stages.settings import EngineOptions, Iteration, Model, Prompts, Respond, Settings

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Po."},
    {"role": "user", "content": "Another {one}."},
]
SHOWN = """The response continues this conversation.

System:
Be brief.

User:
Name a river.

Assistant:
The Po.

User:
Another {one}."""


def rows_of(*prompts) -> list[dict]:
    return [{"id": f"p{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]


def test_a_conversation_is_messages_to_the_actor_and_one_question_to_the_judge():
    assert messages_of(TALK) == TALK and conversation_text(TALK) == SHOWN
    assert messages_of("Hi {x}") == [{"role": "user", "content": "Hi {x}"}] and conversation_text("Hi {x}") == "Hi {x}"
    assert conversation_text(TALK[1:2]) == "Name a river."
    assert messages_of([{"role": "prompter", "text": "Why?"}]) == messages_of([{"role": "human", "content": "Why?"}])


def test_a_conversation_goes_from_the_prompt_to_training(tmp_path, monkeypatch):
    """Answers and judgments follow the prompt that the mock model is shown, so the pair has what was asked."""
    seen: list[str] = []

    def speak(prompt: str, seed: int) -> tuple[str, str]:
        seen.append(prompt)
        judges = "Score" in prompt
        return (f"Score: {5 if 'long' in prompt else 2}" if judges else ("long" if seed % 2 else "short")), "stop"

    mock_model(monkeypatch, tmp_path / "model", speak)
    monkeypatch.setattr(judging.pairs, "load_chat", lambda folder: BYTES_CHAT)
    write_jsonl(tmp_path / "prompts.jsonl", rows_of(TALK, "Alone?"))
    rule = Iteration(judge_pairs=False)
    settings = Settings("t", Model("m"), Respond(2, "p", K=6), engine=EngineOptions(threads=1), iteration=[rule])
    out, inputs = tmp_path / "run", {"model": tmp_path / "model"}
    RESPOND.run(RESPOND.job(settings, out / "responses", 1, prompts=tmp_path / "prompts.jsonl", **inputs))
    assert set(seen) == {"|".join(message["content"] for message in TALK), "Alone?"}
    assert [row["prompt"] for row in read_shards(out / "responses")] == [TALK] * 6 + ["Alone?"] * 6
    seen.clear()
    inputs["responses"] = out / "responses"
    JUDGE.run(JUDGE.job(settings, out / "judgments", 1, **inputs))
    assert {SHOWN in prompt for prompt in seen} == {True, False} and any("Alone?" in prompt for prompt in seen)
    PAIRS.run(PAIRS.job(settings, out / "pairs", 1, judgments=out / "judgments", **inputs))
    pair, _ = read_jsonl(out / "pairs" / "actor.jsonl")
    assert pair["prompt"] == TALK and pair["prompt_ids"] == BYTES_CHAT.prompt_ids(TALK)
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == ["long", "short"]
    example, _ = read_examples([out / "pairs" / "actor.jsonl"], "dpo", 256)
    assert example.prompt == pair["prompt_ids"]


def test_each_turn_is_a_turn_of_the_models_format(tmp_path):
    """ChatML by hand: for each turn <|im_start|>, role, newline, content, <|im_end|>, newline."""
    make_tiny(tmp_path / "tiny")
    chat = load_chat(tmp_path / "tiny")
    encode = chat.tokenizer.encode
    start, end = map(chat.tokenizer.control, ("<|im_start|>", "<|im_end|>"))
    wanted: list[int] = []
    for turn in TALK:
        wanted += [start, *encode(f"{turn['role']}\n{turn['content']}"), end, *encode("\n")]
    assert chat.prompt_ids(messages_of(TALK)) == [*wanted, start, *encode("assistant\n")]


REFUSED = {
    "id 'p0' came before": {"id": "p0"},
    "key 'id' is missing": {"id": ...},
    "id is ": {"id": [7, None, "", " ", ["p1"], True]},
    "key 'prompt' is missing": {"prompt": ...},
    "prompt is ": {
        "prompt": [
            *(None, 7, 0.5, True, "", " \n", [], {}, ["Hi"], [None], [[]], {"role": "user", "content": "Hi"}),
            *([{"role": role, "content": "Hi"}] for role in ("system", "assistant", "tool", None, ["user"])),
            *([{"role": "user", "content": content}] for content in (None, 7, "", " ", ["Hi"], {"text": "Hi"})),
            *([{"role": "user"}], [{"content": "Hi"}], TALK[:3], TALK[1:3], [TALK[1]] * 2, [*TALK[1:], TALK[0]]),
            *([TALK[0], *TALK], [TALK[1], TALK[0], *TALK[2:]]),
        ]
    },
}
CASES = [
    (complaint, {key: value} if value is not ... else key)
    for complaint, change in REFUSED.items()
    for key, values in change.items()
    for value in (values if isinstance(values, list) else [values])
]


@pytest.mark.parametrize(("complaint", "change"), CASES)
def test_a_row_that_is_no_prompt_is_one_line_naming_it(tmp_path, complaint, change):
    row = {"id": "p1", "prompt": "Why?"}
    row = {key: row[key] for key in row if key != change} if isinstance(change, str) else row | change
    write_jsonl(tmp_path / "p.jsonl", [*rows_of("Hello?"), row])
    with refused(rf"p\.jsonl, line 2: {complaint}"):
        read_prompts(tmp_path / "p.jsonl")


def run_respond(path: Path, settings: Settings) -> None:
    RESPOND.run(RESPOND.job(settings, path.parent / "out", 1, model=path.parent / "model", prompts=path))


READERS = {
    "the loop": lambda path, settings: draw_prompts([path], settings),
    "respond alone": run_respond,
    "instructions": lambda path, settings: read_instructions(path),
    "seeds": lambda path, settings: read_seeds(Prompts(seeds=str(path), shots=1)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("last", [{"id": "p0", "prompt": "Other?"}, {"id": "p1", "prompt": None}])
def test_whoever_reads_prompts_refuses_the_same(tmp_path, monkeypatch, reader, last):
    mock_model(monkeypatch, tmp_path / "model", lambda prompt, seed: ("Hi", "stop"))
    rows = [row | {"rules": [{"rule": "one_word"}]} for row in (*rows_of("Hello?"), last)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with refused(r"p\.jsonl, line 2: "):
        READERS[reader](tmp_path / "p.jsonl", Settings("t", Model("m"), Respond(1, "p"), iteration=[Iteration()]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rules", [[{"rule": "bullets"}], [{"rule": "unheard"}], {"rule": "one_word"}, None])
def test_rules_of_the_pool_are_read_before_anything_is_generated(tmp_path, rules):
    settings = Settings("t", Model("m"), Respond(2, "p"), iteration=[Iteration()])
    good = {"id": "p9", "prompt": "Ruled?", "rules": [{"rule": "one_word"}]}
    write_jsonl(tmp_path / "p.jsonl", [*rows_of("Hello?"), good])
    assert len(draw_prompts([tmp_path / "p.jsonl"], settings)[0]) == 2
    write_jsonl(tmp_path / "p.jsonl", [*rows_of("Hello?"), good | {"rules": rules}])
    with refused(r"p\.jsonl, line 2(, rules\[0\])?:? .*rule"):
        draw_prompts([tmp_path / "p.jsonl"], settings)


def test_new_prompts_are_asked_for_with_texts_alone(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", rows_of("Hello?", TALK))
    with refused(r"p\.jsonl, line 2: prompt is .*; it must be a text that is not blank"):
        read_seeds(Prompts(seeds=str(tmp_path / "p.jsonl"), shots=1))


def test_a_json_list_of_prompts_is_read_too(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(rows_of("One?", TALK)))
    assert [row["prompt"] for row in read_prompts(tmp_path / "p.json")] == ["One?", TALK]
    (tmp_path / "p.json").write_text("[]")
    with refused(r"p\.json: no rows; name a file of rows with id, prompt"):
        read_prompts(tmp_path / "p.json")
