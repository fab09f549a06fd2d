"""Answers to benchmarks: the files' exact keys, both turns of a dialog, resuming, and refusals.

The questions are made up, in the forms that AlpacaEval, Arena-Hard (v0.1 and v2.0) and MT-Bench have.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from questions import ALPACA, ARENA_1, ARENA_2, MT, without, written

from evaluation.answers import main, markdown_counts, read_exam
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, read_questions
from model.chat import load_chat
from prepare.seed_model import make_tiny
from sampling.request import Request, Sampling
from sampling.worker import load_engine
from stages.files import UserError, read_jsonl, read_manifest, read_shards
from stages.settings import load_settings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.toml"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny(folder)
    return folder


def words(model: Path, benchmark: str, questions: Path, out: Path, *more: str) -> list[str]:
    inputs = ["--config", str(CONFIG), "--model", str(model), "--questions", str(questions)]
    return ["--benchmark", benchmark, *inputs, "--name", "M1", "--out", str(out), "--max-new-tokens", "8", *more]


@pytest.fixture
def run(monkeypatch, model):
    def call(benchmark: str, questions: Path, out: Path, *more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["answers", *words(model, benchmark, questions, out, *more)])
        main()

    return call


def texts(folder: Path) -> list[str]:
    return [row["text"].strip() for row in read_shards(folder)]


def test_alpaca_eval(run, tmp_path, capsys):
    out = tmp_path / "out"
    run(ALPACA_EVAL, written(tmp_path / "alpaca_eval.json", ALPACA), out)
    rows = json.loads((out / "model_outputs.json").read_text())
    assert [list(row) for row in rows] == [["dataset", "instruction", "output", "generator"]] * 3
    for row, asked, text in zip(rows, ALPACA, texts(out / "turn1"), strict=True):
        assert row == {key: asked[key] for key in ("dataset", "instruction")} | {"output": text, "generator": "M1"}
    assert all(row["output"] for row in rows)
    manifest = read_manifest(out)
    respond = load_settings(CONFIG).respond
    assert manifest["decoding"]["temperatures"] == {"made_up": respond.temperature, "other": respond.temperature}
    assert manifest["decoding"]["top_p"] == respond.top_p
    counts = manifest["counts"]
    assert counts["questions"] == counts["answers"] == 3 == counts["stop"] + counts["length"]
    ends = f"{counts['length']} cut off at 8 tokens or the end of the context, 0 whose prompt does not fit, 0 empty"
    assert capsys.readouterr().err.splitlines()[-1] == f"{out}/model_outputs.json: 3 answers: {ends}"


@pytest.mark.parametrize("asked", [ARENA_1, ARENA_2])
def test_arena_hard(run, tmp_path, model, asked):
    out = tmp_path / "out"
    run(ARENA_HARD, written(tmp_path / "question.jsonl", asked), out, "--temperature", "1")
    rows = list(read_jsonl(out / "model_answer" / "M1.jsonl"))
    tokenizer = load_chat(model).tokenizer
    for row, question, text in zip(rows, asked, texts(out / "turn1"), strict=True):
        tokens = len(tokenizer.encode(text))
        if asked is ARENA_1:
            known = {"question_id": question["question_id"], "answer_id": row["answer_id"], "model_id": "M1"}
            known |= {"choices": [{"index": 0, "turns": [{"content": text, "token_len": tokens}]}]}
            known |= {"tstamp": row["tstamp"]}
        else:
            answer = {"role": "assistant", "content": {"answer": text}}
            known = {"uid": question["uid"], "ans_id": row["ans_id"], "model": "M1"}
            known |= {"messages": [{"role": "user", "content": question["prompt"]}, answer], "tstamp": row["tstamp"]}
            known |= {"metadata": {"token_len": tokens} | markdown_counts(text)}
        assert row == known and list(row) == list(known) and tokens > 0
    assert len({row.get("ans_id") or row["answer_id"] for row in rows}) == 2
    assert set(read_manifest(out)["decoding"]["temperatures"].values()) == {1.0}


def test_mt_bench_asks_the_second_turn_with_the_first_answer(run, tmp_path, model):
    out = tmp_path / "out"
    run(MT_BENCH, written(tmp_path / "question.jsonl", MT), out)
    rows = list(read_jsonl(out / "model_answer" / "M1.jsonl"))
    first, second = (list(read_shards(out / name)) for name in ("turn1", "turn2"))
    chat, settings = load_chat(model), load_settings(CONFIG)
    engine = load_engine(settings, model, log=False)
    for row, asked, one, two in zip(rows, MT, first, second, strict=True):
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
        assert again.ids == two["ids"]
        assert one["seed"] != two["seed"]
    assert first[0]["text"].strip()
    assert read_manifest(out)["counts"]["answers"] == 6


def test_a_complete_stage_stays_and_a_broken_one_is_completed(run, tmp_path, model):
    questions, out = written(tmp_path / "question.jsonl", MT), tmp_path / "out"
    run(MT_BENCH, questions, out)
    path, manifest = out / "model_answer" / "M1.jsonl", read_manifest(out)
    content, shards = path.read_text(), manifest_shards(out / "turn2")
    first = {file.name: file.stat().st_mtime_ns for file in (out / "turn1").rglob("*")}
    run(MT_BENCH, questions, out)
    assert path.read_text() == content and read_manifest(out) == manifest

    for lost in (out / "manifest.json", out / "turn2" / "manifest.json", *shards):
        lost.unlink()
    moved, out = shutil.copy(questions, tmp_path / "moved.jsonl"), out.rename(tmp_path / "elsewhere")
    run(MT_BENCH, Path(moved), out)
    again = [row | {"tstamp": 0} for row in read_jsonl(out / "model_answer" / "M1.jsonl")]
    assert again == [json.loads(line) | {"tstamp": 0} for line in content.splitlines()]
    assert read_manifest(out)["digest"] == manifest["digest"]
    assert {file.name: file.stat().st_mtime_ns for file in (out / "turn1").rglob("*")} == first


def manifest_shards(folder: Path) -> list[Path]:
    return [folder / name for name in read_manifest(folder)["shards"]]


def test_two_ranks_write_what_one_does(run, tmp_path, model):
    questions = written(tmp_path / "question.jsonl", MT)
    run(MT_BENCH, questions, tmp_path / "one")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evaluation.answers"]
    command = [sys.executable, *launch, *words(model, MT_BENCH, questions, tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("6 answers: ") == 1
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert one["digest"] == two["digest"] and one["key"] == two["key"]
    files = (tmp_path / name / "model_answer" / "M1.jsonl" for name in ("one", "two"))
    one, two = ([row["choices"] for row in read_jsonl(file)] for file in files)
    assert one == two


def test_an_overlong_prompt_is_an_empty_answer(run, tmp_path, capsys):
    long = {"question_id": 1, "category": "math", "turns": ["a b c " * 2000, "And?"]}
    out = tmp_path / "out"
    run(MT_BENCH, written(tmp_path / "question.jsonl", [MT[0], long]), out)
    rows = list(read_jsonl(out / "model_answer" / "M1.jsonl"))
    assert rows[1]["choices"] == [{"index": 0, "turns": ["", ""]}] and all(rows[0]["choices"][0]["turns"])
    counts = read_manifest(out)["counts"]
    assert (counts["answers"], counts["too_long"], counts["empty"]) == (4, 2, 2)
    assert ", 2 whose prompt does not fit, 2 empty" in capsys.readouterr().err.splitlines()[-1]


def test_a_name_changes_the_answers_ids_and_samples_nothing_again(run, tmp_path):
    questions, out = written(tmp_path / "question.jsonl", ARENA_1), tmp_path / "out"
    run(ARENA_HARD, questions, out)
    shards = manifest_shards(out / "turn1")
    written_at = [shard.stat().st_mtime_ns for shard in shards]
    run(ARENA_HARD, questions, out, "--name", "M2")
    assert [shard.stat().st_mtime_ns for shard in shards] == written_at
    one, two = (list(read_jsonl(out / "model_answer" / f"{name}.jsonl")) for name in ("M1", "M2"))
    assert len({row["answer_id"] for row in one + two}) == 4
    assert [row["choices"] for row in one] == [row["choices"] for row in two]
    assert {row["model_id"] for row in two} == {"M2"}


def exam_of(benchmark: str, file: Path, **given) -> object:
    known = {"config": CONFIG, "model": file.parent, "temperature": None, "max_new_tokens": None}
    return read_exam(argparse.Namespace(benchmark=benchmark, questions=file, **known | given))


def test_sampling_is_as_given_else_the_benchmarks_else_the_actors(tmp_path):
    respond = load_settings(CONFIG).respond
    rows = [*MT, MT[0] | {"question_id": 1, "category": "x"}]
    for benchmark, file, temperatures in (
        (ALPACA_EVAL, written(tmp_path / "a.json", ALPACA), dict.fromkeys(("made_up", "other"), respond.temperature)),
        (ARENA_HARD, written(tmp_path / "b.jsonl", ARENA_1), {"arena-hard-v0.1": 0.0}),
        (MT_BENCH, written(tmp_path / "c.jsonl", rows), {"writing": 0.7, "math": 0.0, "stem": 0.1, "x": 0.7}),
    ):
        limits = {"top_p": respond.top_p, "max_new_tokens": respond.max_new_tokens}
        assert exam_of(benchmark, file).decoding == {"temperatures": temperatures} | limits
        how = exam_of(benchmark, file, temperature=0.3, max_new_tokens=5).decoding
        assert set(how["temperatures"].values()) == {0.3} and how["max_new_tokens"] == 5


def test_the_key_depends_on_content_and_sampling_and_not_on_paths(tmp_path):
    def key(name: str, rows: list[dict], what: str = "turn1", **given) -> str:
        exam = exam_of(MT_BENCH, written(tmp_path / "questions" / name, rows), model=CONFIG, **given)
        return exam.job(what, tmp_path / "out").key

    same = {key("a.jsonl", MT), key("b.jsonl", MT)}
    assert len(same) == 1
    apart = {key("a.jsonl", [*MT[:2], MT[2] | {"turns": ["What is a lake?", "A pond?"]}]), key("a.jsonl", MT, "turn2")}
    apart |= {key("a.jsonl", MT, **given) for given in ({"temperature": 0.0}, {"max_new_tokens": 9})}
    assert len(apart) == 4 and not apart & same


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
    empty = markdown_counts("")
    assert {count for counts in empty.values() for count in counts.values()} == {0}


@pytest.mark.parametrize(
    ("benchmark", "rows", "complaint"),
    [
        (ALPACA_EVAL, [ALPACA[0], without(ALPACA[1], "instruction")], "q.json, entry 1: instruction is missing"),
        (ALPACA_EVAL, [*ALPACA, ALPACA[1]], r"q.json, entry 3: 'Why is {it} blue\?' came before \(.*entry 1\)"),
        (ALPACA_EVAL, [ALPACA[0] | {"instruction": " "}], "entry 0: instruction must be a text that is not empty"),
        (ALPACA_EVAL, [], "q.json: no questions"),
        (ALPACA_EVAL, ALPACA[0], "q.json: not a JSON list"),
        (ARENA_HARD, [ARENA_2[0], without(ARENA_2[1], "prompt")], "q.jsonl, line 2: prompt is missing"),
        (ARENA_HARD, [ARENA_1[0] | {"turns": ["text"]}], r"line 1: turns\.0\.content is missing"),
        (ARENA_HARD, [ARENA_1[0], ARENA_1[0]], "line 2: 'b1' came before"),
        (ARENA_HARD, MT, "line 1: turns of arena-hard must be a list of 1"),
        (MT_BENCH, ARENA_1, "line 1: turns of mt-bench must be a list of 2"),
        (MT_BENCH, [without(MT[0], "question_id")], "line 1: question_id is missing; add it, or name a file of this"),
        (MT_BENCH, [MT[0], MT[1] | {"turns": ["a", None]}], r"line 2: turns\.1 must be a text"),
        (MT_BENCH, [MT[0] | {"turns": "ab"}], "line 1: turns of mt-bench must be a list of 2"),
    ],
)
def test_bad_questions_are_one_line(tmp_path, benchmark, rows, complaint):
    path = written(tmp_path / ("q.json" if benchmark == ALPACA_EVAL else "q.jsonl"), rows)
    with pytest.raises(UserError, match=complaint) as error:
        read_questions(benchmark, path)
    assert "\n" not in str(error.value)


def test_a_file_of_questions_without_data_sets(run, tmp_path):
    """Some models' public outputs have no data sets, and AlpacaEval's tool needs none."""
    run(ALPACA_EVAL, written(tmp_path / "q.json", [without(row, "dataset") for row in ALPACA]), tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert [list(row) for row in rows] == [["instruction", "output", "generator"]] * 3


@pytest.mark.parametrize(
    "words", [("--name", ""), ("--name", ".."), ("--name", "a/b"), ("--temperature", "-1"), ("--max-new-tokens", "0")]
)
def test_refused_arguments(run, tmp_path, words):
    with pytest.raises(UserError, match=words[0]):
        run(MT_BENCH, written(tmp_path / "question.jsonl", MT), tmp_path / "out", *words)
