"""EFT: orders and downsampling by hand, properties of accepted rounds, and the stage with a mock engine."""

import random
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sampling.worker
from evaluation.labelled import read_labelled
from judging.rubric import judge_prompt, judgment_text
from judging.verdict import parse_score
from prepare.eft import (
    EFT,
    Outcome,
    agreeing_by_chance,
    choose,
    downsampled,
    eft_items,
    first_agreeing,
    is_held_out,
    justification,
    outcome,
    read_sources,
)
from prepare.examples import labelled_rows
from prepare.rankings import RankedGroup, Reply
from sampling.request import Completion
from stages.files import UserError, read_jsonl, read_manifest, read_shards, write_jsonl
from stages.records import group_by
from stages.settings import Eft, Iteration, Judge, Model, Respond, Settings

CHAT = SimpleNamespace(
    prompt_ids=lambda messages: [1, *"|".join(m["content"] for m in messages).encode()],
    text=lambda ids: bytes(i for i in ids if i).decode(),
    stop_ids=frozenset({0}),
)
AGREES, DISAGREES, EQUAL, FEW = Outcome
SCORES = st.none() | st.integers(0, 5)
RANKS = st.lists(st.integers(0, 4), min_size=2, max_size=5)


def make_settings(**eft) -> Settings:
    return Settings(
        name="test",
        model=Model(path="m"),
        respond=Respond(prompts="p", prompts_per_iteration=1),
        judge=Judge(N=9, prompt_style="compact", verdict_position="first"),
        eft=Eft(**eft),
        iteration=[Iteration()],
        seed=5,
    )


def ranked(name: str, *ranks: int, tree: str = "") -> RankedGroup:
    replies = tuple(Reply(f"{name}: reply {k}", rank) for k, rank in enumerate(ranks))
    return RankedGroup(name, tree or name, ({"role": "prompter", "text": f"question {name}"},), replies)


@pytest.mark.parametrize(
    ("ranks", "scores", "weak", "strict"),
    [
        ([0, 1], [4, 2], AGREES, AGREES),
        ([1, 0], [2, 4], AGREES, AGREES),
        ([0, 1], [2, 4], DISAGREES, DISAGREES),
        ([0, 1], [3, 3], EQUAL, EQUAL),
        ([0, 1, 2], [4, 4, 2], AGREES, DISAGREES),
        ([0, 1, 2], [4, 3, 2], AGREES, AGREES),
        ([0, 1, 2], [4, 2, 3], DISAGREES, DISAGREES),
        ([0, 1, 2], [3, 3, 3], EQUAL, EQUAL),
        # Replies of equal rank are not compared.
        ([0, 0, 1], [2, 5, 1], AGREES, AGREES),
        ([0, 0, 1], [2, 5, 3], DISAGREES, DISAGREES),
        # A failure counts as deleted: in the middle, at an end, for too many replies.
        ([0, 1, 2], [4, None, 2], AGREES, AGREES),
        ([0, 1, 2], [None, 3, 3], EQUAL, EQUAL),
        ([0, 1, 2], [None, 2, 4], DISAGREES, DISAGREES),
        ([0, 1, 2], [None, 3, None], FEW, FEW),
        ([0, 1, 1], [None, 3, 4], FEW, FEW),
        ([0, 1], [None, None], FEW, FEW),
        # Fractions.
        ([0, 1], [4.5, 4], AGREES, AGREES),
        ([0, 1, 2], [0, 0.5, 0], DISAGREES, DISAGREES),
    ],
)
def test_orders_by_hand(ranks, scores, weak, strict):
    assert outcome(ranks, scores, "weak") == weak
    assert outcome(ranks, scores, "strict") == strict


def test_the_first_agreeing_round_is_taken_and_the_rest_have_one_reason():
    ranks, few, equal, wrong, right = [0, 1], [3, None], [3, 3], [1, 4], [4, 1]
    assert first_agreeing(ranks, [few, wrong, right, equal, right], "weak") == 2
    assert first_agreeing(ranks, [few, equal, wrong, few], "weak") == DISAGREES
    assert first_agreeing(ranks, [few, equal, few], "weak") == EQUAL
    assert first_agreeing(ranks, [few, few], "strict") == FEW


@settings(max_examples=40)
@given(st.data(), RANKS, st.sampled_from(["weak", "strict"]))
def test_no_accepted_round_has_an_inverted_pair(data, ranks, order):
    rounds = data.draw(st.lists(st.tuples(*[SCORES] * len(ranks)), min_size=1, max_size=4))
    first = first_agreeing(ranks, rounds, order)
    if isinstance(first, Outcome):
        assert first == FEW or len(set(ranks)) > 1
        return
    scored = [(rank, score) for rank, score in zip(ranks, rounds[first], strict=True) if score is not None]
    pairs = [(high, low) for better, high in scored for worse, low in scored if better < worse]
    assert all(high >= low for high, low in pairs) and any(high > low for high, low in pairs)
    assert order == "weak" or all(high > low for high, low in pairs)
    assert not any(outcome(ranks, scores, order) == AGREES for scores in rounds[:first])


def test_chance_is_what_shuffled_ranks_give():
    """Three replies scored 5, 3, 1 agree in one order of six, two scored 5, 3 in one of two, equal ones never."""
    three = [([0, 1, 2], [[5, 3, 1]])] * 200
    assert agreeing_by_chance(three, "weak", 1) / 200 == pytest.approx(1 / 6, abs=0.02)
    assert agreeing_by_chance([([1, 0], [[5, 3]])] * 200, "strict", 1) / 200 == pytest.approx(1 / 2, abs=0.02)
    assert agreeing_by_chance([([0, 1], [[3, 3], [2, None]])], "weak", 1) == 0
    # Of two rounds that contradict each other, one agrees with any ranks.
    assert agreeing_by_chance([([0, 1], [[5, 3], [2, 4]])], "weak", 1) == 1


@pytest.mark.parametrize(
    ("text", "verdict", "rest"),
    [
        ("Score: 4\nIt is short.\n\nBut right.", "first", "It is short.\n\nBut right."),
        ("\n **Score:** 4/5 \n\n  Short. \n", "first", "Short."),
        ("Score: 4", "first", ""),
        ("It is\nshort.\n\nScore: 4\n", "last", "It is\nshort."),
        ("Score: 2 would be harsh.\nScore: 4", "last", "Score: 2 would be harsh."),
        ("Score: 4", "last", ""),
    ],
)
def test_a_justification_is_the_text_without_its_verdict_line(text, verdict, rest):
    assert parse_score(text, "stop", verdict) == 4
    assert justification(text, verdict) == rest
    assert parse_score(judgment_text(4, rest, verdict), "stop", verdict) == 4


def judged(group: RankedGroup, *rounds: list) -> list[dict]:
    return [
        {"id": f"{group.id}/{k}/j{i}", "response_id": f"{group.id}/{k}", "score": score, "text": "Score: 3\nx"}
        for k in range(len(group.replies))
        for i, score in enumerate(scores[k] for scores in rounds)
    ]


def test_groups_to_examples_by_hand():
    """g agrees in its second round with scores 5 and 3, h in its first with 3 and 2 (a failure is left out), i, j and k
    in none. So 3 is the most frequent score, and one of its two rows is dropped."""
    groups = [ranked("g", 1, 0), ranked("h", 0, 1, 2), ranked("i", 0, 1), ranked("j", 0, 1), ranked("k", 0, 1)]
    rounds = {
        "g": ([5, 3], [3, 5]),
        "h": ([3, None, 2], [5, 4, 3]),
        "i": ([1, None], [2, 2]),
        "j": ([3, 3], [0, 1]),
        "k": ([None, 3], [None, None]),
    }
    judgments = group_by([row for g in groups for row in judged(g, *rounds[g.id])], "response_id")
    rows, _ = choose(groups, judgments, make_settings(N=2, downsample=False))
    assert [row["judgment_id"] for row in rows] == ["g/0/j1", "g/1/j1", "h/0/j0", "h/2/j0"]
    assert rows[3] == {
        "kind": "judge",
        "prompt": "question h",
        "response": "h: reply 2",
        "score": 2,
        "justification": "x",
        "judgment_id": "h/2/j0",
        "rank": 2,
        "flaw": "",
    }
    kept, facts = choose(groups, judgments, make_settings(N=2))
    assert facts["counts"] == {
        "groups.agrees": 2,
        "groups.disagrees": 1,
        "groups.equal_scores": 1,
        "groups.too_few_scored": 1,
        "rows": 4,
        "downsampled": 1,
        "examples": 3,
    }
    assert facts["scores"] == {"rows": {"2": 1, "3": 2, "5": 1}, "examples": {"2": 1, "3": 1, "5": 1}}
    assert facts["accepted_round"] == {"0": 1, "1": 1}
    assert [row for row in rows if row in kept] == kept


def scored_rows(*scores) -> list[dict]:
    return [{"judgment_id": f"j{i}", "score": score} for i, score in enumerate(scores)]


def test_downsampling_by_hand():
    rows = scored_rows(4, 4, 2, 4, 2, 4, 1, 4)
    kept = downsampled(rows, 1)
    assert Counter(row["score"] for row in kept) == {4: 2, 2: 2, 1: 1}
    assert kept == [row for row in rows if row in kept]  # in their order
    assert downsampled(rows, 1) == kept and any(downsampled(rows, seed) != kept for seed in range(9))
    for scores in ([4, 4, 2, 2, 1], [3, 3, 3], [], [5, 1]):
        assert downsampled(scored_rows(*scores), 1) == scored_rows(*scores)


def test_holding_out_a_group_depends_on_its_tree_alone():
    groups, settings = [ranked(f"g{i}", 0, 1) for i in range(400)], make_settings(held_out=0.25)
    out = {g.id for g in groups if is_held_out(g, settings)}
    assert 70 < len(out) < 130
    random.Random(0).shuffle(groups)
    assert {g.id for g in groups[:200] if is_held_out(g, settings)} == out & {g.id for g in groups[:200]}
    more = {g.id for g in groups if is_held_out(g, make_settings(held_out=0.5))}
    assert out < more  # a larger share keeps the groups that a smaller one holds out
    assert out != {g.id for g in groups if is_held_out(g, replace(settings, seed=6))}
    tree = {is_held_out(ranked(f"g{i}", 0, 1, tree="t"), settings) for i in range(50)}
    assert len(tree) == 1
    for share in (0.0, 1.0):
        assert {is_held_out(g, make_settings(held_out=share)) for g in groups} == {share == 1}


def test_each_reply_is_judged_n_times():
    items = list(eft_items([ranked("g", 0, 1), ranked("h", 1, 0)], CHAT, make_settings(N=2)))
    assert [item.name for item in items] == [f"{g}/{k}/j{i}" for g in "gh" for k in (0, 1) for i in (0, 1)]
    assert items[3].record == {"id": "g/1/j1", "response_id": "g/1", "prompt_id": "g", "index": 1}
    assert [item.group for item in items] == ["g"] * 4 + ["h"] * 4 and len({item.seed for item in items}) == 8
    prompt = judge_prompt("question g", "g: reply 1", "compact", "first")
    assert items[3].request(CHAT).ids == CHAT.prompt_ids(prompt)


def rows_of(groups: list[RankedGroup]) -> list[dict]:
    return [group.row() for group in groups]


def test_a_group_that_comes_again_is_counted(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows_of([ranked("g", 0, 1), ranked("h", 0, 0), ranked("g", 1, 0)]))
    write_jsonl(tmp_path / "b.jsonl", rows_of([ranked("g", 1, 0), ranked("i", 0, 1)]))
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    groups, counts = read_sources(Eft(sources=paths))
    assert groups == [ranked("g", 0, 1), ranked("i", 0, 1)]
    assert counts == {
        paths[0]: {"groups": 1, "equal_ranks": 1, "repeated": 1},
        paths[1]: {"groups": 1, "repeated": 1},
    }


class MockEngine:
    """Scores a reply by its letters, plus or minus one; some verdicts are malformed, cut off or missing."""

    computed_tokens = 0

    def run(self, requests, on_step=None):
        for request in reversed(list(requests)):
            kind, noise = request.seed % 17, request.seed % 3 - 1
            score = bytes(request.ids[1:]).decode().split("Response:")[1].count("x") + noise
            text = f"{'Verdict' if kind == 0 else 'Score'}: {score}\nSeed {request.seed}."
            if kind == 1:
                yield Completion(request.id, [], "too_long", 0.0)
            elif kind == 2:
                yield Completion(request.id, [*text.encode()], "length", -1.0)
            else:
                yield Completion(request.id, [*text.encode(), 0], "stop", -1.0)


CONFIG = """
name = "test"
seed = 3
[model]
path = "m"
[engine]
shard_requests = 20
[respond]
prompts = "p"
prompts_per_iteration = 2
[eft]
sources = ["{source}"]
N = 3
[judge]
prompt_style = "compact"
verdict_position = "first"
[[iteration]]
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the stage on forty groups of three replies; the model is a tokenizer."""
    monkeypatch.setattr(sampling.worker, "load_engine", lambda settings, model_dir, log: MockEngine())
    monkeypatch.setattr(sampling.worker, "load_chat", lambda folder: CHAT)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    groups = []
    for i in range(40):
        replies = tuple(Reply("x" * (4 - rank) + f" by {rank}", rank) for rank in ((1, 0, 2), (2, 1, 0))[i % 2])
        groups.append(replace(ranked(f"g{i}", 0, 1), replies=replies))
    write_jsonl(tmp_path / "source.jsonl", rows_of([*groups, ranked("gone", 0, 0)]))
    (tmp_path / "config.toml").write_text(CONFIG.format(source=tmp_path / "source.jsonl"))

    def run(out: str):
        flags = ["--config", str(tmp_path / "config.toml"), "--model", str(tmp_path / "model")]
        EFT.run(EFT.read_arguments([*flags, "--out", str(tmp_path / out)]))
        return tmp_path / out

    return run


def test_from_rankings_to_examples(stage, tmp_path):
    out = stage("eft")
    manifest = read_manifest(out)
    counts, rows = manifest["counts"], list(labelled_rows(out / "examples.jsonl"))
    judgments = {row["id"]: row for row in read_shards(out / "judgments")}
    assert manifest["sources"] == {str(tmp_path / "source.jsonl"): {"groups": 40, "equal_ranks": 1}}
    assert counts["groups"] == 40 == sum(counts[f"groups.{name}"] for name in ("held_out", *Outcome))
    held_out = {case.group for case in read_labelled(out / "held_out.jsonl").cases}
    assert len(held_out) == counts["groups.held_out"] and 0 < len(held_out) < 20
    assert {row["prompt_id"] for row in judgments.values()} == {f"g{i}" for i in range(40)} - held_out
    assert counts["judgments"] == len(judgments) == (40 - len(held_out)) * 9
    failed = Counter(row["failure"] for row in judgments.values() if row["failure"])
    assert {f"failure.{name}": count for name, count in failed.items()} == {
        name: count for name, count in counts.items() if name.startswith("failure.")
    }
    assert set(failed) == {"too_long", "truncated", "missing"}
    assert counts["rows"] - counts["downsampled"] == counts["examples"] == len(rows) > 20
    assert sum(manifest["accepted_round"].values()) == counts["groups.agrees"]
    assert manifest["agreeing_by_chance"] < counts["groups.agrees"]  # this judge is better than chance
    for row in rows:
        judgment = judgments[row["judgment_id"]]
        assert judgment_text(row["score"], row["justification"], "first") == judgment["text"]
        assert row["response"] == "x" * (4 - row["rank"]) + f" by {row['rank']}"
    assert len({row["judgment_id"] for row in rows}) == len(rows)


def test_a_stage_that_lost_a_shard_ends_with_the_same_bytes(stage, tmp_path):
    names = ("examples.jsonl", "held_out.jsonl")
    out = stage("eft")
    once = {name: (out / name).read_bytes() for name in names}
    digest = read_manifest(out)["digest"]
    shards = sorted((out / "judgments").glob("shards-*/*.jsonl"))
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    for path in (out / "manifest.json", out / "judgments" / "manifest.json", out / "examples.jsonl"):
        path.unlink()
    stage("eft")
    assert {name: (out / name).read_bytes() for name in names} == once
    assert read_manifest(out)["digest"] == digest and shards[0].stat().st_mtime_ns == kept


def test_another_order_reuses_the_judgments(stage, tmp_path, monkeypatch):
    out = stage("eft")
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace("N = 3", 'N = 3\norder = "strict"'))
    monkeypatch.setattr(sampling.worker, "load_engine", lambda *_, **__: pytest.fail("nothing is sampled"))
    before = read_manifest(out)["counts"]
    after = read_manifest(stage("eft"))["counts"]
    assert after["judgments"] == before["judgments"] and after["groups.agrees"] < before["groups.agrees"]
    for change in ("N = 4", "N = 3\nheld_out = 0.1"):
        config.write_text(re.sub("^N = .*", change, config.read_text(), flags=re.MULTILINE))
        with pytest.raises(pytest.fail.Exception, match="nothing is sampled"):
            stage("eft")


def test_nothing_to_judge(stage, tmp_path, capsys):
    config = tmp_path / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("N = 3", "N = 3\nheld_out = 1.0"))
    out = stage("eft")
    assert list(read_jsonl(out / "examples.jsonl")) == [] and read_manifest(out)["counts"]["groups.held_out"] == 40
    assert "warning: no example: none of 0 groups" in capsys.readouterr().err
    write_jsonl(tmp_path / "source.jsonl", rows_of([ranked("gone", 0, 0)]))
    with pytest.raises(UserError, match=r"no group of ranked replies is left \(equal_ranks 1\)"):
        stage("eft")
    config.write_text(text.replace(f'"{tmp_path / "source.jsonl"}"', ""))
    with pytest.raises(UserError, match=r"^eft\.sources is empty"):
        stage("eft")
