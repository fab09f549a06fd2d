"""Variance selection and judge pairs against tables worked by hand; every reason; the command."""

import json
import math
from fractions import Fraction

import pytest
from records import CHAT, EVEN, decided, flattened, judgments, make_settings, response, take_first, take_last

import judging.pairs
from judging.judge_pairs import Contest, choose_judgments, position_collapse, position_wins
from judging.metajudge import choose_meta_judged
from judging.pairs import PAIRS, actor_pairs, judge_pairs
from judging.rubric import judge_prompt
from judging.scores import (
    ACTOR_REASONS,
    JUDGE_REASONS,
    Reason,
    distinct_judgments,
    distinct_responses,
    mean_score,
    meta_judged,
    response_scores,
    seeded_draw,
    variance,
)
from stages.files import UserError, read_jsonl, read_manifest, write_jsonl, write_manifest
from stages.records import group_by
from stages.settings import Iteration, Metajudge

# --- scores ---------------------------------------------------------------------------------------------------------


def test_distinct_responses():
    rows = [
        response(1, 0, "same"),
        response(1, 1, "same", "length"),
        response(1, 2, "", "too_long"),
        response(1, 3, "cut", "length"),
        response(2, 0, "same"),
        response(1, 4, "same "),
        response(1, 5, ""),
    ]
    assert [row["id"] for row in distinct_responses(rows)] == ["p1/r0", "p1/r3", "p2/r0", "p1/r4", "p1/r5"]


def test_mean_scores_are_exact_and_failures_are_as_deleted():
    assert mean_score(judgments("p1/r0", [4, 4, 3]), 1) == Fraction(11, 3)
    assert mean_score(judgments("p1/r0", [4, None, 4, None, 3]), 3) == Fraction(11, 3)
    assert mean_score(judgments("p1/r0", [4, None, 4, None, 3]), 4) is None
    assert mean_score(judgments("p1/r0", [None, None]), 1) is None
    assert mean_score([], 1) is None
    assert mean_score(judgments("p1/r0", [0, 0]), 1) == 0
    assert mean_score(judgments("p1/r0", [4.1, 4.2]), 1) == Fraction(83, 20)
    # Equal texts are two draws of one distribution: both enter the mean.
    assert mean_score(judgments("p1/r0", [5, 5, 2], ["a", "a", "b"]), 1) == 4


def test_variance_by_hand():
    assert variance([Fraction(3)]) == 0
    assert variance([Fraction(x) for x in (1, 5)]) == 4  # population: ((-2)^2 + 2^2) / 2
    assert variance([Fraction(x) for x in (1, 2, 3, 4)]) == Fraction(5, 4)
    assert variance([Fraction(x) for x in (0, 5, 5)]) == Fraction(50, 9)


def test_equal_judgments_and_failures_are_not_distinct():
    rows = judgments("p1/r0", [4, 4, None, 2, 4], ["a", "a", "b", "c", "d"])
    assert [row["index"] for row in distinct_judgments(rows)] == [0, 3, 4]


@pytest.mark.parametrize(
    ("scores", "picked", "indices"),
    [
        ({0: [3, 3, 3], 1: [1, 5, 3], 2: [2, 4, 3]}, 1, [0, 1, 2]),
        # a failure is as deleted: [0, 5] varies more than [1, 5, 5, 1], 25/4 against 4
        ({0: [1, 5, 5, 1], 1: [0, None, 5, None]}, 1, [0, 2]),
        # one parsed judgment cannot be compared, whatever it says
        ({0: [5, None, None], 1: [3, 3, None]}, 1, [0, 1]),
        # all variances zero: the draw decides among those that can be compared
        ({0: [2, None], 1: [3, 3], 2: [4, 4]}, 1, [0, 1]),
        # missing judgments
        ({1: [3, 4]}, 1, [0, 1]),
    ],
)
def test_the_response_of_highest_variance_is_meta_judged(scores, picked: int, indices):
    responses = [response(1, sample, f"text {sample}") for sample in range(3)]
    by_response = {f"p1/r{sample}": judgments(f"p1/r{sample}", row) for sample, row in scores.items()}
    chosen, distinct = meta_judged(responses, by_response, take_first)
    assert chosen["sample"] == picked
    assert [row["index"] for row in distinct] == indices


def test_equal_judgments_count_once_in_the_variance():
    responses = [response(1, 0, "a"), response(1, 1, "b")]
    # r0: {0, 5} after removing repetitions, 25/4; with them (0, 5, 5, 5) 75/16. r1: 59/12, in between.
    by_response = {
        "p1/r0": judgments("p1/r0", [0, 5, 5, 5], ["x", "y", "y", "y"]),
        "p1/r1": judgments("p1/r1", [0, 0, 5, 5, 1, 4]),
    }
    assert variance([Fraction(x) for x in (0, 5, 5, 5)]) < variance([Fraction(x) for x in (0, 0, 5, 5, 1, 4)]) < 6
    assert meta_judged(responses, by_response, take_first)[0]["id"] == "p1/r0"


def test_variance_ties_are_drawn_with_the_seed():
    responses = [response(1, sample, f"text {sample}") for sample in range(4)]
    by_response = {f"p1/r{i}": judgments(f"p1/r{i}", row) for i, row in enumerate([[1, 5], [5, 1], [3, 4], [0, 4]])}
    drawn = [meta_judged(responses, by_response, seeded_draw(seed, 1))[0]["sample"] for seed in range(60)]
    assert set(drawn) == {0, 1, 3}
    assert drawn == [meta_judged(responses, by_response, seeded_draw(seed, 1))[0]["sample"] for seed in range(60)]


def test_nothing_to_meta_judge():
    responses = [response(1, 0, "a"), response(1, 1, "b")]
    by_response = {
        "p1/r0": judgments("p1/r0", [4, 4, None], ["x", "x", "y"]),
        "p1/r1": judgments("p1/r1", [None, 3, None]),
    }
    assert meta_judged(responses, by_response, take_first) is None
    assert meta_judged([], {}, take_first) is None


# --- judge pairs ----------------------------------------------------------------------------------------------------

THREE = judgments("p1/r0", [4, None, 3, 2], ["long judgment", "", "short", "shorter"])
THREE = [row for row in THREE if row["score"] is not None]  # indices 0, 2, 3


def judge_choice(battles, weights=EVEN, draw=take_first, rows=THREE, **rules):
    choice = choose_judgments(Contest({"id": "p1/r0"}, rows, battles), weights, Metajudge(), Iteration(**rules), draw)
    return choice if isinstance(choice, Reason) else tuple(row["index"] for row, _ in choice)


@pytest.mark.parametrize(
    ("battles", "weights", "pair"),
    [
        # 3 beats both in both orders, 0 beats 2
        ([(3, 0, "first"), (0, 3, "second"), (3, 2, "first"), (2, 3, "second"), (0, 2, "first")], EVEN, (3, 2)),
        # 0 wins once shown first, 2 wins once shown second: the rarer kind weighs more
        ([(0, 2, "first"), (0, 2, "second")], (0.1, 0.9), (2, 0)),
        ([(0, 2, "first"), (0, 2, "second")], (0.9, 0.1), (0, 2)),
        ([(0, 2, "first"), (0, 2, "second")], EVEN, Reason.EQUAL_ELO),
        # the same preference in both orders beats a positional one: B_02 = w1 + w2 = 1
        ([(0, 2, "first"), (2, 0, "second"), (0, 3, "first"), (3, 0, "first")], EVEN, (0, 2)),
        # a circle
        ([(0, 2, "first"), (2, 3, "first"), (3, 0, "first")], EVEN, Reason.EQUAL_ELO),
        # nothing decided
        ([], EVEN, Reason.NO_DECISIVE_COMPARISON),
        ([(0, 2, None), (2, 0, "tie"), (3, 0, None)], EVEN, Reason.NO_DECISIVE_COMPARISON),
        # a win that weighs nothing
        ([(0, 2, "first")], (0.0, 1.0), Reason.NO_DECISIVE_COMPARISON),
    ],
)
def test_judge_pairs_by_hand(battles, weights, pair):
    assert judge_choice(battles, weights) == pair


def test_equal_elo_at_an_end_is_drawn():
    battles = [(0, 3, "first"), (2, 3, "first")]  # 0 and 2 are equally good
    assert judge_choice(battles) == (0, 3)
    assert judge_choice(battles, draw=take_last) == (2, 3)
    battles = [(3, 0, "first"), (3, 2, "first")]
    assert judge_choice(battles) == (3, 0)
    assert judge_choice(battles, draw=take_last) == (3, 2)


def test_the_chosen_judgment_may_not_be_too_long():
    battles = [(0, 2, "first"), (2, 0, "second"), (3, 2, "first")]
    assert judge_choice(battles, max_judgment_characters=len("long judgment")) == (0, 2)
    assert judge_choice(battles, max_judgment_characters=len("long judgment") - 1) == Reason.CHOSEN_TOO_LONG


def test_the_judge_pair_carries_its_elo():
    contest = Contest({"id": "p1/r0"}, THREE, [(0, 2, "first")])
    pair = choose_judgments(contest, EVEN, Metajudge(), Iteration(), take_first)
    assert not isinstance(pair, Reason)
    (_, chosen_elo), (_, rejected_elo) = pair
    assert chosen_elo > 0 > rejected_elo and chosen_elo + rejected_elo == pytest.approx(0)


def test_positions():
    battles = {"a": [(0, 1, "first"), (1, 0, "first"), (0, 2, None)], "b": [(0, 1, "second"), (1, 0, "tie")]}
    wins = position_wins(battles)
    assert wins == {"first": 2, "second": 1, "neither": 2}
    assert not position_collapse(wins)
    assert position_collapse({"first": 3, "second": 0}) and position_collapse({"first": 0, "second": 1})
    assert not position_collapse({"first": 0, "second": 0})


# --- all together ---------------------------------------------------------------------------------------------------


def actor_case(rows: list[tuple[str, list]], minimum_valid: int = 1):
    responses = [response(1, sample, text) for sample, (text, _) in enumerate(rows)]
    rated = [row for r, (_, scores) in zip(responses, rows, strict=True) for row in judgments(r["id"], scores)]
    return group_by(responses, "prompt_id"), response_scores(group_by(rated, "response_id"), minimum_valid)


def made_judge_pairs(prompts, rated, battles, settings):
    contests = decided(flattened(prompts), rated, battles, settings)
    return judge_pairs(contests, position_wins(battles), settings, 1, CHAT)


@pytest.mark.parametrize(
    ("rows", "rules", "reason"),
    [
        ([("a", [5]), ("a", [1])], {}, Reason.TOO_FEW_RESPONSES),
        ([("a", [5]), ("b", [None])], {}, Reason.TOO_FEW_SCORED),
        ([("a", [5, 5]), ("b", [1, None])], {"minimum_valid": 2}, Reason.TOO_FEW_SCORED),
        ([("a", [5, 1]), ("b", [3])], {}, Reason.EQUAL_SCORES),
        ([("aaa", [5]), ("bb", [3]), ("c", [1])], {"rho": 0.5}, Reason.SAME_RESPONSE),
        ([("aaa", [5]), ("b", [3]), ("cccc", [3]), ("dd", [1])], {"rho": 0.5}, Reason.NOT_BETTER),
        ([("aaa", [5]), ("b", [3])], {"max_response_characters": 2}, Reason.CHOSEN_TOO_LONG),
    ],
)
def test_every_actor_reason_is_counted(rows, rules, reason):
    case = actor_case(rows, rules.pop("minimum_valid", 1))
    assert actor_pairs(*case, make_settings(**rules), 1, CHAT) == ([], {"p1": reason})


def test_an_actor_pair():
    prompts, rated = actor_case(
        [("good", [5, 4, 4]), ("bad", [1, None, 2]), ("good", [0, 0, 0]), ("middle", [3, 3, 3])]
    )
    pairs, reasons = actor_pairs(prompts, rated, make_settings(), 1, CHAT)
    assert not reasons
    assert pairs == [
        {
            "id": "actor/p1",
            "kind": "actor",
            "prompt_id": "p1",
            "prompt": [{"role": "user", "content": "question 1"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
            "prompt_ids": [1, *b"question 1", 2],
            "chosen_ids": [100, 9],
            "rejected_ids": [101, 9],
            "chosen_id": "p1/r0",
            "rejected_id": "p1/r1",
            "chosen_score": 13 / 3,
            "rejected_score": 1.5,
        }
    ]


ONE = (group_by([response(1, 0, "answer")], "prompt_id"), group_by(judgments("p1/r0", [4, 2]), "response_id"))
BOTH_WON = {"p9/r0": [(0, 1, "first"), (0, 1, "second")]}  # another prompt's battles, so that both positions have won


@pytest.mark.parametrize(
    ("battles", "rules", "reason"),
    [
        ([(0, 1, None), (1, 0, "tie")], {}, Reason.NO_DECISIVE_COMPARISON),
        ([(0, 1, "first"), (1, 0, "first")], {}, Reason.EQUAL_ELO),
        ([(0, 1, "first"), (1, 0, "second")], {"max_judgment_characters": 3}, Reason.CHOSEN_TOO_LONG),
    ],
)
def test_judge_reasons_are_counted(battles, rules, reason):
    assert made_judge_pairs(*ONE, {"p1/r0": battles} | BOTH_WON, make_settings(**rules)) == ([], {"p1": reason})


@pytest.mark.parametrize("winner", ["first", "second"])
def test_position_collapse_leaves_no_judge_pair(winner: str):
    battles = {"p1/r0": [(0, 1, winner), (1, 0, None)]}
    assert made_judge_pairs(*ONE, battles, make_settings()) == ([], {"p1": Reason.POSITION_COLLAPSE})


def test_too_few_judgments_are_counted():
    rated = group_by(judgments("p1/r0", [4, None]), "response_id")
    assert made_judge_pairs(ONE[0], rated, {}, make_settings()) == ([], {"p1": Reason.TOO_FEW_JUDGMENTS})


@pytest.mark.parametrize("battles", [{}, {"p1/r1": [(0, 1, "first")]}, {"p1/r0": [(0, 2, "first")]}])
def test_comparisons_of_other_judgments_are_refused(battles):
    with pytest.raises(UserError, match="p1/r0"):
        made_judge_pairs(*ONE, battles, make_settings())


def test_a_judge_pair():
    battles = {"p1/r0": [(0, 1, "second"), (1, 0, "first")]} | BOTH_WON
    (pair,), reasons = made_judge_pairs(*ONE, battles, make_settings())
    assert not reasons
    prompt = judge_prompt("question 1", "answer", "compact", "first")
    assert pair["prompt"] == prompt
    assert pair["prompt_ids"] == CHAT.prompt_ids(prompt)
    assert (pair["id"], pair["kind"], pair["response_id"]) == ("judge/p1/r0", "judge", "p1/r0")
    assert (pair["chosen_id"], pair["rejected_id"]) == ("p1/r0/j1", "p1/r0/j0")
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([201, 9], [200, 9])
    assert pair["chosen"] == [{"role": "assistant", "content": "judgment 1"}]
    # Positions won 2 and 2, so weights are even: B_10 = 1. At eps = (-x, x): sigmoid(-2 x) = 0.01 x.
    x = pair["chosen_elo"]
    assert x * (1 + math.exp(2 * x)) == pytest.approx(100, abs=0.01) and pair["rejected_elo"] == -x


def test_position_weights_come_from_the_whole_iteration():
    # p1's two battles are one win each way; elsewhere the first shown wins nine times in ten, so its win weighs less.
    battles = {"p1/r0": [(0, 1, "first"), (0, 1, "second")]}
    battles["p9/r0"] = [(0, 1, "first")] * 17 + [(0, 1, "second")]
    (pair,), _ = made_judge_pairs(*ONE, battles, make_settings())
    assert pair["chosen_id"] == "p1/r0/j1"


def test_reasons_cover_both_kinds():
    assert set(ACTOR_REASONS) | set(JUDGE_REASONS) == set(Reason)
    assert set(ACTOR_REASONS) & set(JUDGE_REASONS) == {Reason.CHOSEN_TOO_LONG}


CONFIG = """
name = "test"
[model]
path = "m"
[respond]
prompts = "p"
prompts_per_iteration = 2
[[iteration]]
[[iteration]]
judge_pairs = false
"""


def stage(folder, rows):
    write_jsonl(folder / "shards-0" / "0.jsonl", rows)
    path = folder / "shards-0" / "0.jsonl"
    write_manifest(folder, "test", "key", [path], shards=["shards-0/0.jsonl"])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command over two prompts; the second has no judged response."""
    responses = [response(1, 0, "good"), response(1, 1, "bad"), response(2, 0, "", "too_long")]
    rated = judgments("p1/r0", [5, 4]) + judgments("p1/r1", [1, 4])
    compared = [{"response_id": "p1/r1", "first": 0, "second": 1, "winner": "first"},
                {"response_id": "p1/r1", "first": 1, "second": 0, "winner": "second"}]  # fmt: skip
    for name, rows in (("responses", responses), ("judgments", rated), ("comparisons", compared)):
        stage(tmp_path / name, rows)
    chosen = choose_meta_judged(responses, group_by(rated, "response_id"), make_settings(), 1)
    write_jsonl(tmp_path / "comparisons" / "meta_judged.jsonl", chosen)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(judging.pairs, "load_chat", lambda folder: CHAT)

    def run(iteration: int, *without: str):
        paths = {name: str(tmp_path / name) for name in ("model", "responses", "judgments", "comparisons", "out")}
        paths = {"config": str(tmp_path / "config.toml"), "iteration": str(iteration)} | paths
        flags = [word for name, path in paths.items() if name not in without for word in (f"--{name}", path)]
        PAIRS.run(PAIRS.read_arguments(flags))
        return tmp_path / "out"

    return run


def test_the_command(run):
    out = run(1)
    assert [row["id"] for row in read_jsonl(out / "actor.jsonl")] == ["actor/p1"]
    assert [row["id"] for row in read_jsonl(out / "judge.jsonl")] == ["judge/p1/r1"]
    manifest = read_manifest(out)
    counts = {key: count for key, count in manifest["counts"].items() if count}
    assert counts == {
        "prompts": 2,
        "actor": 1,
        "actor.too_few_responses": 1,
        "judge": 1,
        "judge.too_few_judgments": 1,
    }
    assert set(manifest["counts"]) > {f"actor.{r}" for r in ACTOR_REASONS} | {f"judge.{r}" for r in JUDGE_REASONS}
    assert manifest["positions"] == {"first": 1, "second": 1, "neither": 0, "w1": 0.5, "w2": 0.5}
    assert manifest["seconds"] >= 0


def test_the_command_does_finished_work_once(run):
    out = run(1)
    before = (out / "manifest.json").stat().st_mtime_ns
    run(1)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    run(2)
    assert (out / "manifest.json").stat().st_mtime_ns != before


def test_an_iteration_without_judge_pairs_needs_no_comparisons(run):
    out = run(2, "comparisons")
    assert list(read_jsonl(out / "judge.jsonl")) == []
    assert "judge" not in read_manifest(out)["counts"] and read_manifest(out)["counts"]["actor"] == 1


def test_collapse_is_warned_about(run, tmp_path, capsys):
    stage(tmp_path / "comparisons", [{"response_id": "p1/r1", "first": 0, "second": 1, "winner": "first"}])
    out = run(1)
    assert "position collapse" in capsys.readouterr().err
    assert read_manifest(out)["counts"]["judge.position_collapse"] == 1


def test_mistakes_are_named(run):
    with pytest.raises(UserError, match="--comparisons is missing"):
        run(1, "comparisons")
    for iteration in (0, 3):
        with pytest.raises(UserError, match=rf"--iteration {iteration}: .*iterations 1 to 2"):
            run(iteration)


def test_pairs_are_plain_json(run):
    out = run(1)
    for name in ("actor.jsonl", "judge.jsonl"):
        for line in (out / name).read_text().splitlines():
            row = json.loads(line)
            assert all(isinstance(i, int) for key in ("prompt_ids", "chosen_ids", "rejected_ids") for i in row[key])
