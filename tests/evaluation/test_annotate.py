"""Any judge as annotator: both protocols, all three benchmarks, worked by hand; refusals, and resuming."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from questions import ALPACA, ARENA_1, ARENA_2, MT, OUTPUTS, refused, written

from evaluation import alpaca, arena
from evaluation.annotate import compared_rows, main, scored_rows, turn_responses
from evaluation.answers import answer_row
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, Question, read_questions
from evaluation.pairwise import Duel
from model.chat import load_chat
from stages.files import digest, read_jsonl, read_manifest, read_shards

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.toml"


@pytest.fixture(scope="module")
def files(tmp_path_factory, judge) -> dict[str, dict[str, Path]]:
    """Each benchmark's answers of M1, answers of a baseline, and questions; a file may answer more than is asked."""
    folder, tokenizer, options = tmp_path_factory.mktemp("files"), load_chat(judge).tokenizer, {}
    for name, rows in ((ARENA_HARD, ARENA_1), ("arena-hard 2", ARENA_2), (MT_BENCH, MT)):
        path, benchmark = folder / name / "questions.jsonl", name.split()[0]
        extra = rows[0] | {"uid" if rows is ARENA_2 else "question_id": "more"}
        *asked, more = read_questions(benchmark, written(path, [*rows, extra]))
        own = [answer_row(benchmark, q, [f"Water {i}.", "A pond."], "M1", tokenizer, 1) for i, q in enumerate(asked)]
        base = [answer_row(benchmark, q, ["None.", "None."], "base", tokenizer, 1) for q in (*reversed(asked), more)]
        options[name] = {"questions": written(path, rows), "answers": written(folder / name / "M1.jsonl", own)}
        if rows is not MT:
            options[name]["baseline"] = written(folder / name / "base.jsonl", base)
    baseline, outputs = written(folder / "baseline.json", ALPACA), written(folder / "M1.json", OUTPUTS)
    return options | {ALPACA_EVAL: {"answers": outputs, "baseline": baseline}}


@pytest.fixture
def run(call, files, judge):
    def called(benchmark: str, out: Path, *more: str):
        given = {"config": CONFIG, "judge": judge, "benchmark": benchmark.split()[0], "out": out} | files[benchmark]
        return call(main, *(word for name, value in given.items() for word in (f"--{name}", value)), *more)

    return called


@pytest.fixture
def name(judge) -> str:
    return f"tiny-{digest(judge)[:8]}"


def test_a_comparing_judge_annotates_alpaca_eval(run, name, tmp_path):
    """A complete stage stays, and a broken one is completed, to the byte."""
    out, how = tmp_path / "out", ("--protocol", "pairwise", "--N", "4")
    line = run(ALPACA_EVAL, out, *how).err.splitlines()[-1]
    manifest, path = read_manifest(out), out / "annotations.json"
    rows = json.loads(path.read_text())
    for row, asked, output in zip(rows, ALPACA, ("The Po.", "It is {not}.", "5"), strict=True):
        known = {key: asked[key] for key in ("dataset", "instruction")}
        known |= {"output_1": asked["output"], "generator_1": "baseline", "output_2": output, "generator_2": "M1"}
        known |= {"annotator": name, "preference": row["preference"], "raw": row["raw"]}
        assert row == known and list(row) == list(known)
    assert (rows[0]["preference"], rows[0]["raw"]) == (1.5, [])  # equal texts tie unasked
    for row in rows[1:]:
        assert [(raw["shown"], raw["index"]) for raw in row["raw"]] == [(s, i) for s in (0, 1) for i in range(4)]
    unread = sum(raw["winner"] is None and raw["failure"] is not None for row in rows for raw in row["raw"])
    assert line.startswith(f"{path}: by {name}, not the benchmark's own annotator: 3 questions")
    assert 0 < unread < 16 and line.endswith(f"; {unread} of 16 judgments could not be read")
    assert (manifest["judge"], manifest["protocol"], manifest["N"]) == (name, "pairwise", 4)
    assert alpaca.annotated(alpaca.read_annotations(path), None)["annotator"] == name

    content, before = path.read_bytes(), path.stat().st_mtime_ns
    run(ALPACA_EVAL, out, *how)
    assert path.stat().st_mtime_ns == before and read_manifest(out) == manifest
    shard = next((out / "judgments").glob("shards-*/*"))
    for lost in (out / "manifest.json", out / "judgments" / "manifest.json", shard, path):
        lost.unlink()
    run(ALPACA_EVAL, out, *how)
    assert path.read_bytes() == content and read_manifest(out)["digest"] == manifest["digest"]


def test_a_scoring_judge_annotates(run, name, tmp_path, monkeypatch):
    """The higher mean wins, in AlpacaEval and in both games of Arena-Hard. Only rank 0 writes the file."""
    run(ALPACA_EVAL, tmp_path / "alpaca", "--N", "8")
    for row in json.loads((tmp_path / "alpaca" / "annotations.json").read_text())[1:]:
        sides = [[raw["score"] for raw in row["raw"] if raw["shown"] == side] for side in (0, 1)]
        one, two = (Fraction(sum(own), len(own)) for own in ([s for s in side if s is not None] for side in sides))
        assert row["preference"] == (1.5 if one == two else 1 if one > two else 2)
    run(ARENA_HARD, tmp_path / "arena", "--N", "6")
    path = tmp_path / "arena" / "model_judgment" / name / "M1.jsonl"
    texts = [record["text"] for record in read_shards(tmp_path / "arena" / "judgments")]
    for row, one, two in zip(read_jsonl(path), (texts[:6], texts[12:18]), (texts[6:12], texts[18:]), strict=True):
        games = tuple(game["score"] for game in row["games"])
        assert games in {("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A=B")}
        assert [game["judgment"] for game in row["games"]] == ["\n\n".join(one + two), "\n\n".join(two + one)]
    for written_last in (path, tmp_path / "arena" / "manifest.json"):
        written_last.unlink()
    monkeypatch.setenv("RANK", "1")
    run(ARENA_HARD, tmp_path / "arena", "--N", "6")
    assert not path.exists()


@pytest.mark.parametrize(("benchmark", "asked"), [(ARENA_HARD, ARENA_1), ("arena-hard 2", ARENA_2)])
def test_arena_hard_has_two_games_a_question(run, name, tmp_path, benchmark, asked):
    run(benchmark, tmp_path, "--protocol", "pairwise", "--N", "3")
    path = tmp_path / "model_judgment" / name / "M1.jsonl"
    named, texts = ["uid", "category"] if asked is ARENA_2 else ["question_id"], {}
    for record in read_shards(tmp_path / "judgments"):
        texts.setdefault((record["duel"], record["shown"]), []).append(record["text"])
    for row, question in zip(read_jsonl(path), asked, strict=True):
        known = {key: question[key] for key in named} | {"model": "M1", "judge": name, "baseline": "base"}
        assert row == known | {"games": row["games"]}
        for shown, game in enumerate(row["games"]):
            text = "\n\n".join(texts[question[named[0]], shown])
            assert game["judgment"] == ({"answer": text} if asked is ARENA_2 else text)
    assert {board.judge for board in arena.read_judgments([path])} == {name}


def test_mt_bench_is_scored_by_turn_on_our_scale(run, name, tmp_path):
    run(MT_BENCH, tmp_path, "--N", "2")
    path = tmp_path / "model_judgment" / f"{name}_single.jsonl"
    rows, records = list(read_jsonl(path)), list(read_shards(tmp_path / "judgments"))
    turns = [(question["question_id"], turn) for question in MT for turn in (1, 2)]
    assert [record["response_id"] for record in records[::2]] == [f"{question}/turn{turn}" for question, turn in turns]
    for row, (question, turn), *pair in zip(rows, turns, records[::2], records[1::2], strict=True):
        known = {"question_id": question, "model": "M1", "judge": name}
        known |= {"judgment": "\n\n".join(record["text"] for record in pair), "score": row["score"]}
        assert row == known | {"scale": [0, 5], "turn": turn}
    unread = sum(row["score"] is None for row in rows)
    assert read_manifest(tmp_path)["counts"] == {"questions": 3, "scored": 6 - unread, "without_verdict": unread}


NAMES = {"model": "M1", "judge": "ours", "baseline": "base"}


@pytest.mark.parametrize(
    ("as_is", "swapped", "preference", "games", "better"),
    [
        (["first"], ["second"], 1, ["A>B", "B>A"], "baseline_better"),  # the baseline's, in both orders
        (["second"], ["first"], 2, ["B>A", "A>B"], "model_better"),
        (["first"], ["first"], 1.5, ["A>B", "A>B"], "tied"),  # the first place, both times
        (["second", "first"], ["first", "first"], 1.75, ["A=B", "A>B"], "model_better"),
        (["first", "second", "second"], ["tie"], 19 / 12, ["B>A", "A=B"], "model_better"),
        ([None], ["first"], 2, [None, "A>B"], "model_better"),
        ([None], [None], None, [None, None], "without_verdict"),
    ],
)
def test_preferences_by_hand(as_is, swapped, preference, games, better):
    duel, known = Duel("b1", "Name a river.", "The Po.", "No."), {"duel": "b1", "failure": None}
    given = [(side, i, winner) for side, winners in enumerate((as_is, swapped)) for i, winner in enumerate(winners)]
    records = [known | {"shown": side, "index": i, "winner": w, "text": f"{side}{i}"} for side, i, w in given]
    for asked in (ALPACA[0], ARENA_1[0]):
        question = Question("b1", "b1", "c", ["Name a river."], asked)
        [row], counts = compared_rows([question], [duel], records, "pairwise", **NAMES)
        assert [name for name, count in counts.items() if count] == ["questions", better]
        if asked is ALPACA[0]:
            assert row["preference"] == preference
        else:
            assert [game["score"] for game in row["games"]] == games
            assert row["games"][0]["judgment"] == "\n\n".join(f"0{i}" for i in range(len(as_is)))
    [row], _ = compared_rows([question], [Duel("b1", "", "The Po.", "The Po.")], [], "scores", **NAMES)
    assert row["games"] == [{"judgment": "", "score": "A=B"}] * 2  # equal texts tie unasked


def test_refused_arguments(run, tmp_path):
    with refused("--protocol scores for mt-bench"):
        run(MT_BENCH, tmp_path / "out", "--protocol", "pairwise")


def test_the_second_turn_is_judged_in_its_dialog():
    question = Question("81", "81", "writing", ["Write of a lake.", "Shorter."], MT[0])
    one, two = turn_responses(question, ["Blue water.", "Water."])
    assert (one["prompt"], one["text"], two["text"]) == ("Write of a lake.", "Blue water.", "Water.")
    dialog = "User:\nWrite of a lake.\n\nAssistant:\nBlue water.\n\nUser:\nShorter."
    assert two["prompt"] == f"The response continues this conversation.\n\n{dialog}"
    given = [(one["id"], score) for score in (4, None, 3)] + [(two["id"], None)]
    rows, _ = scored_rows([question], [{"response_id": name, "score": score, "text": "t"} for name, score in given])
    assert [(row["score"], row["judgment"]) for row in rows] == [(3.5, "t\n\nt\n\nt"), (None, "t")]
