"""Answers to benchmarks: the files' exact keys, both turns of a dialog, resuming, and refusals.

The questions are made up, in the forms that AlpacaEval, Arena-Hard (v0.1 and v2.0) and MT-Bench have.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from processes import ROOT, fork, free_port, wait
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
def run(monkeypatch, place):
    def call(*given) -> None:
        monkeypatch.setattr(sys, "argv", ["answers", *words(place, *given)])
        main()

    return call


@pytest.fixture
def mt(run, tmp_path) -> Path:
    """The output for MT-Bench."""
    run(MT_BENCH, written(tmp_path / "question.jsonl", MT), tmp_path / "out")
    return tmp_path / "out"


def answers(out: Path, name: str = "M1") -> list[dict]:
    return list(read_jsonl(out / "model_answer" / f"{name}.jsonl"))


def test_alpaca_eval(run, tmp_path, capsys):
    """Some models' public outputs have no data sets, and AlpacaEval's tool needs none."""
    asked, out = [*ALPACA[:2], without(ALPACA[2], "dataset")], tmp_path / "out"
    run(ALPACA_EVAL, written(tmp_path / "alpaca_eval.json", asked), out)
    rows = json.loads((out / "model_outputs.json").read_text())
    for row, question, record in zip(rows, asked, read_shards(out / "turn1"), strict=True):
        known = {key: question[key] for key in ("dataset", "instruction") if key in question}
        assert row == known | {"output": record["text"].strip(), "generator": "M1"} and row["output"]
    counts = read_manifest(out)["counts"]
    assert counts["questions"] == counts["answers"] == 3 == counts["stop"] + counts["length"]
    ends = f"{counts['length']} cut off at 8 tokens or the end of the context, 0 whose prompt does not fit, 0 empty"
    assert capsys.readouterr().err.splitlines()[-1] == f"{out}/model_outputs.json: 3 answers: {ends}"


def test_rows_of_arena_hard(tmp_path, place):
    tokenizer = load_chat(place / "tiny").tokenizer
    tokens = len(tokenizer.encode("# A *river*"))
    one, two = (
        answer_row(ARENA_HARD, read_questions(ARENA_HARD, written(tmp_path / "q.jsonl", asked))[0], ["# A *river*"],
                   "M1", tokenizer, 1.5)
        for asked in (ARENA_1, ARENA_2)
    )  # fmt: skip
    known = {"question_id": "b1", "answer_id": one["answer_id"], "model_id": "M1"}
    choices = [{"index": 0, "turns": [{"content": "# A *river*", "token_len": tokens}]}]
    assert one == known | {"choices": choices, "tstamp": 1.5} and list(one)[:3] == list(known) and tokens > 1
    messages = [{"role": "user", "content": ARENA_2[0]["prompt"]}]
    messages.append({"role": "assistant", "content": {"answer": "# A *river*"}})
    known = {"uid": "f00d", "ans_id": two["ans_id"], "model": "M1", "messages": messages, "tstamp": 1.5}
    assert two == known | {"metadata": {"token_len": tokens} | markdown_counts("# A *river*")}


def test_a_new_name_samples_nothing_again(run, tmp_path):
    questions, out = written(tmp_path / "question.jsonl", ARENA_1), tmp_path / "out"
    run(ARENA_HARD, questions, out)
    written_at = {shard: shard.stat().st_mtime_ns for shard in (out / "turn1").rglob("*")}
    run(ARENA_HARD, questions, out, "M2")
    assert written_at == {shard: shard.stat().st_mtime_ns for shard in (out / "turn1").rglob("*")}
    one, two = answers(out), answers(out, "M2")
    assert len({row["answer_id"] for row in one + two}) == 4
    assert [row["choices"] for row in one] == [row["choices"] for row in two]


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
    """Its key is of the content, not of paths."""
    questions, manifest, rows = tmp_path / "question.jsonl", read_manifest(mt), answers(mt)
    first = {file.name: file.stat().st_mtime_ns for file in (mt / "turn1").rglob("*")}
    run(MT_BENCH, questions, mt)
    assert answers(mt) == rows and read_manifest(mt) == manifest
    for lost in (mt / "manifest.json", mt / "turn2" / "manifest.json", *(mt / "turn2").glob("*/*.jsonl")):
        lost.unlink()
    out = mt.rename(tmp_path / "elsewhere")
    run(MT_BENCH, Path(shutil.copy(questions, tmp_path / "moved.jsonl")), out)
    assert [row | {"tstamp": 0} for row in answers(out)] == [row | {"tstamp": 0} for row in rows]
    assert [read_manifest(out)[name] for name in ("key", "digest")] == [manifest[name] for name in ("key", "digest")]
    assert {file.name: file.stat().st_mtime_ns for file in (out / "turn1").rglob("*")} == first


def test_two_ranks_write_what_one_does(mt, tmp_path, place):
    command = ["evaluation.answers", *words(place, MT_BENCH, tmp_path / "question.jsonl", tmp_path / "two")]
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    copies = [fork(tmp_path, *command, RANK=rank, **ranks) for rank in ("0", "1")]
    assert [wait(copy) for copy in copies] == [0, 0]
    assert (tmp_path / "err.txt").read_text().count("6 answers: ") == 1
    assert read_manifest(mt)["digest"] == read_manifest(tmp_path / "two")["digest"]
    assert [row["choices"] for row in answers(mt)] == [row["choices"] for row in answers(tmp_path / "two")]


def test_an_overlong_prompt_is_an_empty_answer(run, tmp_path, capsys):
    long = {"question_id": 1, "category": "math", "turns": ["a b c " * 2000, "And?"]}
    out = tmp_path / "out"
    run(MT_BENCH, written(tmp_path / "question.jsonl", [MT[0], long]), out)
    rows = answers(out)
    assert rows[1]["choices"] == [{"index": 0, "turns": ["", ""]}] and all(rows[0]["choices"][0]["turns"])
    counts = read_manifest(out)["counts"]
    assert (counts["answers"], counts["too_long"], counts["empty"]) == (4, 2, 2)
    assert ", 2 whose prompt does not fit, 2 empty" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("benchmark", "rows", "temperatures"),
    [
        (ALPACA_EVAL, ALPACA, {"made_up": 0.8, "other": 0.8}),
        (ARENA_HARD, ARENA_1, {"arena-hard-v0.1": 0.0}),
        (MT_BENCH, MT, {"writing": 0.7, "math": 0.0, "stem": 0.1}),
    ],
)
def test_the_temperature_is_the_benchmarks_else_the_actors(place, tmp_path, benchmark, rows, temperatures):
    questions = read_questions(benchmark, written(tmp_path / ("q.json" if rows is ALPACA else "q.jsonl"), rows))
    how = decoding(benchmark, questions, load_settings(place / "short.toml").respond)
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


@pytest.mark.parametrize(
    ("benchmark", "rows", "complaint"),
    [
        (ALPACA_EVAL, [ALPACA[0], without(ALPACA[1], "instruction")], "q.json, entry 1: instruction is missing"),
        (ALPACA_EVAL, [*ALPACA, ALPACA[1]], r"q.json, entry 3: 'Why is {it} blue\?' came before"),
        (ALPACA_EVAL, [ALPACA[0] | {"instruction": " "}], "entry 0: ' ' came before, or a turn is no text or empty"),
        (MT_BENCH, [], "q.jsonl: no questions"),
        (ARENA_HARD, [ARENA_2[0], without(ARENA_2[1], "prompt")], "q.jsonl, line 2: prompt is missing"),
        (ARENA_HARD, [ARENA_1[0] | {"turns": ["text"]}], "line 1: content is missing"),
        (ARENA_HARD, MT, "line 1: turns of arena-hard must be a list of 1"),
        (MT_BENCH, [without(MT[0], "question_id")], "line 1: question_id is missing; add it, or name a file of this"),
        (MT_BENCH, [MT[0], MT[1] | {"turns": ["a", None]}], "line 2: '111' came before, or a turn is no text"),
    ],
)
def test_bad_questions_are_one_line(tmp_path, benchmark, rows, complaint):
    path = written(tmp_path / ("q.json" if benchmark == ALPACA_EVAL else "q.jsonl"), rows)
    with refused(complaint):
        read_questions(benchmark, path)


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_must_be_a_files(run, tmp_path, name):
    with refused("--name"):
        run(MT_BENCH, tmp_path / "question.jsonl", tmp_path / "out", name)
