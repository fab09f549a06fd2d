"""Answers to benchmarks: the files' exact keys, both turns of a dialog, resuming."""

import json
import shutil
from pathlib import Path

import pytest
from processes import ROOT
from questions import ALPACA, ARENA_1, ARENA_2, MT, refused, without, written

from evaluation.answers import answer_row, decoding, main, markdown_counts
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, read_questions
from model.chat import load_chat
from prepare.seed_model import make_tiny
from sampling.request import Request, Sampling
from sampling.worker import load_engine
from stages.files import read_jsonl, read_manifest, read_shards
from stages.settings import load_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model and a config of short answers."""
    folder = tmp_path_factory.mktemp("place")
    make_tiny(folder / "tiny")
    config = f'extends = "{ROOT / "configs" / "tiny.toml"}"\n[respond]\nmax_new_tokens = 8\n'
    (folder / "short.toml").write_text(config)
    return folder


def words(place: Path, benchmark: str, questions: Path, out: Path, name: str = "M1") -> list[str]:
    options = {"benchmark": benchmark, "config": place / "short.toml", "model": place / "tiny"}
    options |= {"questions": questions, "out": out, "name": name}
    return [str(word) for option, value in options.items() for word in (f"--{option}", value)]


@pytest.fixture
def run(call, place):
    return lambda *given: call(main, *words(place, *given))


@pytest.fixture
def mt(run, tmp_path) -> Path:
    """The output for MT-Bench."""
    run(MT_BENCH, written(tmp_path / "question.jsonl", MT), tmp_path / "out")
    return tmp_path / "out"


def answers(out: Path, name: str = "M1") -> list[dict]:
    return list(read_jsonl(out / "model_answer" / f"{name}.jsonl"))


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_alpaca_eval(run, tmp_path):
    """Some models' public outputs have no data sets, and AlpacaEval's tool needs none."""
    asked, out = [*ALPACA[:2], without(ALPACA[2], "dataset")], tmp_path / "out"
    run(ALPACA_EVAL, written(tmp_path / "alpaca_eval.json", asked), out)
    rows = json.loads((out / "model_outputs.json").read_text())
    for row, question, record in zip(rows, asked, read_shards(out / "turn1"), strict=True):
        known = {key: question[key] for key in ("dataset", "instruction") if key in question}
        assert row == known | {"output": record["text"].strip(), "generator": "M1"} and row["output"]
    counts = read_manifest(out)["counts"]
    assert counts["questions"] == counts["answers"] == 3 == counts["stop"] + counts["length"]


def test_rows_of_arena_hard(tmp_path, place):
    tokenizer, text = load_chat(place / "tiny").tokenizer, "# A *river*"
    files = [written(tmp_path / "q.jsonl", ARENA_1), written(tmp_path / "q2.jsonl", ARENA_2)]
    questions = [read_questions(ARENA_HARD, file)[0] for file in files]
    one, two = (answer_row(ARENA_HARD, question, [text], "M1", tokenizer, 1.5) for question in questions)
    length = {"token_len": len(tokenizer.encode(text))}
    known = {"question_id": "b1", "answer_id": one["answer_id"], "model_id": "M1"}
    choices = [{"index": 0, "turns": [{"content": text} | length]}]
    assert one == known | {"choices": choices, "tstamp": 1.5} and list(one)[:3] == list(known)
    messages = [{"role": "user", "content": ARENA_2[0]["prompt"]}]
    messages.append({"role": "assistant", "content": {"answer": text}})
    known = {"uid": "f00d", "ans_id": two["ans_id"], "model": "M1", "messages": messages, "tstamp": 1.5}
    assert two == known | {"metadata": length | markdown_counts(text)}


def test_mt_bench_asks_the_second_turn_with_the_first_answer(mt, place):
    first, second = (list(read_shards(mt / name)) for name in ("turn1", "turn2"))
    chat, settings = load_chat(place / "tiny"), load_settings(place / "short.toml")
    engine = load_engine(settings, place / "tiny", log=False)
    for row, asked, one, two in zip(answers(mt), MT, first, second, strict=True):
        assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert row["question_id"] == asked["question_id"]
        assert row["choices"] == [{"index": 0, "turns": [one["text"].strip(), two["text"].strip()]}]
        assert one["messages"] == [{"role": "user", "content": asked["turns"][0]}]
        answer = {"role": "assistant", "content": one["text"].strip()}
        assert two["messages"] == [*one["messages"], answer, {"role": "user", "content": asked["turns"][1]}]
        # A request made by hand from the stored messages has the stored answer.
        temperature = {"writing": 0.7, "math": 0.0, "stem": 0.1}[asked["category"]]
        sampling = Sampling(temperature, settings.respond.top_p, 8, chat.stop_ids)
        [again] = engine.run([Request("again", chat.prompt_ids(two["messages"]), sampling, two["seed"])])
        assert again.ids == two["ids"] and one["seed"] != two["seed"]
    assert first[0]["text"].strip() and read_manifest(mt)["counts"]["answers"] == 6


def test_a_complete_stage_stays_and_a_broken_one_is_completed(run, mt, tmp_path):
    """Its key is of the content, not of paths; a new name samples nothing again."""
    questions, manifest, rows, first = tmp_path / "question.jsonl", read_manifest(mt), answers(mt), times(mt / "turn1")
    run(MT_BENCH, questions, mt)
    assert answers(mt) == rows and read_manifest(mt) == manifest
    for lost in (mt / "manifest.json", mt / "turn2" / "manifest.json", *(mt / "turn2").glob("*/*.jsonl")):
        lost.unlink()
    out = mt.rename(tmp_path / "elsewhere")
    run(MT_BENCH, Path(shutil.copy(questions, tmp_path / "moved.jsonl")), out)
    assert [row | {"tstamp": 0} for row in answers(out)] == [row | {"tstamp": 0} for row in rows]
    assert [read_manifest(out)[name] for name in ("key", "digest")] == [manifest[name] for name in ("key", "digest")]
    second = times(out / "turn2")
    run(MT_BENCH, questions, out, "M2")
    assert (times(out / "turn1"), times(out / "turn2")) == (first, second)
    assert len({row["answer_id"] for row in answers(out) + answers(out, "M2")}) == 6
    assert [row["choices"] for row in answers(out)] == [row["choices"] for row in answers(out, "M2")]


def test_only_the_first_rank_writes(run, mt, tmp_path, monkeypatch):
    for lost in (mt / "manifest.json", mt / "model_answer" / "M1.jsonl"):
        lost.unlink()
    monkeypatch.setenv("RANK", "1")
    run(MT_BENCH, tmp_path / "question.jsonl", mt)
    assert not (mt / "model_answer" / "M1.jsonl").exists()


def test_an_overlong_prompt_is_an_empty_answer(run, tmp_path):
    long = {"question_id": 1, "category": "math", "turns": ["a b c " * 2000, "And?"]}
    out = tmp_path / "out"
    run(MT_BENCH, written(tmp_path / "question.jsonl", [MT[0], long]), out)
    rows = answers(out)
    assert rows[1]["choices"] == [{"index": 0, "turns": ["", ""]}] and all(rows[0]["choices"][0]["turns"])
    counts = read_manifest(out)["counts"]
    assert (counts["answers"], counts["too_long"], counts["empty"]) == (4, 2, 2)


def test_the_temperature_is_the_benchmarks_else_the_actors(place, tmp_path):
    respond = load_settings(place / "short.toml").respond
    for benchmark, name, rows, temperatures in (
        (ALPACA_EVAL, "q.json", ALPACA, {"made_up": 0.8, "other": 0.8}),
        (ARENA_HARD, "q.jsonl", ARENA_1, {"arena-hard-v0.1": 0.0}),
    ):
        how = decoding(benchmark, read_questions(benchmark, written(tmp_path / name, rows)), respond)
        assert how == {"temperatures": temperatures, "top_p": 0.95, "max_new_tokens": 8}


def test_markdown_is_counted_outside_of_code():
    text = (
        "# One\n## Two\n## Two again\n###### Six\n####### no\n#no\n"
        "1. first\n  22. second\n3.no\n- a\n* b\n + c\n-no\n"
        "**bold** and __bold__ **not\nbold** ** **\n"
        "```sh\n# no header\n- no item\n**no bold**\n```\n```x``` - no item\n"
    )
    assert markdown_counts(text) == {
        "header_count": {"h1": 1, "h2": 2, "h3": 0, "h4": 0, "h5": 0, "h6": 1},
        "list_count": {"ordered": 2, "unordered": 3},
        "bold_count": {"**": 2, "__": 1},
    }


def test_a_name_must_be_a_files(run, tmp_path):
    with refused("--name"):
        run(MT_BENCH, tmp_path / "question.jsonl", tmp_path / "out", "a/b")
