"""What fewer comparisons cost: shares and rests, a coin, and a meta-judge that knows."""

import json
import sys

import numpy as np
import pytest

import evaluation.elo_error
from evaluation.elo_error import measure, position_taste, read_complete, simulated, split
from files import UserError, write_jsonl, write_manifest


def invented(seed: int, spread: float, taste: float = 0.0, responses: int = 30, size: int = 9):
    """All ordered pairs of `size` judgments of some responses, and the strengths that decide them."""
    draw = np.random.default_rng(seed)
    truth = {f"p{i}/r0": spread * draw.normal(size=size) for i in range(responses)}
    pairs = [(m, n, "first") for m in range(size) for n in range(size) if m != n]
    return simulated({name: pairs for name in truth}, truth, taste, seed), truth, {name: size for name in truth}


def test_a_share_and_the_rest_are_all():
    battles, _, sizes = invented(0, 1.0)
    share, rest = split(battles, sizes, 4, 0)
    for name, own in battles.items():
        assert sorted(share[name] + rest[name]) == sorted(own) and len(share[name]) == 9 * 4
        assert not {frozenset(b[:2]) for b in share[name]} & {frozenset(b[:2]) for b in rest[name]}


def test_a_coin_is_told_from_a_meta_judge_that_knows():
    """A coin's pairs stand by chance in the order of the comparisons that were left out; all comparisons, which hold
    the share, would have said 90% and more."""
    coin = measure(*invented(2, 0.0, responses=80)[::2], 2)
    assert coin["pair_in_order_by_the_rest"]["low"] < 0.5 < coin["pair_in_order_by_the_rest"]["high"]
    battles, _, sizes = invented(2, 2.0)
    lines = [measure(battles, sizes, opponents) for opponents in (2, 4, 6, None)]
    assert lines[0]["pair_in_order_by_the_rest"]["low"] > 0.9
    errors = [line["elo_rms_error"]["value"] for line in lines]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[-1]
    assert [line["comparisons"] for line in lines] == [0.25, 0.5, 0.75, 1.0]
    assert [line["opponents"] for line in lines] == [2, 4, 6, "all"]


def test_the_taste_for_the_first_is_found():
    battles, truth, _ = invented(3, 1.0, taste=1.5, responses=100)
    assert position_taste(battles, truth) == pytest.approx(1.5, abs=0.1)


def write(folder, rows) -> None:
    fields = ("response_id", "first", "second", "winner")
    write_jsonl(folder / "u" / "0.jsonl", (dict(zip(fields, row, strict=True)) for row in rows))
    write_manifest(folder, "metajudge", "key", [], units=["u/0.jsonl"])


def test_the_command(tmp_path, monkeypatch, capsys):
    battles, _, _ = invented(4, 1.0, responses=3, size=5)
    write(tmp_path / "comparisons", [(name, 2 * m, 2 * n, w) for name, own in battles.items() for m, n, w in own])
    monkeypatch.setattr(sys, "argv", ["elo_error", str(tmp_path), "--opponents", "2"])
    evaluation.elo_error.main()
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["opponents"] for line in lines] == [2, "all"] and lines[0]["comparisons"] == 0.5
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
def test_what_can_not_be_measured(tmp_path, rows, complaint):
    write(tmp_path / "comparisons", rows)
    with pytest.raises(UserError, match=complaint):
        read_complete(tmp_path)
