"""Any judge as annotator: both kinds of judge, all three benchmarks, worked by hand; refusals, and resuming.

The questions are those of tests/support/questions.py. The tiny judge gives a score or a winner, each half of the time.
"""

import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from questions import ALPACA, ARENA_1, ARENA_2, MT, without, written

import prepare.seed_model
from evaluation import alpaca, arena, mtbench
from evaluation.annotate import Finding, annotation_rows, compared, dialog_text, main, scored
from evaluation.benchmarks import (
    ALPACA_EVAL,
    ARENA_HARD,
    MT_BENCH,
    Answer,
    Match,
    Question,
    read_matches,
    read_questions,
)
from prepare.seed_model import make_tiny
from stages.files import UserError, digest, read_jsonl, read_manifest, read_shards

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.toml"

OUTPUTS = [
    {"dataset": "made_up", "instruction": "Add 2 and 2.", "output": "5", "generator": "M1"},
    {"dataset": "made_up", "instruction": "Name a river.", "output": "The Po.", "generator": "M1"},
    {"dataset": "other", "instruction": "Why is {it} blue?", "output": "It is {not}.", "generator": "M1"},
]


def arena_answer(question: dict, model: str, text: str) -> dict:
    if "uid" in question:
        messages = [{"role": "user", "content": question["prompt"]}, {"role": "assistant", "content": {"answer": text}}]
        return {"uid": question["uid"], "ans_id": text, "model": model, "messages": messages}
    choices = [{"index": 0, "turns": [{"content": text, "token_len": 1}]}]
    return {"question_id": question["question_id"], "answer_id": text, "model_id": model, "choices": choices}


def mt_answer(question: dict, model: str, *texts: str) -> dict:
    choices = [{"index": 0, "turns": list(texts)}]
    return {"question_id": question["question_id"], "answer_id": "x", "model_id": model, "choices": choices}


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            prepare.seed_model,
            "VERDICTS",
            [*prepare.seed_model.VERDICTS[:-2], "Winner: Response A\n", "Winner: Response B\n"],
        )
        make_tiny(folder, judge=True)
    return folder


@pytest.fixture
def files(tmp_path) -> dict[str, list[str]]:
    """Each benchmark's options: the model's answers, a baseline's and questions."""

    def options(folder: str, **rows: list[dict]) -> list[str]:
        (tmp_path / folder).mkdir()
        ending = "json" if folder == ALPACA_EVAL else "jsonl"
        paths = {name: tmp_path / folder / f"{'M1' if name == 'answers' else name}.{ending}" for name in rows}
        return [word for name in rows for word in (f"--{name}", str(written(paths[name], rows[name])))]

    def arena(questions: list[dict]) -> dict[str, list[dict]]:
        answers = [arena_answer(question, "M1", f"answer {i}") for i, question in enumerate(questions)]
        baseline = [arena_answer(question, "base", "None.") for question in reversed(questions)]
        return {"answers": answers, "baseline": baseline, "questions": questions}

    dialogs = [mt_answer(question, "M1", "Blue water.", "Water.") for question in MT]
    return {
        ALPACA_EVAL: options(ALPACA_EVAL, answers=OUTPUTS, baseline=ALPACA),
        ARENA_HARD: options(ARENA_HARD, **arena(ARENA_1)),
        "arena-hard 2": options("arena-hard 2", **arena(ARENA_2)),
        MT_BENCH: options(MT_BENCH, answers=dialogs, questions=MT),
    }


@pytest.fixture
def run(monkeypatch, files):
    def call(benchmark: str, out: Path, *more: str) -> None:
        words = ["--benchmark", benchmark.split()[0], *files[benchmark], "--out", str(out), *more]
        monkeypatch.setattr(sys, "argv", ["annotate", *words])
        main()

    return call


def by_model(judge: Path, *more: str) -> list[str]:
    return ["--config", str(CONFIG), "--judge", str(judge), *more]


def name_of(judge: Path) -> str:
    return f"tiny-{digest(judge)[:8]}"


def test_a_comparing_judge_annotates_alpaca_eval(run, judge, tmp_path, capsys):
    out, name = tmp_path / "out", name_of(judge)
    run(ALPACA_EVAL, out, *by_model(judge, "--protocol", "pairwise", "--N", "4"))
    rows = json.loads((out / "annotations.json").read_text())
    for row, asked, output in zip(rows, ALPACA, ("The Po.", "It is {not}.", "5"), strict=True):
        known = {key: asked[key] for key in ("dataset", "instruction")}
        known |= {"output_1": asked["output"], "generator_1": "baseline", "output_2": output, "generator_2": "M1"}
        known |= {"annotator": name, "preference": row["preference"], "raw": row["raw"]}
        assert row == known and list(row) == list(known)
    assert (rows[0]["preference"], rows[0]["raw"]) == (1.5, [])  # equal texts tie unasked
    unread = 0
    for row in rows[1:]:
        assert [(raw["shown"], raw["index"]) for raw in row["raw"]] == [(s, i) for s in (0, 1) for i in range(4)]
        orders = []
        for shown, better in ((0, "second"), (1, "first")):  # where the model's answer is
            winners = [raw["winner"] for raw in row["raw"] if raw["shown"] == shown and raw["winner"]]
            orders += [Fraction(winners.count(better), len(winners))] if winners else []
        assert row["preference"] == (float(1 + sum(orders) / len(orders)) if orders else None)
        unread += sum(raw["winner"] is None and raw["failure"] is not None for raw in row["raw"])
    manifest = read_manifest(out)
    assert (manifest["judge"], manifest["protocol"], manifest["N"]) == (name, "pairwise", 4)
    assert manifest["counts"]["questions"] == 3 and manifest["judgments"]["records"] == 16
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{out}/annotations.json: by {name}, not the benchmark's own annotator: 3 questions")
    assert 0 < unread < 16 and line.endswith(f"; {unread} of 16 judgments could not be read")


def test_a_scoring_judge_annotates(run, judge, tmp_path):
    """The higher mean wins, in AlpacaEval and in both games of Arena-Hard."""
    run(ALPACA_EVAL, tmp_path / "alpaca", *by_model(judge, "--N", "8", "--judge-name", "ours"))
    for row in json.loads((tmp_path / "alpaca" / "annotations.json").read_text())[1:]:
        sides = [[raw["score"] for raw in row["raw"] if raw["shown"] == side] for side in (0, 1)]
        one, two = (Fraction(sum(own), len(own)) for own in ([s for s in side if s is not None] for side in sides))
        assert (row["annotator"], row["preference"]) == ("ours", 1.5 if one == two else 1 if one > two else 2)
    run(ARENA_HARD, tmp_path / "arena", *by_model(judge, "--N", "6", "--judge-name", "ours"))
    rows = read_jsonl(tmp_path / "arena" / "model_judgment" / "ours" / "M1.jsonl")
    games = [tuple(game["score"] for game in row["games"]) for row in rows]
    assert len(games) == 2 and set(games) <= {("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A=B")}


@pytest.mark.parametrize(("benchmark", "asked"), [(ARENA_HARD, ARENA_1), ("arena-hard 2", ARENA_2)])
def test_arena_hard_has_two_games_a_question(run, judge, tmp_path, benchmark, asked):
    out, name = tmp_path / "out", name_of(judge)
    run(benchmark, out, *by_model(judge, "--protocol", "pairwise", "--N", "3"))
    rows = list(read_jsonl(out / "model_judgment" / name / "M1.jsonl"))
    named = ["uid", "category"] if "2" in benchmark else ["question_id"]
    for row, question in zip(rows, asked, strict=True):
        known = {key: question[key] for key in named} | {"model": "M1", "judge": name, "baseline": "base"}
        assert row == known | {"games": row["games"]}
        records = [r for r in read_shards(out / "judgments") if r["duel"] == question[named[0]]]
        for shown, game in enumerate(row["games"]):
            mine = [record for record in records if record["shown"] == shown]
            a, b = (sum(record["winner"] == place for record in mine) for place in ("first", "second"))
            assert game["score"] == (None if not a + b else "A=B" if a == b else "A>B" if a > b else "B>A")
            text = "\n\n".join(record["text"] for record in mine)
            assert game["judgment"] == ({"answer": text} if "2" in benchmark else text)


def test_mt_bench_is_scored_by_turn_on_our_scale(run, judge, files, tmp_path):
    out, name = tmp_path / "out", name_of(judge)
    run(MT_BENCH, out, *by_model(judge, "--N", "2"))
    path = out / "model_judgment" / f"{name}_single.jsonl"
    rows = list(read_jsonl(path))
    for row, (question, turn) in zip(rows, [(q, turn) for q in MT for turn in (1, 2)], strict=True):
        part = f"{question['question_id']}/turn{turn}"
        records = [record for record in read_shards(out / "judgments") if record["response_id"] == part]
        scores = [record["score"] for record in records if record["score"] is not None]
        known = {"question_id": question["question_id"], "model": "M1", "judge": name}
        known |= {"judgment": "\n\n".join(record["text"] for record in records)}
        known |= {"score": sum(scores) / len(scores) if scores else None, "scale": [0, 5], "turn": turn}
        assert len(records) == 2 and row == known | {"tstamp": row["tstamp"]}
    unread = sum(row["score"] is None for row in rows)
    assert read_manifest(out)["counts"] == {"questions": 3, "scored": 6 - unread, "without_verdict": unread}
    questions = read_questions(MT_BENCH, Path(files[MT_BENCH][3]))
    [result] = mtbench.report(*mtbench.read_scores(path, questions), questions)
    assert result["scale"] == [0, 5] and "scores are from 0 to 5, not 1 to 10" in result["notes"][0]


def match_of(first: str, second: str, row: dict = ARENA_1[0]) -> Match:
    return Match(Question("b1", "b1", "c", ["Name a river."], row), Answer("M1", [second]), Answer("base", [first]))


def comparisons(as_is: list, swapped: list) -> list[dict]:
    given = [(side, i, winner) for side, winners in enumerate((as_is, swapped)) for i, winner in enumerate(winners)]
    known = {"duel": "b1", "failure": None}
    return [known | {"shown": side, "index": i, "winner": winner, "text": f"{side}{i}"} for side, i, winner in given]


@pytest.mark.parametrize(
    ("as_is", "swapped", "preference", "games"),
    [
        (["first"], ["second"], 1, ["A>B", "B>A"]),  # the baseline's, in both orders
        (["second"], ["first"], 2, ["B>A", "A>B"]),
        (["first"], ["first"], 1.5, ["A>B", "A>B"]),  # the first place, both times
        (["tie"], ["tie"], 1.5, ["A=B", "A=B"]),
        (["tie"], ["first"], 1.75, ["A=B", "A>B"]),
        (["second", "first"], ["first", "first"], 1.75, ["A=B", "A>B"]),
        ([None], ["first"], 2, [None, "A>B"]),
        ([None], [None], None, [None, None]),
    ],
)
def test_preferences_by_hand(as_is, swapped, preference, games):
    match = match_of("The Po.", "No.")
    finding = compared(match, comparisons(as_is, swapped), "pairwise")
    [row] = annotation_rows(ALPACA_EVAL, match_of("The Po.", "No.", ALPACA[0]), finding, "ours", 0)
    assert row["preference"] == preference
    [row] = annotation_rows(ARENA_HARD, match, finding, "ours", 0)
    assert [game["score"] for game in row["games"]] == games
    assert finding.texts == ["\n\n".join(f"0{i}" for i in range(len(as_is))), "10" if len(swapped) == 1 else "10\n\n11"]


def test_equal_texts_tie_unasked_and_a_share_has_its_float():
    match = match_of("The Po.", "The Po.")
    [row] = annotation_rows(ARENA_HARD, match, compared(match, [], "pairwise"), "ours", 0)
    assert row["games"] == [{"judgment": "", "score": "A=B"}] * 2
    [row] = annotation_rows(ALPACA_EVAL, match, Finding([Fraction(1, 3)] * 2, ("", ""), []), "ours", 0)
    assert row["preference"] == pytest.approx(5 / 3, abs=1e-15)


def test_the_second_turn_is_judged_in_its_dialog():
    question = Question("81", "81", "writing", ["Write of a lake.", "Shorter."], MT[0])
    match = Match(question, Answer("M1", ["Blue water.", "Water."]), None)
    assert dialog_text(match, 0) == "Write of a lake."
    assert dialog_text(match, 1) == (
        "The response continues this conversation.\n\nUser:\nWrite of a lake.\n\nAssistant:\nBlue water.\n\n"
        "User:\nShorter."
    )
    finding = scored([[{"score": score, "text": "t"} for score in own] for own in ((4, None, 3), (None, None, None))])
    assert (finding.values, finding.texts[0]) == ([3.5, None], "t\n\nt\n\nt")


def verdicts(tmp_path: Path, rows: list[dict]) -> list[str]:
    return ["--verdicts", str(written(tmp_path / "verdicts.jsonl", rows))]


def test_verdicts_from_elsewhere_annotate_alpaca_eval(run, tmp_path):
    given = [
        {"id": 2, "verdict": 1.9, "judge": "friends"},
        {"id": "Why is {it} blue?", "verdict": "first", "game": 1, "judge": "friends", "text": "Shorter."},
        {"id": 1, "verdict": "tie", "game": 2, "judge": "friends"},
        {"id": "0000", "verdict": 1.5, "judge": "friends"},
    ]
    run(ALPACA_EVAL, tmp_path / "out", *verdicts(tmp_path, given))
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [row["raw"] for row in rows] == [[given[3]], given[1:3], [given[0]]]
    assert [row["preference"] for row in rows] == [1.5, 1.25, 1.9]
    result = alpaca.annotated(alpaca.read_annotations(tmp_path / "out" / "annotations.json"), None)
    assert (result["annotator"], result["win_rate"]) == ("friends", pytest.approx(55))
    counts = read_manifest(tmp_path / "out")["counts"]
    assert counts == {"questions": 3, "baseline_better": 1, "tied": 1, "model_better": 1, "without_verdict": 0}


def test_a_public_baseline_without_data_sets(run, files, tmp_path):
    written(Path(files[ALPACA_EVAL][3]), [without(row, "dataset") for row in ALPACA])
    run(ALPACA_EVAL, tmp_path / "out", *verdicts(tmp_path, GIVEN))
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [list(row)[:2] for row in rows] == [["instruction", "output_1"]] * 3


def test_verdicts_from_elsewhere_annotate_arena_hard(run, tmp_path):
    given = [{"id": "a2", "verdict": "second"}, {"id": "b1", "verdict": "first", "game": 2, "text": "B is."}]
    given += [{"id": "b1", "verdict": None, "game": 1}]
    run(ARENA_HARD, tmp_path / "out", *verdicts(tmp_path, given), "--judge-name", "ours")
    path = tmp_path / "out" / "model_judgment" / "ours" / "M1.jsonl"
    one, two = (row["games"] for row in read_jsonl(path))
    assert one == [{"judgment": "", "score": None}, {"judgment": "B is.", "score": "B>A"}]
    assert [game["score"] for game in two] == ["B>A", "A>B"]
    [result] = arena.report(arena.read_judgments([path]))
    assert (result["judge"], result["baseline"]) == ("ours", "base")
    assert result["rows"][0]["score"] == pytest.approx(200 / 3, abs=0.01)  # of three verdicts


def mt_verdicts(score=7, scale=(1, 10)) -> list[dict]:
    known = {"score": score, "scale": list(scale), "judge": "friends"}
    return [{"id": question["question_id"], "turn": turn} | known for question in MT for turn in (2, 1)]


def test_scores_from_elsewhere_annotate_mt_bench(run, tmp_path):
    given = [mt_verdicts()[0] | {"score": None}, *mt_verdicts()[1:]]
    run(MT_BENCH, tmp_path / "out", *verdicts(tmp_path, given))
    rows = list(read_jsonl(tmp_path / "out" / "model_judgment" / "friends_single.jsonl"))
    assert [(row["turn"], row["score"]) for row in rows] == [(1, 7), (2, None), (1, 7), (2, 7), (1, 7), (2, 7)]
    assert all(row["scale"] == [1, 10] and row["judge"] == "friends" for row in rows)


GIVEN = [{"id": i, "verdict": "tie", "judge": "friends"} for i in range(3)]


@pytest.mark.parametrize(
    ("benchmark", "rows", "complaint"),
    [
        (ALPACA_EVAL, [*GIVEN, GIVEN[0] | {"id": "Name a river."}], "line 4: 'Name a river.' came before .*ine 1"),
        (ALPACA_EVAL, GIVEN[:1], r"not one row, .* of 2 of 3 questions: 'Why is {it} blue\?', 'Add 2 and 2.'"),
        (ALPACA_EVAL, [*GIVEN, {"id": 3, "verdict": "tie"}], "line 4: no question has the id '3'"),
        *((ALPACA_EVAL, [{"id": 0, "verdict": bad}], "line 1: verdict is .*; it must be") for bad in (0, True, ["A"])),
        (ALPACA_EVAL, [{"id": 0}], "line 1: verdict is missing"),
        (ALPACA_EVAL, [{"id": 0, "verdict": "tie", "game": 3}], "line 1: no question has the id '0' and game 3"),
        (ALPACA_EVAL, [GIVEN[0] | {"game": 2}, *GIVEN[1:]], "not one row, or a row for each game.*'Name a river.'"),
        (ALPACA_EVAL, [*GIVEN, GIVEN[0] | {"game": 2}], "not one row, or a row for each game.*'Name a river.'"),
        (ALPACA_EVAL, [*GIVEN[:2], GIVEN[2] | {"judge": "foes"}], "must be one text without a slash in all rows"),
        (ALPACA_EVAL, [{"id": i, "verdict": "tie"} for i in range(3)], "the judge's name '' must be one text"),
        (ALPACA_EVAL, [row | {"judge": "GPT-4"} for row in GIVEN], "'GPT-4' is a benchmark's own annotator's"),
        (MT_BENCH, mt_verdicts()[:-1], "not a row for each turn, 1 and 2, of 1 of 3 questions: '141'"),
        (MT_BENCH, mt_verdicts(score=11), r"line 1: score is 11; it must lie in \[1, 10\]"),
        (MT_BENCH, mt_verdicts(scale=(1,)), r"line 1: scale is \[1\]; it must be the lowest and the highest"),
        (MT_BENCH, [{"id": 81, "turn": 1, "score": 3}], "line 1: scale is missing"),
    ],
)
def test_refused_verdicts(run, tmp_path, benchmark, rows, complaint):
    with pytest.raises(UserError, match=complaint):
        run(benchmark, tmp_path / "out", *verdicts(tmp_path, rows))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        (OUTPUTS[:2], r"M1.json: no answer to 1 of 3 questions: 'Why is {it} blue\?'; add them"),
        ([*OUTPUTS, OUTPUTS[1]], "entry 3: 'Name a river.' came before \\(.*entry 1\\)"),
        ([*OUTPUTS, OUTPUTS[0] | {"instruction": "?"}], r"baseline.json: no answer to 1 of 4 questions: '\?'"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"generator": "M2"}], "answers of 2 models, 'M1', 'M2'"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"output": None}], "entry 2: an answer to 'Why is .* is no text of whole"),
        ([{"instruction": "Add 2 and 2.", "output": ""}], "entry 0: generator is missing"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"output": "\ud83d"}], "entry 2: an answer to 'Why is .* is no text of whole"),
    ],
)
def test_refused_answers_to_alpaca_eval(tmp_path, outputs, complaint):
    answers, baseline = tmp_path / "M1.json", written(tmp_path / "baseline.json", ALPACA)
    answers.write_text(json.dumps(outputs))
    with pytest.raises(UserError, match=complaint):
        read_matches(ALPACA_EVAL, answers, baseline, None)


def test_a_baseline_may_answer_more_than_is_asked_and_no_less(tmp_path):
    questions = written(tmp_path / "question.jsonl", ARENA_2[:1])
    answers = written(tmp_path / "M1.jsonl", [arena_answer(question, "M1", "a") for question in ARENA_2])
    baseline = written(tmp_path / "base.jsonl", [arena_answer(question, "base", "b") for question in ARENA_2])
    [match] = read_matches(ARENA_HARD, answers, baseline, questions)
    assert (match.question.id, match.answer.texts, match.baseline.texts) == ("f00d", ["a"], ["b"])
    written(baseline, [arena_answer(ARENA_2[1], "base", "b")])
    with pytest.raises(UserError, match=r"base\.jsonl: no answer to 1 of 1 questions: 'f00d'"):
        read_matches(ARENA_HARD, answers, baseline, questions)
    written(answers, [{"uid": "f00d", "model": "M1", "messages": [{"content": "a"}]}])
    with pytest.raises(UserError, match=r"M1\.jsonl, line 1: messages\.-1\.content\.answer is missing"):
        read_matches(ARENA_HARD, answers, baseline, questions)


@pytest.mark.parametrize(
    ("benchmark", "more", "complaint"),
    [
        (ALPACA_EVAL, ["--judge", "J"], "--config: a --judge needs one"),
        (ALPACA_EVAL, ["--verdicts", "V", "--questions", "Q"], "--questions for arena-hard and mt-bench"),
        (MT_BENCH, ["--verdicts", "V", "--baseline", "B"], "--baseline is for alpaca-eval and arena-hard"),
        (MT_BENCH, ["--config", "C", "--judge", "J", "--protocol", "pairwise"], "--protocol scores for mt-bench"),
        (ALPACA_EVAL, ["--config", "C", "--judge", "J", "--N", "0"], "--N must be at least 1"),
        (ARENA_HARD, ["--verdicts", "V"], "V: no such file"),
        (ALPACA_EVAL, ["--verdicts", "V", "--protocol", "pairwise"], "--verdicts has no use for .*--protocol, --N"),
        (ALPACA_EVAL, ["--verdicts", "V", "--N", "2"], "--verdicts has no use for"),
        (ALPACA_EVAL, ["--verdicts", "V", "--config", "C"], "--verdicts has no use for"),
    ],
)
def test_refused_arguments(run, tmp_path, benchmark, more, complaint):
    with pytest.raises(UserError, match=complaint):
        run(benchmark, tmp_path / "out", *more)


@pytest.mark.parametrize("name", ["weighted_alpaca_eval_gpt4_turbo", "gpt-4-1106-preview", "a/b", " "])
def test_our_judge_takes_no_official_name(run, judge, tmp_path, name):
    with pytest.raises(UserError, match=r"the judge's name .* give (another by )?--judge-name"):
        run(ALPACA_EVAL, tmp_path / "out", *by_model(judge, "--judge-name", name))
    assert not (tmp_path / "out").exists()


def test_a_complete_stage_stays_a_broken_one_is_completed_and_a_new_name_samples_nothing(run, judge, tmp_path):
    out, how = tmp_path / "out", by_model(judge, "--protocol", "pairwise")
    run(ALPACA_EVAL, out, *how)
    path, manifest = out / "annotations.json", read_manifest(out)
    content, judgments = path.read_bytes(), out / "judgments"
    shards = [judgments / name for name in read_manifest(judgments)["shards"]]
    before = path.stat().st_mtime_ns
    run(ALPACA_EVAL, out, *how)
    assert path.stat().st_mtime_ns == before and read_manifest(out) == manifest

    for lost in (out / "manifest.json", judgments / "manifest.json", *shards, path):
        lost.unlink()
    run(ALPACA_EVAL, out, *how)
    assert path.read_bytes() == content and read_manifest(out)["digest"] == manifest["digest"]

    asked = [shard.stat().st_mtime_ns for shard in shards]
    run(ALPACA_EVAL, out, *how, "--judge-name", "another")
    assert [shard.stat().st_mtime_ns for shard in shards] == asked
    assert {row["annotator"] for row in json.loads(path.read_text())} == {"another"}


def test_another_rank_writes_no_file(run, judge, tmp_path, monkeypatch):
    run(ALPACA_EVAL, tmp_path / "out", *by_model(judge))
    for lost in ("annotations.json", "manifest.json"):
        (tmp_path / "out" / lost).unlink()
    monkeypatch.setenv("RANK", "1")
    run(ALPACA_EVAL, tmp_path / "out", *by_model(judge))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["judgments"]


def test_nothing_to_ask(run, judge, files, tmp_path):
    shutil.copy(files[ALPACA_EVAL][3], files[ALPACA_EVAL][1])
    run(ALPACA_EVAL, tmp_path / "out", *by_model(judge))
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [row["preference"] for row in rows] == [1.5] * 3
