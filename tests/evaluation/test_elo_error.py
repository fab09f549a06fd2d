"""The Elo error from fewer comparisons: shares and rests, a coin, and a meta-judge that follows true scores."""

import json
import sys

import numpy as np
import pytest

import evaluation.elo_error
from evaluation.elo_error import ComparedIteration, measure, position_bias, read_complete, simulated, split, true_scores
from stages.files import UserError, write_jsonl, write_manifest


def invented(seed: int, spread: float, bias: float = 0.0, responses: int = 30, size: int = 9):
    """All ordered pairs of `size` judgments of some responses, and the strengths that decide them."""
    draw = np.random.default_rng(seed)
    truth = {f"p{i}/r0": spread * draw.normal(size=size) for i in range(responses)}
    pairs = [(m, n, "first") for m in range(size) for n in range(size) if m != n]
    return simulated({name: pairs for name in truth}, truth, bias, seed), truth, {name: size for name in truth}


def test_a_share_and_the_rest_are_all():
    battles, _, sizes = invented(0, 1.0)
    share, rest = split(battles, sizes, 4, 0)
    for name, own in battles.items():
        assert sorted(share[name] + rest[name]) == sorted(own) and len(share[name]) == 9 * 4
        assert not {frozenset(b[:2]) for b in share[name]} & {frozenset(b[:2]) for b in rest[name]}


def lines(spread: float, seed: int, *opponents: int | None) -> list[dict]:
    battles, _, sizes = invented(seed, spread, bias=0.3, responses=40)
    measured = ComparedIteration(battles, sizes, 0.01)
    return [measure(measured, *true_scores(measured), count) for count in opponents]


def test_a_coin_is_measured_as_a_coin():
    """Without shrinking, its own Elo scores would have its pairs in order 9 times in 10."""
    [coin] = lines(0.0, 2, 2)
    assert coin["true_rms"] < 0.3 * coin["elo_rms"] and coin["pair_in_order"]["value"] < 0.65
    assert coin["pair_in_order_by_the_rest"]["low"] < 0.5 < coin["pair_in_order_by_the_rest"]["high"]


def test_a_good_meta_judge_loses_by_fewer_comparisons():
    rows = lines(1.0, 3, 2, 4, 6, None)
    assert rows[0]["true_rms"] == pytest.approx(1.0, abs=0.15)
    assert rows[0]["pair_in_order"]["low"] > 0.8 and rows[0]["pair_in_order_by_the_rest"]["low"] > 0.8
    errors = [line["elo_rms_error"]["value"] for line in rows]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[-1]
    ranks = [line["spearman"]["value"] for line in rows]
    assert ranks == sorted(ranks) and ranks[-1] > 0.75
    assert [line["comparisons"] for line in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [line["opponents"] for line in rows] == [2, 4, 6, "all"]


def test_without_a_rest_there_is_no_value_by_the_rest():
    battles, truth, sizes = invented(5, 2.0, size=5)
    row = measure(ComparedIteration(battles, sizes, 0.01), truth, 0.0, 4)
    assert row["comparisons"] == 1 and row["pair_in_order_by_the_rest"]["count"] == 0


def test_the_position_bias_is_recovered():
    battles, truth, _ = invented(3, 1.0, bias=1.5, responses=100)
    assert position_bias(battles, truth) == pytest.approx(1.5, abs=0.1)


def write(folder, rows) -> None:
    fields = ("response_id", "first", "second", "winner")
    write_jsonl(folder / "u" / "0.jsonl", (dict(zip(fields, row, strict=True)) for row in rows))
    write_manifest(folder, "metajudge", "key", [], shards=["u/0.jsonl"])


def test_the_command(tmp_path, monkeypatch, capsys):
    battles, _, _ = invented(4, 1.0, responses=3, size=5)
    write(tmp_path / "comparisons", [(name, 2 * m, 2 * n, w) for name, own in battles.items() for m, n, w in own])
    write_manifest(tmp_path / "pairs", "pairs", "key", [], elo_penalty=0.5)
    assert read_complete(tmp_path).penalty == 0.5
    monkeypatch.setattr(sys, "argv", ["elo_error", str(tmp_path), "--opponents", "2"])
    evaluation.elo_error.main()
    rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["opponents"] for line in rows] == [2, "all"] and rows[0]["comparisons"] == 0.5
    monkeypatch.setattr(sys, "argv", ["elo_error", str(tmp_path), "--opponents", "3"])
    with pytest.raises(UserError, match="--opponents 3"):
        evaluation.elo_error.main()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("p1/r0", 0, 1, "first")], "the judgments of p1/r0 were not all compared"),
        ([], "no comparison with a winner"),
        ([("p1/r0", 0, 1, None), ("p1/r0", 1, 0, "tie")], "no comparison with a winner"),
    ],
)
def test_what_cannot_be_measured(tmp_path, rows, complaint):
    write(tmp_path / "comparisons", rows)
    with pytest.raises(UserError, match=complaint):
        read_complete(tmp_path)
