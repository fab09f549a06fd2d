"""What the readers of benchmarks' files refuse, in one line."""

import pytest
from questions import ALPACA, ARENA_1, ARENA_2, MT, OUTPUTS, annotation, game, game_2, rated, refused, without, written

from evaluation.alpaca import read_annotations
from evaluation.arena import read_judgments, report
from evaluation.benchmarks import ALPACA_EVAL, ARENA_HARD, MT_BENCH, read_answers, read_questions
from evaluation.mtbench import read_scores

GAME, GAME_2, RATED = game("q1", "A>B", "A>B"), game_2("q1", "A>B", "A>B"), rated(81, 1, 5)
ALL_RATED = [rated(question["question_id"], turn, 5) for question in MT for turn in (1, 2)]


@pytest.mark.parametrize(
    ("benchmark", "rows", "complaint"),
    [
        (ALPACA_EVAL, [ALPACA[0], without(ALPACA[1], "instruction")], "q.json, entry 1: instruction is missing"),
        (ALPACA_EVAL, [*ALPACA, ALPACA[1]], r"q.json, entry 3: 'Why is {it} blue\?' came before"),
        (ALPACA_EVAL, [ALPACA[0] | {"instruction": " "}], "entry 0: ' ' came before, or a text is missing or empty"),
        (MT_BENCH, [], "q.jsonl: no questions"),
        (ARENA_HARD, [ARENA_2[0], without(ARENA_2[1], "prompt")], "q.jsonl, line 2: prompt is missing"),
        (ARENA_HARD, [ARENA_1[0] | {"turns": ["text"]}], "line 1: content is missing"),
        (ARENA_HARD, MT, "line 1: turns of arena-hard must be a list of 1"),
        (MT_BENCH, [without(MT[0], "question_id")], "line 1: question_id is missing; add it, or name a file of this"),
        (MT_BENCH, [MT[0], MT[1] | {"turns": ["a", None]}], "line 2: '111' came before, or a text is missing"),
    ],
)
def test_questions(tmp_path, benchmark, rows, complaint):
    with refused(complaint):
        read_questions(benchmark, written(tmp_path / ("q.json" if benchmark == ALPACA_EVAL else "q.jsonl"), rows))


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        (OUTPUTS[:2], r"M1.json: no answer to 1 of 3 questions: 'Why is {it} blue\?'; add them"),
        ([*OUTPUTS, OUTPUTS[1]], "entry 3: 'Name a river.' came before"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"generator": "M2"}], "answers of 2 models, 'M1', 'M2'"),
        ([*OUTPUTS[:2], OUTPUTS[2] | {"output": None}], "entry 2: 'Why is .* a text is missing"),
        ([{"instruction": "Add 2 and 2.", "output": ""}], "entry 0: generator is missing"),
    ],
)
def test_answers(tmp_path, outputs, complaint):
    questions = read_questions(ALPACA_EVAL, written(tmp_path / "baseline.json", ALPACA))
    with refused(complaint):
        read_answers(ALPACA_EVAL, written(tmp_path / "M1.json", outputs), questions)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], r"a\.jsonl: no judgments"),
        ([GAME, GAME], "line 2: M1 on question 'q1' comes twice"),
        ([without(GAME, "judge")], "line 1: judge is missing"),
        ([without(GAME, "question_id")], "line 1: question_id is missing"),
        ([GAME | {"games": [{"score": "A>B"}]}], "line 1: games must be a list of two"),
        ([GAME | {"games": [{"score": "A>B"}, {}]}], r"line 1: games\.1\.score is missing"),
        ([without(GAME_2, "category")], "line 1: category is missing"),
        ([without(GAME_2, "baseline")], "line 1: baseline is missing"),
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
        ([], r"j\.jsonl: no judgments"),
        (ALL_RATED[1:], r"j\.jsonl: gpt-4 did not judge M1 on 1 of 6 questions: '81, turn 1'"),
        ([RATED, RATED], "line 2: question 81, turn 1, of M1 comes twice"),
        ([RATED | {"turn": 3}], "line 1: question 81, turn 3, of M1 is not in --questions"),
        ([without(RATED, "score")], "line 1: score is missing"),
        ([RATED | {"judge": []}], r"line 1: judge\.0 is missing"),
        ([RATED | {"score": "5"}], "line 1: score is '5'"),
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
        ([annotation(0, 1), without(annotation(1, 1), "preference")], "entry 1: preference is missing"),
        ([without(annotation(1, 1), "annotator")], "entry 0: annotator is missing"),
        ([annotation(0, 1), annotation(1, 2.5)], "entry 1: preference is 2.5; it must be from 1 to 2, 0 for a tie"),
        *(([annotation(0, bad)], "entry 0: preference is ") for bad in (0.5, "m", [1])),
        ([annotation(0, None), annotation(1, None)], "a.json: no row has a preference"),
        ([annotation(0, 1), annotation(1, 1, generator_2="m2")], "a.json: generator_2 is model, m2; name one"),
        ([annotation(0, 1, annotator=None)], "a.json: annotator is None; name one"),
        ([annotation(0, 1, index=4), annotation(1, 2)], "entry 1: index is missing"),
        (annotation(0, 1), "a.json: not a JSON list"),
    ],
)
def test_annotations(tmp_path, rows, complaint):
    with refused(complaint):
        read_annotations(written(tmp_path / "a.json", rows))
