"""Any judge as annotator: both protocols, all three benchmarks, worked by hand; refusals, and resuming.

The questions are those of tests/support/questions.py. The tiny judge gives a score or a winner, each half of the time.
"""

import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from questions import ALPACA, ARENA_1, ARENA_2, MT, refused, written

import prepare.seed_model
from evaluation import alpaca, arena, mtbench
from evaluation.annotate import compared_rows, main, scored_rows, turn_responses
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, Question, read_answers, read_questions
from evaluation.pairwise import Duel
from stages.files import digest, read_jsonl, read_manifest, read_shards

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.toml"

OUTPUTS = [
    {"dataset": "made_up", "instruction": "Add 2 and 2.", "output": "5", "generator": "M1"},
    {"dataset": "made_up", "instruction": "Name a river.", "output": "The Po.", "generator": "M1"},
    {"dataset": "other", "instruction": "Why is {it} blue?", "output": "It is {not}.", "generator": "M1"},
]


def arena_answer(question: dict, model: str, text: str) -> dict:
    if "subcategory" in question:
        return {"uid": question["uid"], "model": model, "messages": [{"content": {"answer": text}}]}
    choices = [{"index": 0, "turns": [{"content": text, "token_len": 1}]}]
    return {"question_id": question["question_id"], "model_id": model, "choices": choices}


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    folder, verdicts = tmp_path_factory.mktemp("judge") / "tiny", prepare.seed_model.VERDICTS
    with pytest.MonkeyPatch.context() as patch:
        winners = ["Winner: Response A\n", "Winner: Response B\n"]
        patch.setattr(prepare.seed_model, "VERDICTS", [*verdicts[:-2], *winners])
        prepare.seed_model.make_tiny(folder, judge=True)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, list[str]]:
    """Each benchmark's options: the model's answers, a baseline's and questions."""
    folder = tmp_path_factory.mktemp("files")

    def options(name: str, ending: str, **rows: list[dict]) -> list[str]:
        paths = {key: folder / name / f"{'M1' if key == 'answers' else key}.{ending}" for key in rows}
        return [word for key in rows for word in (f"--{key}", str(written(paths[key], rows[key])))]

    def duels(name: str, questions: list[dict]) -> list[str]:
        own = [arena_answer(question, "M1", f"answer {i}") for i, question in enumerate(questions)]
        more = {"uid": "more", "question_id": "more", "prompt": "?"}  # a file may answer more than is asked
        baseline = [arena_answer(question, "base", "None.") for question in (*reversed(questions), questions[0] | more)]
        return options(name, "jsonl", answers=own, baseline=baseline, questions=questions)

    turns = {"model_id": "M1", "choices": [{"index": 0, "turns": ["Blue water.", "Water."]}]}
    dialogs = [{"question_id": question["question_id"]} | turns for question in MT]
    return {
        ALPACA_EVAL: options(ALPACA_EVAL, "json", answers=OUTPUTS, baseline=ALPACA),
        ARENA_HARD: duels(ARENA_HARD, ARENA_1),
        "arena-hard 2": duels("arena-hard 2", ARENA_2),
        MT_BENCH: options(MT_BENCH, "jsonl", answers=dialogs, questions=MT),
    }


@pytest.fixture
def run(monkeypatch, files, judge):
    def call(benchmark: str, out: Path, *more: str) -> None:
        words = ["--config", str(CONFIG), "--judge", str(judge), "--benchmark", benchmark.split()[0]]
        monkeypatch.setattr(sys, "argv", ["annotate", *words, *files[benchmark], "--out", str(out), *more])
        main()

    return call


def name_of(judge: Path) -> str:
    return f"tiny-{digest(judge)[:8]}"


def test_a_comparing_judge_annotates_alpaca_eval(run, judge, tmp_path, capsys):
    """A complete stage stays, and a broken one is completed, to the byte."""
    out, name, how = tmp_path / "out", name_of(judge), ("--protocol", "pairwise", "--N", "4")
    run(ALPACA_EVAL, out, *how)
    line, manifest = capsys.readouterr().err.splitlines()[-1], read_manifest(out)
    rows = json.loads((out / "annotations.json").read_text())
    for row, asked, output in zip(rows, ALPACA, ("The Po.", "It is {not}.", "5"), strict=True):
        known = {key: asked[key] for key in ("dataset", "instruction")}
        known |= {"output_1": asked["output"], "generator_1": "baseline", "output_2": output, "generator_2": "M1"}
        known |= {"annotator": name, "preference": row["preference"], "raw": row["raw"]}
        assert row == known and list(row) == list(known)
    assert (rows[0]["preference"], rows[0]["raw"]) == (1.5, [])  # equal texts tie unasked
    for row in rows[1:]:
        assert [(raw["shown"], raw["index"]) for raw in row["raw"]] == [(s, i) for s in (0, 1) for i in range(4)]
    unread = sum(raw["winner"] is None and raw["failure"] is not None for row in rows for raw in row["raw"])
    assert (manifest["judge"], manifest["protocol"], manifest["N"]) == (name, "pairwise", 4)
    assert line.startswith(f"{out}/annotations.json: by {name}, not the benchmark's own annotator: 3 questions")
    assert 0 < unread < 16 and line.endswith(f"; {unread} of 16 judgments could not be read")
    path = out / "annotations.json"
    assert alpaca.annotated(alpaca.read_annotations(path), None)["annotator"] == name

    content, before = path.read_bytes(), path.stat().st_mtime_ns
    run(ALPACA_EVAL, out, *how)
    assert path.stat().st_mtime_ns == before and read_manifest(out) == manifest
    shard = next((out / "judgments").glob("shards-*/*"))
    for lost in (out / "manifest.json", out / "judgments" / "manifest.json", shard, path):
        lost.unlink()
    run(ALPACA_EVAL, out, *how)
    assert path.read_bytes() == content and read_manifest(out)["digest"] == manifest["digest"]


def test_a_scoring_judge_annotates(run, judge, tmp_path, monkeypatch):
    """The higher mean wins, in AlpacaEval and in both games of Arena-Hard. Only rank 0 writes the file."""
    run(ALPACA_EVAL, tmp_path / "alpaca", "--N", "8")
    for row in json.loads((tmp_path / "alpaca" / "annotations.json").read_text())[1:]:
        sides = [[raw["score"] for raw in row["raw"] if raw["shown"] == side] for side in (0, 1)]
        one, two = (Fraction(sum(own), len(own)) for own in ([s for s in side if s is not None] for side in sides))
        assert row["preference"] == (1.5 if one == two else 1 if one > two else 2)
    run(ARENA_HARD, tmp_path / "arena", "--N", "6")
    path = tmp_path / "arena" / "model_judgment" / name_of(judge) / "M1.jsonl"
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
def test_arena_hard_has_two_games_a_question(run, judge, tmp_path, benchmark, asked):
    run(benchmark, tmp_path, "--protocol", "pairwise", "--N", "3")
    path = tmp_path / "model_judgment" / name_of(judge) / "M1.jsonl"
    named, texts = ["uid", "category"] if asked is ARENA_2 else ["question_id"], {}
    for record in read_shards(tmp_path / "judgments"):
        texts.setdefault((record["duel"], record["shown"]), []).append(record["text"])
    for row, question in zip(read_jsonl(path), asked, strict=True):
        known = {key: question[key] for key in named} | {"model": "M1", "judge": name_of(judge), "baseline": "base"}
        assert row == known | {"games": row["games"]}
        for shown, game in enumerate(row["games"]):
            text = "\n\n".join(texts[question[named[0]], shown])
            assert game["judgment"] == ({"answer": text} if asked is ARENA_2 else text)
    assert {board.judge for board in arena.read_judgments([path])} == {name_of(judge)}


def test_mt_bench_is_scored_by_turn_on_our_scale(run, judge, files, tmp_path):
    run(MT_BENCH, tmp_path, "--N", "2")
    path = tmp_path / "model_judgment" / f"{name_of(judge)}_single.jsonl"
    rows, records = list(read_jsonl(path)), list(read_shards(tmp_path / "judgments"))
    names = [(question["question_id"], turn) for question in MT for turn in (1, 2)]
    assert [record["response_id"] for record in records[::2]] == [f"{name}/turn{turn}" for name, turn in names]
    for row, (name, turn), *pair in zip(rows, names, records[::2], records[1::2], strict=True):
        known = {"question_id": name, "model": "M1", "judge": name_of(judge)}
        known |= {"judgment": "\n\n".join(record["text"] for record in pair), "score": row["score"]}
        assert row == known | {"scale": [0, 5], "turn": turn}
    unread = sum(row["score"] is None for row in rows)
    assert read_manifest(tmp_path)["counts"] == {"questions": 3, "scored": 6 - unread, "without_verdict": unread}
    questions = read_questions(MT_BENCH, Path(files[MT_BENCH][3]))
    [result] = mtbench.report(*mtbench.read_scores(path, questions), questions)
    assert "scores are from 0 to 5, not 1 to 10" in result["notes"][0]


NAMES = {"model": "M1", "judge": "ours", "baseline": "base"}


@pytest.mark.parametrize(
    ("as_is", "swapped", "preference", "games", "better"),
    [
        (["first"], ["second"], 1, ["A>B", "B>A"], "baseline_better"),  # the baseline's, in both orders
        (["second"], ["first"], 2, ["B>A", "A>B"], "model_better"),
        (["first"], ["first"], 1.5, ["A>B", "A>B"], "tied"),  # the first place, both times
        (["tie"], ["first"], 1.75, ["A=B", "A>B"], "model_better"),
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


def test_equal_texts_tie_unasked():
    question = Question("b1", "b1", "c", ["Name a river."], ARENA_1[0])
    [row], _ = compared_rows([question], [Duel("b1", "", "The Po.", "The Po.")], [], "scores", **NAMES)
    assert row["games"] == [{"judgment": "", "score": "A=B"}] * 2


def test_the_second_turn_is_judged_in_its_dialog():
    question = Question("81", "81", "writing", ["Write of a lake.", "Shorter."], MT[0])
    one, two = turn_responses(question, ["Blue water.", "Water."])
    assert (one["prompt"], one["text"], two["text"]) == ("Write of a lake.", "Blue water.", "Water.")
    assert two["prompt"] == (
        "The response continues this conversation.\n\nUser:\nWrite of a lake.\n\nAssistant:\nBlue water.\n\n"
        "User:\nShorter."
    )
    given = [(one["id"], score) for score in (4, None, 3)] + [(two["id"], None)]
    rows, _ = scored_rows([question], [{"response_id": name, "score": score, "text": "t"} for name, score in given])
    assert [(row["score"], row["judgment"]) for row in rows] == [(3.5, "t\n\nt\n\nt"), (None, "t")]


@pytest.mark.parametrize(
    ("benchmark", "more", "complaint"),
    [
        (ALPACA_EVAL, ["--questions", "Q"], "--questions for arena-hard and mt-bench"),
        (MT_BENCH, ["--baseline", "B"], "--baseline is for alpaca-eval and arena-hard"),
        (MT_BENCH, ["--protocol", "pairwise"], "--protocol scores for mt-bench"),
        (ALPACA_EVAL, ["--N", "0"], "--N must be at least 1"),
        (ARENA_HARD, ["--answers", "V"], "V: no such file"),
    ],
)
def test_refused_arguments(run, tmp_path, benchmark, more, complaint):
    with refused(complaint):
        run(benchmark, tmp_path / "out", *more)


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        (OUTPUTS[:2], r"M1.json: no answer to 1 of 3 questions: 'Why is {it} blue\?'; add them"),
        ([*OUTPUTS, OUTPUTS[1]], "entry 3: an answer to 'Name a river.' came before"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"generator": "M2"}], "answers of 2 models, 'M1', 'M2'"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"output": None}], "entry 2: an answer to 'Why is .* is no text"),
        ([{"instruction": "Add 2 and 2.", "output": ""}], "entry 0: generator is missing"),
    ],
)
def test_refused_answers(tmp_path, outputs, complaint):
    questions = read_questions(ALPACA_EVAL, written(tmp_path / "baseline.json", ALPACA))
    with refused(complaint):
        read_answers(ALPACA_EVAL, written(tmp_path / "M1.json", outputs), questions)
