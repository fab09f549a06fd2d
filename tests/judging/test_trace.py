"""From pairs back to texts, and why there is no pair, on a run folder written by hand and by the real pairs stage."""

import json
import sys
from pathlib import Path

import pytest
from records import CHAT, response

import judging.pairs
import judging.trace
from judging.metajudge import choose_meta_judged
from judging.pairs import PAIRS
from judging.scores import ACTOR_REASONS, JUDGE_REASONS, Reason
from judging.trace import explain, find_pair, find_prompt, lineage
from stages.files import UserError, write_jsonl, write_manifest
from stages.records import group_by
from stages.settings import Iteration, Judge, Metajudge, Model, Respond, Settings


def judged(prompt: int, sample: int, scores: list) -> list[dict]:
    name = f"p{prompt}/r{sample}"
    return [
        {"id": f"{name}/j{i}", "response_id": name, "prompt_id": f"p{prompt}", "index": i, "ids": [200 + i],
         "text": f"about {name}, {i}\nScore: {score}", "finish_reason": "stop", "logprob": -1.0, "seed": 70 + i,
         "score": score, "failure": None if score is not None else "missing"}
        for i, score in enumerate(scores)
    ]  # fmt: skip


def compared(prompt: int, sample: int, *battles: tuple) -> list[dict]:
    name = f"p{prompt}/r{sample}"
    return [
        {"id": f"{name}/m{m}-{n}", "response_id": name, "prompt_id": f"p{prompt}", "first": m, "second": n, "ids": [9],
         "text": f"of {m} and {n}\nWinner: {winner}", "finish_reason": "stop", "logprob": -1.0, "seed": 80 + m,
         "winner": winner, "failure": None if winner else "malformed"}
        for m, n, winner in battles
    ]  # fmt: skip


def stage(folder: Path, rows: list[dict], weights: str) -> Path:
    path = folder / "shards" / "0.jsonl"
    write_jsonl(path, rows)
    inputs = {"model": {"path": "m", "digest": weights}}
    write_manifest(folder, "test", "key", [path], shards=["shards/0.jsonl"], inputs=inputs)
    return folder


class Folder:
    """A run of one iteration: M0's hash is "seed weights", M1's is in its checkpoint's manifest."""

    def __init__(self, path: Path, monkeypatch):
        self.path, self.folder = path / "runs" / "hand", path / "runs" / "hand" / "iter1"
        monkeypatch.setattr(judging.pairs, "load_chat", lambda folder: CHAT)
        (path / "model").mkdir()
        (path / "model" / "tokenizer.json").write_text("{}")
        self.model = path / "model"

    def write(self, responses, judgments, comparisons=None, scores=None, meta=None, **rule) -> "Folder":
        minimum = rule.pop("minimum_valid", 1)
        settings = Settings(
            name="hand",
            model=Model(path="m"),
            respond=Respond(prompts="p", prompts_per_iteration=1),
            judge=Judge(minimum_valid=minimum),
            metajudge=meta or Metajudge(),
            iteration=[Iteration(judge_pairs=comparisons is not None, **rule)],
        )
        prompts = {row["prompt_id"]: row["prompt"] for row in responses}
        write_jsonl(self.folder / "prompts.jsonl", ({"id": key, "prompt": text} for key, text in prompts.items()))
        made = stage(self.folder / "responses", responses, "seed weights")
        sources = {"responses": made, "scores_file": scores}
        if not scores:
            own = stage(self.folder / "judgments", judgments, "seed weights")
            sources = {"responses": made, "judgments": own}
            if comparisons is not None:
                by_response = group_by(judgments, "response_id")
                chosen = choose_meta_judged(responses, by_response, settings, 1)
                write_jsonl(self.folder / "comparisons" / "meta_judged.jsonl", chosen)
                sources["comparisons"] = stage(self.folder / "comparisons", comparisons, "another's weights")
        PAIRS.run(PAIRS.job(settings, self.folder / "pairs", 1, model=self.model, **sources))
        write_manifest(self.folder / "checkpoint", "dpo", "key", [])
        return self

    def main(self, monkeypatch, capsys, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["trace", str(self.path), *words])
        judging.trace.main()
        return capsys.readouterr().out


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


@pytest.fixture
def whole(folder) -> Folder:
    """Two prompts: p1 has both pairs, p2 none."""
    responses = [response(1, 0, "good"), response(1, 1, "bad"), response(1, 2, "bad"), response(2, 0, "alone")]
    judgments = judged(1, 0, [5, 4, None]) + judged(1, 1, [1, 4]) + judged(2, 0, [3, None])
    comparisons = compared(1, 1, (0, 1, "first"), (1, 0, "second"))
    return folder.write(responses, judgments, comparisons)


def test_an_actor_pair_and_all_behind_it(whole, monkeypatch, capsys):
    text = whole.main(monkeypatch, capsys, "actor/p1")
    assert text.startswith(f"actor/p1: iteration 1 of {whole.path}\n")
    assert "respond by M0, weights seed weights" in text
    assert "trained M1, weights" in text
    assert "response p1/r0 (chosen): score 4.5, seed 1, 4 characters" in text
    assert "response p1/r1 (rejected): score 2.5" in text
    assert "response p1/r2: no score, seed 1, 3 characters, not distinct: not judged" in text
    assert "judgment p1/r0/j2: none (missing), seed 72" in text
    for row in (judged(1, 0, [5, 4]), judged(1, 1, [1, 4])):
        for judgment in row:
            assert all(f"    | {line}" in text for line in judgment["text"].splitlines())
    assert text.index("(chosen)") < text.index("(rejected)") < text.index("p1/r2")


def test_a_judge_pair_and_all_behind_it(whole, monkeypatch, capsys):
    text = whole.main(monkeypatch, capsys, "judge/p1/r1")
    assert "metajudge by a model outside the run, weights another's weights" in text
    assert "judgment p1/r1/j0 (chosen): 1, seed 70, Elo " in text and "won 2, lost 0" in text
    assert "judgment p1/r1/j1 (rejected): 4, seed 71, Elo -" in text and "won 0, lost 2" in text
    assert "comparison p1/r1/m1-0, seed 81: second\n    | of 1 and 0\n    | Winner: second" in text
    assert "positions: first 1, second 1, neither 0, w1 0.5, w2 0.5" in text


def test_json_holds_the_whole_chain(whole, monkeypatch, capsys):
    document = json.loads(whole.main(monkeypatch, capsys, "judge/p1/r1", "--json"))
    assert document == {**lineage(whole.path, 1, "p1"), "pair": "judge/p1/r1"}
    assert [row["id"] for row in document["responses"]] == ["p1/r0", "p1/r1", "p1/r2"]
    assert [len(row["judgments"]) for row in document["responses"]] == [3, 2, 0]
    assert [row["seed"] for row in document["comparisons"]] == [80, 81]
    assert {row["judgment_id"] for row in document["elo"]} == {"p1/r1/j0", "p1/r1/j1"}
    assert [pair["id"] for pair in document["pairs"]] == ["actor/p1", "judge/p1/r1"] and document["none"] == {}


def test_why_not(whole, monkeypatch, capsys):
    text = whole.main(monkeypatch, capsys, "--why-not", "p2")
    assert "actor: no pair, too_few_responses: 1 distinct responses, and two are needed" in text
    assert "judge: no pair, too_few_judgments: no response has two distinct judgments with a score" in text
    assert "response p2/r0: score 3, 5 characters; judgments: 3, none (missing)" in text
    text = whole.main(monkeypatch, capsys, "--why-not", "p1")
    assert "actor: pair actor/p1" in text and "judge: pair judge/p1/r1" in text


ACTORS = {
    Reason.TOO_FEW_RESPONSES: ([("a", [5])], {}, "1 distinct responses"),
    Reason.TOO_FEW_SCORED: (
        [("a", [5, 4]), ("b", [4, None])],
        {"minimum_valid": 2},
        "1 of 2 distinct responses have a score, and two are needed (a score needs 2 parsed judgments)",
    ),
    Reason.EQUAL_SCORES: ([("a", [3, 4]), ("b", [4, 3])], {}, "all 2 scores are 3.5"),
    Reason.SAME_RESPONSE: ([("aaa", [5]), ("bb", [3]), ("c", [1])], {"rho": 0.5}, "the tiers of rho = 0.5 meet"),
    Reason.NOT_BETTER: ([("aaa", [5]), ("b", [3]), ("cccc", [3]), ("dd", [1])], {"rho": 0.5}, "does not score above"),
    Reason.CHOSEN_TOO_LONG: ([("aaa", [5]), ("b", [3])], {"max_response_characters": 2}, "iteration's 2 characters"),
}
JUDGES = {
    Reason.CHOSEN_TOO_LONG: ([(0, 1, "first"), (1, 0, "second")], {"max_judgment_characters": 3}, "3 characters"),
    Reason.TOO_FEW_JUDGMENTS: (None, {}, "no response has two distinct judgments"),
    Reason.NO_NEAR_SCORES: ([], {"meta": Metajudge(max_score_gap=1)}, "near enough"),
    Reason.NO_DECISIVE_COMPARISON: ([(0, 1, None), (1, 0, "tie")], {}, "0 of 2 comparisons name a winner"),
    Reason.EQUAL_ELO: ([(0, 1, "first"), (1, 0, "first")], {}, "the 2 comparisons with a winner balance"),
    Reason.POSITION_COLLAPSE: (
        [(0, 1, "first"), (1, 0, None)],
        {},
        "the first shown won 1 comparisons and the second 0",
    ),
}
OTHERS = compared(9, 0, (0, 1, "first"), (0, 1, "second"))  # of a missing prompt, so both positions have won


@pytest.mark.parametrize("reason", ACTOR_REASONS)
def test_every_reason_of_the_actor_is_explained(folder, reason):
    rows, rule, sentence = ACTORS[reason]
    responses = [response(1, i, text) for i, (text, _) in enumerate(rows)]
    judgments = [row for i, (_, scores) in enumerate(rows) for row in judged(1, i, scores)]
    folder.write(responses, judgments, **rule)
    document = lineage(folder.path, 1, "p1")
    assert document["none"] == {"actor": reason} and sentence in explain(document, "actor")


@pytest.mark.parametrize("reason", JUDGE_REASONS)
def test_every_reason_of_the_judge_is_explained(folder, reason):
    battles, rule, sentence = JUDGES[reason]
    comparisons = compared(1, 0, *battles or ()) + (OTHERS if reason is not Reason.POSITION_COLLAPSE else [])
    folder.write([response(1, 0, "answer")], judged(1, 0, [5, 1 if battles is not None else None]), comparisons, **rule)
    document = lineage(folder.path, 1, "p1")
    assert document["none"]["judge"] == reason and sentence in explain(document, "judge")


def test_scores_from_a_file(folder, tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path / "scores.jsonl", [{"id": "p1/r0", "score": 0.25}, {"id": "p1/r1", "score": -1}])
    folder.write([response(1, 0, "good"), response(1, 1, "bad")], None, scores=tmp_path / "scores.jsonl")
    assert "2 rows have no text; their scores may be those of an earlier run's responses" in capsys.readouterr().err
    text = folder.main(monkeypatch, capsys, "actor/p1")
    assert "response p1/r0 (chosen): score 0.25" in text and "response p1/r1 (rejected): score -1" in text
    assert f"scores from {tmp_path / 'scores.jsonl'}, SHA-256 " in text
    assert "judge: this iteration makes no judge pairs" in folder.main(monkeypatch, capsys, "--why-not", "p1")
    write_jsonl(tmp_path / "scores.jsonl", [{"id": "p1/r0", "score": 3}])
    with pytest.raises(UserError, match=r"scores\.jsonl: changed since the pairs were made"):
        folder.main(monkeypatch, capsys, "actor/p1")


@pytest.mark.parametrize("name", ["new/00001", 'a "quoted" id', "back\\slash", "ümlaut"])
def test_any_id_is_found(folder, monkeypatch, capsys, name):
    rows = [response(1, i, text) | {"id": f"{name}/r{i}", "prompt_id": name} for i, text in enumerate(("good", "bad"))]
    judgments = [
        row | {"response_id": f"{name}/r{i}", "id": f"{name}/r{i}/j0", "prompt_id": name}
        for i, score in enumerate((5, 1))
        for row in judged(1, i, [score])
    ]
    folder.write(rows, judgments)
    assert f"judgment {name}/r0/j0: 5" in folder.main(monkeypatch, capsys, f"actor/{name}")
    assert f"{name}: iteration 1" in folder.main(monkeypatch, capsys, "--why-not", name)


def test_mistakes_are_named(whole, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no pair 'actor/p2'"):
        find_pair(whole.path, "actor/p2")
    with pytest.raises(UserError, match="no iteration has drawn the prompt 'p7'"):
        find_prompt(whole.path, "p7")
    with pytest.raises(UserError, match="the folder holds no run"):
        find_pair(tmp_path, "actor/p1")
    for words in ((), ("actor/p1", "--why-not", "p1")):
        with pytest.raises(UserError, match="name either a pair or --why-not"):
            whole.main(monkeypatch, capsys, *words)
    stage(whole.folder / "judgments", judged(1, 0, [1, 1]), weights="seed weights")
    with pytest.raises(UserError, match=r"judgments: changed since the pairs were made"):
        whole.main(monkeypatch, capsys, "actor/p1")
    (whole.folder / "pairs" / "manifest.json").unlink()
    with pytest.raises(UserError, match="its pairs are not made yet"):
        find_prompt(whole.path, "p1")
