"""EFT: orders, rounds and downsampling by hand, and the stage with a mock engine."""

import re
from collections import Counter
from dataclasses import replace

import pytest
from mock_engine import mock_model

import sampling.worker
from evaluation.labelled import read_labelled
from judging.rubric import judgment_text
from prepare.eft import (
    EFT,
    Outcome,
    choose,
    downsampled,
    is_held_out,
    outcome,
    read_sources,
)
from prepare.examples import labelled_rows
from prepare.rankings import RankedGroup
from stages.command import UserError
from stages.files import read_jsonl, read_manifest, read_shards, write_jsonl
from stages.settings import Eft, Iteration, Judge, Model, Respond, Settings

AGREES, DISAGREES, EQUAL, FEW = Outcome


def make_settings(**eft) -> Settings:
    judge = Judge(N=9, prompt_style="compact", verdict_position="first")
    respond = Respond(prompts=["p"], prompts_per_iteration=1)
    return Settings("test", Model("m"), respond=respond, judge=judge, eft=Eft(**eft), iteration=[Iteration()], seed=5)


def ranked(name: str, *ranks: int, tree: str = "") -> RankedGroup:
    replies = [{"rank": rank, "text": f"{name}: reply {k}"} for k, rank in enumerate(ranks)]
    return RankedGroup(name, tree or name, [{"role": "prompter", "text": f"question {name}"}], replies)


@pytest.mark.parametrize(
    ("weak", "strict", "cases"),
    [
        (AGREES, AGREES, [([0, 1], [4, 2]), ([1, 0], [2, 4]), ([0, 1], [4.5, 4])]),
        (DISAGREES, DISAGREES, [([0, 1], [2, 4]), ([0, 1, 2], [4, 2, 3]), ([0, 1, 2], [0, 0.5, 0])]),
        (AGREES, DISAGREES, [([0, 1, 2], [4, 4, 2])]),
        (EQUAL, EQUAL, [([0, 1], [3, 3]), ([0, 1, 2], [None, 3, 3])]),
        # Replies of equal rank are not compared. A failure counts as deleted: in the middle, or for too many replies.
        (AGREES, AGREES, [([0, 0, 1], [2, 5, 1]), ([0, 1, 2], [4, None, 2])]),
        (DISAGREES, DISAGREES, [([0, 0, 1], [2, 5, 3])]),
        (FEW, FEW, [([0, 1, 2], [None, 3, None]), ([0, 1, 1], [None, 3, 4])]),
    ],
)
def test_orders_by_hand(weak, strict, cases):
    for case in cases:
        assert (outcome(*case, "weak"), outcome(*case, "strict")) == (weak, strict)


def test_groups_to_examples_by_hand():
    """g agrees in its second round with scores 5 and 3, h in its first with 3 and 2 (a failure is left out), i, j and k
    in none. So 3 is the most frequent score, and one of its two rows is dropped."""
    groups = [ranked("g", 1, 0), ranked("h", 0, 1, 2), ranked("i", 0, 1), ranked("j", 0, 1), ranked("k", 0, 1)]
    rounds = {"g": ([5, 3], [3, 5]), "h": ([3, None, 2], [5, 4, 3]), "i": ([1, None], [2, 2])}
    rounds |= {"j": ([3, 3], [0, 1]), "k": ([None, 3], [None, None])}
    judgments = {
        f"{g.id}/{k}": [
            {"id": f"{g.id}/{k}/j{i}", "score": scores[k], "text": "Score: 3\nx"}
            for i, scores in enumerate(rounds[g.id])
        ]
        for g in groups
        for k in range(len(g.replies))
    }
    rows, _ = choose(groups, judgments, make_settings(N=2, downsample=False))
    assert [row["judgment_id"] for row in rows] == ["g/0/j1", "g/1/j1", "h/0/j0", "h/2/j0"]
    texts = {"prompt": "question h", "response": "h: reply 2", "justification": "x", "judgment_id": "h/2/j0"}
    assert rows[3] == {"kind": "judge", "score": 2, "rank": 2, "flaw": "", **texts}
    kept, facts = choose(groups, judgments, make_settings(N=2))
    outcomes = {"groups.agrees": 2, "groups.disagrees": 1, "groups.equal_scores": 1, "groups.too_few_scored": 1}
    assert facts["counts"] == outcomes | {"rows": 4, "downsampled": 1, "examples": 3}
    assert facts["scores"] == {"rows": {"2": 1, "3": 2, "5": 1}, "examples": {"2": 1, "3": 1, "5": 1}}
    assert facts["accepted_round"] == {"0": 1, "1": 1}
    assert [row for row in rows if row in kept] == kept


def test_downsampling_by_hand():
    def scored(*scores) -> list[dict]:
        return [{"judgment_id": f"j{i}", "score": score} for i, score in enumerate(scores)]

    rows = scored(4, 4, 2, 4, 2, 4, 1, 4)
    kept = downsampled(rows, 1)
    assert Counter(row["score"] for row in kept) == {4: 2, 2: 2, 1: 1}
    assert kept == [row for row in rows if row in kept]  # in their order
    assert downsampled(rows, 1) == kept and any(downsampled(rows, seed) != kept for seed in range(9))
    assert all(downsampled(rows, 1) == rows for rows in (scored(4, 4, 2, 2, 1), scored(3, 3, 3), []))


def test_holding_out_a_group_depends_on_its_tree_alone():
    groups, settings = [ranked(f"g{i}", 0, 1) for i in range(400)], make_settings(held_out=0.25)
    out = {g.id for g in groups if is_held_out(g, settings)}
    assert 70 < len(out) < 130
    more = {g.id for g in groups if is_held_out(g, make_settings(held_out=0.5))}
    assert out < more  # a larger share keeps the groups that a smaller one holds out
    assert out != {g.id for g in groups if is_held_out(g, replace(settings, seed=6))}
    assert len({is_held_out(ranked(f"g{i}", 0, 1, tree="t"), settings) for i in range(50)}) == 1


def test_a_group_that_comes_again_is_counted(tmp_path):
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    write_jsonl(a, [g.row() for g in (ranked("g", 0, 1), ranked("h", 0, 0), ranked("g", 1, 0))])
    write_jsonl(b, [g.row() for g in (ranked("g", 1, 0), ranked("i", 0, 1))])
    groups, counts = read_sources(Eft(sources=[a, b]))
    assert groups == [ranked("g", 0, 1), ranked("i", 0, 1)]
    assert counts == {a: {"groups": 1, "equal_ranks": 1, "repeated": 1}, b: {"groups": 1, "repeated": 1}}


def judgment(prompt: str, seed: int) -> tuple[str, str]:
    """Scores a reply by its letters, plus or minus one; some verdicts are malformed, cut off or missing."""
    score = prompt.split("Response:")[1].count("x") + seed % 3 - 1
    text = f"{'Verdict' if seed % 17 == 0 else 'Score'}: {score}\nSeed {seed}."
    return text, {1: "too_long", 2: "length"}.get(seed % 17, "stop")


CONFIG = """
name = "test"
seed = 3
model = {path = "m"}
engine = {shard_requests = 20}
respond = {prompts = ["p"], prompts_per_iteration = 2}
judge = {prompt_style = "compact", verdict_position = "first"}
[eft]
sources = ["SOURCE"]
N = 3
[[iteration]]
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the stage on forty groups of three replies, with lines of CONFIG replaced."""
    mock_model(monkeypatch, tmp_path / "model", judgment)
    groups = [ranked(f"g{i}", *((1, 0, 2), (2, 1, 0))[i % 2]) for i in range(40)]
    for reply in (reply for group in groups for reply in group.replies):
        reply["text"] = "x" * (4 - reply["rank"]) + f" by {reply['rank']}"
    write_jsonl(tmp_path / "source.jsonl", [g.row() for g in (*groups, ranked("gone", 0, 0))])

    def run(N: str = "3", sources: str = '["SOURCE"]'):
        text = re.sub("^N = .*", f"N = {N}", CONFIG, flags=re.MULTILINE).replace('["SOURCE"]', sources)
        (tmp_path / "config.toml").write_text(text.replace("SOURCE", str(tmp_path / "source.jsonl")))
        flags = ["--config", tmp_path / "config.toml", "--model", tmp_path / "model", "--out", tmp_path / "eft"]
        EFT.run(EFT.read_arguments([*map(str, flags)]))
        return tmp_path / "eft", read_manifest(tmp_path / "eft")

    return run


def test_from_rankings_to_examples(stage):
    out, manifest = stage()
    counts, rows = manifest["counts"], list(labelled_rows(out / "examples.jsonl"))
    judgments = {row["id"]: row for row in read_shards(out / "judgments")}
    assert counts["groups"] == 40 == sum(counts[f"groups.{name}"] for name in ("held_out", *Outcome))
    held_out = {case.group for case in read_labelled(out / "held_out.jsonl").cases}
    assert len(held_out) == counts["groups.held_out"] and 0 < len(held_out) < 20
    assert {row["prompt_id"] for row in judgments.values()} == {f"g{i}" for i in range(40)} - held_out
    assert counts["judgments"] == len(judgments) == (40 - len(held_out)) * 9
    failed = Counter(f"failure.{row['failure']}" for row in judgments.values() if row["failure"])
    assert failed == {name: count for name, count in counts.items() if name.startswith("failure.")}
    assert counts["rows"] - counts["downsampled"] == counts["examples"] == len(rows) > 20
    assert sum(manifest["accepted_round"].values()) == counts["groups.agrees"]
    for row in rows:
        text = judgment_text(row["score"], row["justification"], "first")
        assert text == judgments[row["judgment_id"]]["text"]
        assert row["response"] == "x" * (4 - row["rank"]) + f" by {row['rank']}"


def test_another_order_reuses_the_judgments(stage, monkeypatch):
    before = stage()[1]["counts"]
    monkeypatch.setattr(sampling.worker, "load_engine", lambda *_, **__: pytest.fail("nothing is sampled"))
    after = stage('3\norder = "strict"')[1]["counts"]
    assert after["judgments"] == before["judgments"] and after["groups.agrees"] < before["groups.agrees"]
    with pytest.raises(pytest.fail.Exception, match="nothing is sampled"):
        stage("4")


def test_nothing_to_judge(stage, capsys):
    out, _ = stage("3\nheld_out = 1.0")
    assert list(read_jsonl(out / "examples.jsonl")) == []
    assert "warning: no example: none of 0 groups" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^eft\.sources is empty"):
        stage(sources="[]")
