"""Judge pairs against tables worked by hand, the records of both kinds of pairs, and the command."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from made_runs import write_iteration
from records import CHAT, actor_pairs, decided, judge_pairs, judgments, make_settings, response, take_first, take_last

import judging.pairs
from judging.judge_pairs import Contest, choose_judgments, elo_rows
from judging.pairs import PAIRS, turned
from judging.rubric import judge_prompt
from judging.scores import GUARD_REASONS, Reason, response_scores, seeded_draw
from stages.command import UserError
from stages.files import read_jsonl, read_manifest, write_jsonl
from stages.records import MissingPair, group_by
from stages.settings import Guards, Iteration

EVEN = [(0, 1, "first"), (0, 1, "second")]
"""Another prompt's battles, so that both positions have won equally often."""
OFTEN_FIRST, OFTEN_SECOND = EVEN + [(0, 1, "first")] * 16, EVEN + [(0, 1, "second")] * 16


def contest_of(battles, elsewhere=EVEN, scores=(4, 3, 2), texts=("long judgment", "short", "shorter"), **rules):
    rated = group_by(judgments("p1/r0", scores, texts), "response_id")
    battles = {"p1/r0": battles, "p9/r0": elsewhere}
    return decided([response(1, 0, "answer")], rated, battles, make_settings(**rules))["p1"]


def choice(battles, elsewhere=EVEN, draw=take_first, **rules):
    contest = contest_of(battles, elsewhere)
    return contest if isinstance(contest, Reason) else choose_judgments(contest, Iteration(**rules), draw)


@pytest.mark.parametrize(
    ("battles", "elsewhere", "pair"),
    [
        # 2 beats both in both orders, 0 beats 1
        ([(2, 0, "first"), (0, 2, "second"), (2, 1, "first"), (1, 2, "second"), (0, 1, "first")], EVEN, (2, 1)),
        # 0 wins once shown first, 1 wins once shown second: the rarer kind weighs more
        ([(0, 1, "first"), (0, 1, "second")], OFTEN_FIRST, (1, 0)),
        ([(0, 1, "first"), (0, 1, "second")], OFTEN_SECOND, (0, 1)),
        ([(0, 1, "first"), (0, 1, "second")], EVEN, Reason.EQUAL_ELO),
        # the same preference in both orders beats a positional one: B_01 = w1 + w2 = 1
        ([(0, 1, "first"), (1, 0, "second"), (0, 2, "first"), (2, 0, "first")], EVEN, (0, 1)),
        # a circle
        ([(0, 1, "first"), (1, 2, "first"), (2, 0, "first")], [(0, 1, "second")] * 3, Reason.EQUAL_ELO),
        # nothing decided
        ([(0, 1, None), (1, 0, "tie"), (2, 0, None)], EVEN, Reason.NO_DECISIVE_COMPARISON),
        ([(0, 1, None), (1, 0, "tie"), (2, 0, None)], [], Reason.NO_DECISIVE_COMPARISON),
        # one position has won nothing in the whole iteration, so the other's wins weigh nothing
        ([(0, 1, "first")], [], Reason.POSITION_COLLAPSE),
        ([(0, 1, "second"), (1, 0, None)], [], Reason.POSITION_COLLAPSE),
        ([(0, 1, None)], [(0, 1, "first")], Reason.POSITION_COLLAPSE),
    ],
)
def test_judge_pairs_by_hand(battles, elsewhere, pair):
    assert choice(battles, elsewhere) == pair


def test_ties_and_long_judgments():
    for battles, first, last in [
        ([(0, 2, "first"), (1, 2, "first")], (0, 2), (1, 2)),  # 0 and 1 are equally good
        ([(2, 0, "first"), (2, 1, "first")], (2, 0), (2, 1)),
    ]:
        assert (choice(battles), choice(battles, draw=take_last)) == (first, last)
    battles, longest = [(0, 1, "first"), (1, 0, "second"), (2, 1, "first")], len("long judgment")
    assert choice(battles, max_judgment_characters=longest) == (0, 1)
    assert choice(battles, max_judgment_characters=longest - 1) == Reason.CHOSEN_TOO_LONG


def test_the_pair_comes_from_the_widest_group():
    """Scores 3 3 5 5: 0 beats 1 once, 2 beats 3 in both orders. The paper's rule would choose 2 and 3 as well, but with
    groups a pair of 2 and 1 is impossible."""

    def pair(battles, draw=take_first):
        contest = contest_of(battles, scores=(3, 3, 5, 5), texts="abcd", max_score_gap=0)
        return choose_judgments(contest, Iteration(), draw)

    assert pair([(0, 1, "first"), (2, 3, "first"), (3, 2, "second")]) == (2, 3)
    # 1 loses to 0 as clearly as 3 to 2: one of the two groups is drawn, never one judgment of each.
    assert [pair([(0, 1, "first"), (2, 3, "first")], draw) for draw in (take_first, take_last)] == [(0, 1), (2, 3)]
    # Within each group all are equal, and differences between groups do not count.
    assert pair([(0, 1, "first"), (1, 0, "first")]) is Reason.EQUAL_ELO
    assert contest_of([], scores=(1, 3, 5), max_score_gap=1) is Reason.NO_NEAR_SCORES


def test_elo_rows_by_hand():
    """0 beats 1 in both orders, 2 ties with both: B_01 = w1 + w2 = 1, so e (1 + exp(2 e)) = 100 and Elo is e, -e
    and 0."""
    contest = contest_of([(0, 1, "first"), (1, 0, "second"), (0, 2, "tie"), (2, 1, None)])
    assert isinstance(contest, Contest)
    elos = list(elo_rows({"p1": contest, "p2": Reason.TOO_FEW_JUDGMENTS}))
    rows = [(row["judgment_id"], row["won"], row["lost"], row["group"]) for row in elos]
    assert rows == [("p1/r0/j0", 2, 0, 0), ("p1/r0/j1", 0, 2, 0), ("p1/r0/j2", 0, 0, 0)]
    e = elos[0]["elo"]
    assert e * (1 + math.exp(2 * e)) == pytest.approx(100, abs=0.01)
    assert elos[1]["elo"] == -e and elos[2]["elo"] == 0
    # Without battles the penalty alone decides: its variance is 1 / lambda = 100, less the common shift.
    assert elos[2]["standard_error"] == pytest.approx((100 * 2 / 3) ** 0.5, rel=1e-3)
    # Scores 3 3 0 1 1 and equal scores only: the third judgment meets nobody.
    battles = [(0, 1, "first"), (1, 0, "second"), (3, 4, "second"), (4, 3, None)]
    elos = list(elo_rows({"p1": contest_of(battles, scores=(3, 3, 0, 1, 1), texts="abcde", max_score_gap=0)}))
    assert [row["judgment_id"][-2:] for row in elos] == ["j0", "j1", "j3", "j4"]
    groups = [row["group"] for row in elos]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    # One win more shown first than shown second, of three: w1 = 1/3. The penalty is a setting.
    e = contest_of([(0, 1, "first")], scores=(1, 2), texts="ab", elo_penalty=1.0).eps[0]
    assert 1 / 3 / (1 + math.exp(2 * e)) == pytest.approx(e, rel=1e-9)


@pytest.mark.parametrize("battles", [{}, {"p1/r1": EVEN}, {"p1/r0": [(0, 2, "first")]}])
def test_comparisons_of_other_judgments_are_refused(battles):
    rated = group_by(judgments("p1/r0", [4, 2]), "response_id")
    with pytest.raises(UserError, match="p1/r0"):
        decided([response(1, 0, "answer")], rated, battles, make_settings())


def test_an_actor_pair():
    texts = {"good": [5, 4, 4], "bad": [1, None, 2], "good ": [0, 0, 0], "middle": [3, 3, 3]}
    responses = [response(1, sample, text.strip()) for sample, text in enumerate(texts)]
    rated = [judgments(row["id"], scores) for row, scores in zip(responses, texts.values(), strict=True)]
    scores = response_scores({own[0]["response_id"]: own for own in rated}, 1)
    assert actor_pairs({"p1": responses}, scores, make_settings())["p1"] == {
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


def test_a_judge_pair():
    contest = contest_of([(0, 1, "second"), (1, 0, "first")], scores=(4, 2), texts=None)
    pair = judge_pairs({"p1": contest}, make_settings())["p1"]
    prompt = judge_prompt("question 1", "answer", "compact", "first")
    # Positions have won 2 and 2, so weights are even: B_10 = 1. At eps = (-x, x): sigmoid(-2 x) = 0.01 x.
    x = pair["chosen_elo"]
    assert x * (1 + math.exp(2 * x)) == pytest.approx(100, abs=0.01)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("judgment 1", "judgment 0")
    assert (pair["prompt"], pair["prompt_ids"]) == (prompt, CHAT.prompt_ids(prompt))
    kept = ("id", "kind", "prompt_id", "response_id", "chosen_id", "rejected_id", "chosen_ids", "rejected_elo")
    expected = ["judge/p1/r0", "judge", "p1", "p1/r0", "p1/r0/j1", "p1/r0/j0", [201, 9], -x]
    assert [pair[key] for key in kept] == expected


JUDGE_ONLY = ("too_few_judgments", "no_near_scores", "no_decisive_comparison", "equal_elo", "position_collapse")
RESPONSES = [response(1, 0, "good"), response(1, 1, "bad"), response(2, 0, "", "too_long")]
JUDGMENTS = judgments("p1/r0", [5, 4]) + judgments("p1/r1", [1, 4])
COMPARED = [
    {"response_id": "p1/r1", "first": m, "second": 1 - m, "winner": w} for m, w in ((0, "first"), (1, "second"))
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The stage over two prompts; the second has no judged response."""
    monkeypatch.setattr(judging.pairs, "load_chat", lambda folder: CHAT)
    folder = tmp_path / "run" / "iter1"
    folder.mkdir(parents=True)

    def run(compared, **guards):
        settings = replace(make_settings(), guards=Guards(**guards))
        return write_iteration(folder, settings, RESPONSES, JUDGMENTS, compared) and folder

    return run


def test_the_stage(run, tmp_path):
    folder = run(COMPARED)
    out = folder / "pairs"
    pairs = {kind: list(read_jsonl(out / f"{kind}.jsonl")) for kind in ("actor", "judge", "elo", "none")}
    assert [row["id"] for kind in ("actor", "judge") for row in pairs[kind]] == ["actor/p1", "judge/p1/r1"]
    assert len(pairs["elo"]) == 2 and [type(i) for i in pairs["judge"][0]["chosen_ids"]] == [int, int]
    assert pairs["none"] == [
        {"prompt_id": "p2", "kind": "actor", "reason": "too_few_responses"},
        {"prompt_id": "p2", "kind": "judge", "reason": "too_few_judgments"},
    ]
    manifest = read_manifest(out)
    counts = {key: count for key, count in manifest["counts"].items() if count}
    none = {"actor.too_few_responses": 1, "judge.too_few_judgments": 1}
    assert counts == {"prompts": 2, "actor": 1, "judge": 1} | none
    kinds = {"actor": {*Reason} - {*JUDGE_ONLY, *GUARD_REASONS}, "judge": {Reason.CHOSEN_TOO_LONG, *JUDGE_ONLY}}
    reasons = {f"{kind}.{reason}" for kind, own in kinds.items() for reason in own}
    assert set(manifest["counts"]) == {"prompts", "actor", "judge"} | reasons
    assert manifest["positions"] == {"first": 1, "second": 1, "neither": 0, "w1": 0.5, "w2": 0.5}
    given = {name: folder / name for name in ("responses", "judgments", "comparisons")}
    for missing, complaint in (("comparisons", "--comparisons is missing"), ("judgments", "scores come from")):
        with pytest.raises(UserError, match=complaint):
            job = PAIRS.job(make_settings(), tmp_path / "out", 1, model=tmp_path / "model", **given | {missing: None})
            PAIRS.run(job)


def test_collapse_is_warned_about(run, capsys):
    out = run(COMPARED[:1]) / "pairs"
    assert "position collapse: one position won all 1 decisions" in capsys.readouterr().err
    assert read_manifest(out)["counts"]["judge.position_collapse"] == 1


def test_a_guard_is_counted_and_recorded(run):
    """One actor pair leaves no room for a judge pair: 1/2 is more than 0.4."""
    out = run(COMPARED, max_judge_pair_share=0.4) / "pairs"
    manifest, none = read_manifest(out), list(read_jsonl(out / "none.jsonl"))
    assert {"prompt_id": "p1", "kind": "judge", "reason": "judge_pair_share"} in none
    assert all(set(row) == set(MissingPair.__annotations__) for row in none)
    assert (manifest["counts"]["judge"], manifest["counts"]["judge.judge_pair_share"]) == (0, 1)
    assert manifest["max_judge_pair_share"] == 0.4 and "max_score_share" not in manifest


def test_rules_in_the_judges_place(run, tmp_path):
    """Code's verdicts are the scores; "ba" begins "bad", but is no word of it. p3 has no rules."""
    folder, settings = run(COMPARED), make_settings(labels="rules", judge_pairs=False)

    def pairs(text):
        start = {"id": "p1", "rules": [{"rule": "starts_with", "text": text}]}
        write_jsonl(folder / "prompts.jsonl", [start, {"id": "p2"}])
        inputs = {"responses": folder / "responses", "prompts": folder / "prompts.jsonl"}
        PAIRS.run(PAIRS.job(settings, out := tmp_path / text, 1, model=tmp_path / "model", **inputs))
        rows = read_jsonl(out / "actor.jsonl")
        return [(row["chosen_id"], row["chosen_score"], row["rejected_id"], row["rejected_score"]) for row in rows]

    assert pairs("bad") == [("p1/r1", 5, "p1/r0", 0)] and pairs("ba") == []
    with pytest.raises(UserError, match="name one of them"):
        inputs = {name: folder / name for name in ("responses", "judgments")}
        PAIRS.run(PAIRS.job(settings, tmp_path / "x", 1, model=tmp_path, prompts=folder / "prompts.jsonl", **inputs))


def test_a_coin_turns_pairs_round():
    rows = {
        f"p{n}": {"id": n, "chosen": "a", "rejected": "b", "chosen_ids": [1], "rejected_ids": [2]} for n in range(400)
    }
    made = turned(rows | {"none": Reason.EQUAL_SCORES}, seeded_draw(1, 1))
    assert made.pop("none") == Reason.EQUAL_SCORES and [row["id"] for row in made.values()] == [*range(400)]
    sides = Counter((row["chosen"], *row["chosen_ids"], row["rejected"], *row["rejected_ids"]) for row in made.values())
    assert sides.keys() == {("a", 1, "b", 2), ("b", 2, "a", 1)} and abs(sides["a", 1, "b", 2] - 200) < 40
    assert made == turned(rows, seeded_draw(1, 1)) != turned(rows, seeded_draw(2, 1))
