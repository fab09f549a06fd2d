"""From pairs back to texts, and why there is no pair, on a run folder written by hand and by the real pairs stage."""

import json
import sys
from types import SimpleNamespace

import pytest
from made_runs import stage, write_iteration
from records import CHAT, judgments, make_settings, response

import judging.pairs
import judging.trace
from judging.scores import EXPLANATIONS, Reason
from judging.trace import read_lineage
from stages.command import UserError
from stages.files import write_jsonl, write_manifest


def compared(first: int, second: int, winner: str) -> dict:
    """A comparison of two judgments of p1/r1."""
    made = {"id": f"p1/r1/m{first}-{second}", "response_id": "p1/r1", "prompt_id": "p1", "ids": [9]}
    made |= {"first": first, "second": second, "winner": winner, "failure": None, "seed": 80 + first}
    return made | {"text": f"of {first} and {second}\nWinner: {winner}", "finish_reason": "stop", "logprob": -1.0}


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A run of one iteration: the hash of M0 is "seed weights", that of M1 is in its checkpoint's manifest."""
    monkeypatch.setattr(judging.pairs, "load_chat", lambda folder: CHAT)
    path = tmp_path / "runs" / "hand"
    path.mkdir(parents=True)

    def write(responses, judgments, comparisons=None, scores=None) -> None:
        settings = make_settings(judge_pairs=comparisons is not None)
        write_iteration(path / "iter1", settings, responses, judgments, comparisons, scores)
        write_manifest(path / "iter1" / "checkpoint", "dpo", "key", [])

    def trace(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["trace", str(path), *words])
        judging.trace.main()
        return capsys.readouterr().out

    return SimpleNamespace(path=path, write=write, trace=trace)


@pytest.fixture
def whole(folder):
    """Two prompts: p1 has both pairs, p2 none."""
    responses = [response(1, 0, "good"), response(1, 1, "bad"), response(1, 2, "bad"), response(2, 0, "alone")]
    rows = judgments("p1/r0", [5, 4, None]) + judgments("p1/r1", [1, 4])
    rows += judgments("p2/r0", [3, None], ["Three\n3", "?"])
    folder.write(responses, rows, [compared(0, 1, "first"), compared(1, 0, "second")])
    return folder


def test_an_actor_pair_and_all_behind_it(whole):
    text = whole.trace("actor/p1")
    assert text.startswith(f"actor/p1: iteration 1 of {whole.path}\n")
    assert "respond by: checkpoint M0, weights seed weights" in text and "trained: checkpoint M1, weights" in text
    assert "response p1/r0 (chosen): score 4.5, seed 1, 4 characters" in text
    assert "response p1/r1 (rejected): score 2.5" in text and "comparison" not in text
    assert "response p1/r2: no score, seed 1, 3 characters, not distinct: not judged" in text
    assert "judgment p1/r0/j2: none (missing), seed 1\n    | judgment 2" in text and text.count("    | judgment 1") == 2
    assert text.index("(chosen)") < text.index("(rejected)") < text.index("p1/r2")


def test_a_judge_pair_and_all_behind_it(whole):
    text = whole.trace("judge/p1/r1")
    assert "metajudge by: checkpoint a model outside the run, weights another's weights" in text
    assert "judgment p1/r1/j0 (chosen): 1, seed 1, Elo " in text and "won 2, lost 0" in text
    assert "judgment p1/r1/j1 (rejected): 4, seed 1, Elo -" in text and "won 0, lost 2" in text
    assert "comparison p1/r1/m1-0, seed 81: second\n  | of 1 and 0\n  | Winner: second" in text
    assert "positions: first 1, second 1, neither 0, w1 0.5, w2 0.5" in text and "response p1/r0" not in text
    document = json.loads(whole.trace("judge/p1/r1", "--json"))
    facts, documents = read_lineage(whole.path, 1)
    assert document == facts | documents["p1"] and list(documents) == ["p1", "p2"]
    assert [row["id"] for row in document["responses"]] == ["p1/r0", "p1/r1", "p1/r2"]
    assert [row["elo"]["won"] for row in document["responses"][1]["judgments"]] == [2, 0]
    assert [pair["id"] for pair in document["pairs"]] == ["actor/p1", "judge/p1/r1"] and document["none"] == {}


def test_why_not(whole):
    text = whole.trace("--why-not", "p2")
    for kind, reason in (("actor", Reason.TOO_FEW_RESPONSES), ("judge", Reason.TOO_FEW_JUDGMENTS)):
        assert f"{kind}: no pair, {reason}: {EXPLANATIONS[reason]}" in text
    assert "response p2/r0: score 3, seed 1, 5 characters\n  judgment p2/r0/j0: 3, seed 1\n" in text
    text = whole.trace("--why-not", "p1")
    assert "actor: pair actor/p1" in text and "judge: pair judge/p1/r1" in text
    assert "comparison p1/r1/m0-1, seed 80: first" in text and "good" not in text


def test_scores_from_a_file(folder, tmp_path, capsys):
    path = tmp_path / "scores.jsonl"
    write_jsonl(path, [{"id": "p1/r0", "score": 0.25}, {"id": "p1/r1", "score": -1}])
    folder.write([response(1, 0, "good"), response(1, 1, "bad")], None, scores=path)
    assert "2 rows have no text; their scores may be those of an earlier" in capsys.readouterr().err
    text = folder.trace("actor/p1")
    assert "response p1/r0 (chosen): score 0.25" in text and "response p1/r1 (rejected): score -1" in text
    assert f"scores from: path {path}, digest " in text
    assert "judge this iteration makes no judge pairs" in folder.trace("--why-not", "p1")
    write_jsonl(path, [{"id": "p1/r0", "score": 3}])
    with pytest.raises(UserError, match=r"scores\.jsonl: changed since the pairs were made"):
        folder.trace("actor/p1")


@pytest.mark.parametrize("name", ["new/00001", 'a "quoted" id', "back\\slash", "ümlaut"])
def test_any_id_is_found_and_none_that_it_begins(folder, name):
    ids = [(f"{prompt}/r{i}", prompt, i) for prompt in (name, f"{name}1") for i in range(2)]
    rows = [response(1, i, f"text {i}") | {"id": own, "prompt_id": prompt} for own, prompt, i in ids]
    folder.write(rows, [judgments(own, [5 - i])[0] | {"prompt_id": prompt} for own, prompt, i in ids])
    text = folder.trace(f"actor/{name}")
    assert f"judgment {name}/r0/j0: 5" in text and f"{name}1/r0" not in text
    assert f"{name}: iteration 1" in folder.trace("--why-not", name)


def test_mistakes_are_named(whole, tmp_path):
    def complains(error: str, *words: str) -> None:
        with pytest.raises(UserError, match=error):
            whole.trace(*words)

    complains(r"no iteration has 'actor/p2'; see iter\*/pairs/actor\.jsonl or iter\*/pairs/judge\.jsonl", "actor/p2")
    complains(r"no iteration has 'p7'; see iter\*/prompts\.jsonl", "--why-not", "p7")
    with pytest.raises(UserError, match="the folder holds no run"):
        judging.trace.iterations(tmp_path)
    stage(whole.path / "iter1" / "judgments", judgments("p1/r0", [1, 1]))
    complains(r"judgments: changed since the pairs were made", "actor/p1")
    (whole.path / "iter1" / "pairs" / "manifest.json").unlink()
    complains("pairs: not made yet, or by an older version", "--why-not", "p1")
