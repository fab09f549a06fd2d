"""What the readers of benchmarks' files refuse, in one line."""

import pytest
from questions import ALPACA, ARENA_2, MT, OUTPUTS, annotation, game, game_2, rated, refused, without, written

from evaluation.alpaca import read_annotations
from evaluation.arena import read_judgments, report
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, read_answers, read_questions
from evaluation.mtbench import read_scores

GAME, GAME_2, RATED = game("q1", "A>B", "A>B"), game_2("q1", "A>B", "A>B"), rated(81, 1, 5)
ALL_RATED = [rated(question["question_id"], turn, 5) for question in MT for turn in (1, 2)]


@pytest.mark.parametrize(
    ("benchmark", "rows", "complaint"),
    [
        (ALPACA_EVAL, [*ALPACA, ALPACA[1]], r"q.json, entry 3: 'Why is {it} blue\?' came before"),
        (ARENA_HARD, [ARENA_2[0], without(ARENA_2[1], "prompt")], "q.jsonl, line 2: key 'prompt' is missing"),
        (ARENA_HARD, MT, "line 1: turns of arena-hard must be a list of 1"),
    ],
)
def test_questions(tmp_path, benchmark, rows, complaint):
    with refused(complaint):
        read_questions(benchmark, written(tmp_path / ("q.json" if benchmark == ALPACA_EVAL else "q.jsonl"), rows))


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        (OUTPUTS[:2], r"M1.json: no answer to 1 of 3 questions: 'Why is {it} blue\?'; add them"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"generator": "M2"}], "answers of 2 models, 'M1', 'M2'"),
    ],
)
def test_answers(tmp_path, outputs, complaint):
    questions = read_questions(ALPACA_EVAL, written(tmp_path / "baseline.json", ALPACA))
    with refused(complaint):
        read_answers(ALPACA_EVAL, written(tmp_path / "M1.json", outputs), questions)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([GAME, GAME], "line 2: M1 on question 'q1' comes twice"),
        ([without(GAME_2, "baseline")], "line 1: key 'baseline' is missing"),
        *(
            ([row | {"baseline": x}], f"line 1: baseline is {x!r}; it")
            for row in (GAME, GAME_2)
            for x in (None, "", True)
        ),
        ([game("q1", None, "A<B")], "M1: no verdict of M1's counts"),
        ([GAME, GAME | {"model": "M2", "question_id": "q2"}], "M1: no judgment by M1's on 1 of 2 questions: 'q2'"),
    ],
)
def test_games(tmp_path, rows, complaint):
    with refused(complaint):
        report(read_judgments([written(tmp_path / "a.jsonl", rows)]))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (ALL_RATED[1:], r"j\.jsonl: gpt-4 did not judge M1 on 1 of 6 questions: '81, turn 1'"),
        ([RATED, RATED], "line 2: question 81, turn 1, of M1 comes twice"),
        ([rated(81, 1, 1.7e308)], r"line 1: score is 1.7e\+308; it must be a number from -1e15 to 1e15 or null"),
        ([rated(81, 1, 6, scale=[0, 5])], r"line 1: score is 6; it must lie in \[0, 5\]"),
        ([RATED, rated(81, 2, 5, scale=[0, 5])], r"j\.jsonl: several scales"),
    ],
)
def test_ratings(tmp_path, rows, complaint):
    questions = read_questions(MT_BENCH, written(tmp_path / "q.jsonl", MT))
    with refused(complaint):
        read_scores(written(tmp_path / "j.jsonl", rows), questions)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([annotation(0, 1), annotation(1, 2), annotation(0, 2)], "a.json: an instruction comes twice"),
        *(([annotation(0, bad)], "entry 0: preference is ") for bad in (0.5, 2.5, "m", [1], True, False)),
        *(
            ([annotation(0, 1, generator_2=x)], "entry 0: generator_2 is .*; it must be a text,")
            for x in ({"a": 1}, True)
        ),
        ([annotation(0, 1), annotation(1, 1, annotator=["x"])], r"entry 1: annotator is \['x'\]; it must be a text,"),
        ([annotation(0, 1), annotation(1, 1, index=1)], "entry 0: key 'index' is missing"),
        ([annotation(0, None), annotation(1, None)], "a.json: no row has a preference"),
        ([annotation(0, 1), annotation(1, 1, generator_2="m2")], "a.json: generator_2 is model, m2; name one"),
    ],
)
def test_annotations(tmp_path, rows, complaint):
    with refused(complaint):
        read_annotations(written(tmp_path / "a.json", rows))
