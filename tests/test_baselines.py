"""The shipped configs beside the method's own: which stages each runs on which model, and what its rule does."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import ROOT, SMALL_SFT

import iterate
from evaluation.measure import ModelMeasurements
from judging.rules import word_count
from stages.command import UserError
from stages.files import read_jsonl, read_manifest, read_shards, write_json, write_jsonl, write_manifest
from stages.launch import Launcher
from stages.records import group_by
from stages.settings import load_settings

SHIPPED = ROOT / "configs" / "tiny"
SFT = "examples seed, sft seed"
FIRST = "respond M0, judge M0, metajudge M0, pairs M0, dpo M0"
SECOND = "respond M1, judge M1, metajudge M1, pairs M1, dpo M1"
WITHOUT = FIRST.replace(" metajudge M0,", ""), SECOND.replace(" metajudge M1,", "")
PLANS = {
    "../tiny": (SFT, FIRST, WITHOUT[1]),
    "judge-pairs-throughout": (SFT, FIRST, SECOND),
    "near-scores": (SFT, FIRST, SECOND),
    "balanced-comparisons": (SFT, FIRST, WITHOUT[1]),
    "frozen-metajudge": (SFT, FIRST, SECOND.replace("metajudge M1", "metajudge M0")),
    "self-rewarding": (SFT, *WITHOUT),
    "self-rewarding-no-length-control": (SFT, *WITHOUT),
    "lora": (FIRST.replace("M0", "seed"), WITHOUT[1]),
    "no-sft": (FIRST.replace("M0", "seed"), WITHOUT[1]),
    "sft-only": (SFT,),
    "scores-from-file": (SFT, *(plan.replace(f" judge M{t},", "") for t, plan in enumerate(WITHOUT))),
}
EXPECTED = '[judge]\nscore = "expected"\nverdict_position = "{}"\n'


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Run a config with stages that write empty outputs: the stages by model, the jobs, and the panels' agreements."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    write_json(tmp_path / "models" / "tiny" / "config.json", {})
    monkeypatch.chdir(tmp_path)
    jobs, agreements = [], []

    def run_job(self, stage, job, name=""):
        jobs.append((stage.name, job))
        rows = [{"id": f"p{i}", "prompt": f"{i}?"} for i in range(16)]
        for file in ("prompts", "examples", "actor", "judge"):
            write_jsonl(job.out / f"{file}.jsonl", rows)
        write_manifest(job.out, stage.name, job.key, [])
        return job.out

    def write_panel(path, t, settings, sources, pairs, *measured):
        agreements.append(measured)

    for name, value in (("broken_limits", []), ("write_summary", {}), ("print_summary", None)):
        monkeypatch.setattr(iterate, name, lambda *_, value=value: value)
    monkeypatch.setattr(iterate, "write_panel", write_panel)
    monkeypatch.setattr(iterate, "prepare", lambda model: Path("models/tiny"))
    monkeypatch.setattr(iterate.Run, "run_job", run_job)

    def run(base: str, text: str = "") -> SimpleNamespace:
        Path("c.toml").write_text(f'extends = "{SHIPPED / base}.toml"\n{text}')
        launcher = SimpleNamespace(run=lambda *_, **__: 0)
        iterate.iterate(iterate.Run(Path("c.toml"), load_settings(Path("c.toml")), Path("runs/c"), launcher))
        names = {"models/tiny": "seed"}
        names |= {str(job.out): f"M{job.iteration}" for stage, job in jobs if stage in ("sft", "dpo")}
        steps = [f"{stage} {names[str(job.path('model'))]}" for stage, job in jobs if stage != "measure"]
        return SimpleNamespace(steps=", ".join(steps), jobs=dict(jobs), agreements=agreements)

    return run


@pytest.mark.parametrize("name", PLANS)
def test_the_stages_of_each_baseline(plan, name):
    for t in (1, 2):
        write_jsonl(Path(f"runs/c/iter{t}/scores.jsonl"), [])
    assert plan(name).steps == ", ".join(PLANS[name])


@pytest.mark.parametrize(
    ("position", "first", "second"), [("first", "score M0, judge M0, meta", "score M1, pairs"),
                                      ("last", "judge M0, score M0, meta", "judge M1, score M1, pairs")]
)  # fmt: skip
def test_the_stages_of_expected_scores(plan, position, first, second):
    """With the verdict first, judgments are for comparisons alone; with the verdict last, scores stand behind them."""
    steps = FIRST.replace("judge M0, meta", first), WITHOUT[1].replace("judge M1, pairs", second)
    assert plan("../tiny", EXPECTED.format(position)).steps == ", ".join((SFT, *steps))


def test_the_panel_has_the_judges_and_the_metajudges_own_measurements(plan):
    """In iteration 2 of frozen-metajudge the judge is M1 and the meta-judge M0."""
    files = {"judge_cases": "data/evaluation/groups.jsonl", "comparisons": "data/evaluation/comparisons.jsonl"}
    measured = "[evaluation]\n" + "".join(f'{key} = "{path}"\n' for key, path in files.items())
    m0, m1 = (ModelMeasurements.of(Path("runs/c"), t) for t in (0, 1))
    wanted = [(m0.agreement, m0.meta_agreement), (m1.agreement, m0.meta_agreement)]
    assert plan("frozen-metajudge", measured).agreements == wanted


def test_labelled_judgments_become_sft_examples(plan):
    (Path.cwd() / "ranked.jsonl").write_text("{}\n")
    planned = plan("sft-only", '[eft]\nsources = ["ranked.jsonl"]\n')
    assert planned.steps == "eft seed, " + SFT
    assert planned.jobs["examples"].paths("labelled") == [Path("runs/c/sft/eft/examples.jsonl")]


def test_new_prompts_are_the_pool(plan):
    """The drawn prompts are the 16 that the stage wrote."""
    text = '[respond]\nprompts = []\n[prompts]\nseeds = "data/prompts/train.jsonl"\n'
    assert plan("no-sft", text).steps.startswith("prompts seed, respond seed")
    drawn = [row["id"] for t in (1, 2) for row in read_jsonl(Path(f"runs/c/iter{t}/prompts.jsonl"))]
    assert sorted(drawn) == sorted(f"p{i}" for i in range(16))


def test_a_run_needs_prompts(plan):
    with pytest.raises(UserError, match=r"c\.toml: no prompts; set respond\.prompts, or prompts\.seeds"):
        plan("no-sft", "[respond]\nprompts = []\n")


class BeforeTraining(Exception):
    pass


@pytest.fixture
def derived(tiny_run, tmp_path, monkeypatch):
    """Run a config from the tiny run's M0, responses and judgments up to DPO; the folder of its iteration 1."""
    (tmp_path / "models").mkdir()
    for name in ("data", "models/tiny", "models/sft", "sft.jsonl"):
        (tmp_path / name).symlink_to(tiny_run / name)
    for name in ("responses", "judgments"):
        shutil.copytree(tiny_run / "runs" / "tiny" / "iter1" / name, tmp_path / "run" / "iter1" / name)
    monkeypatch.chdir(tmp_path)

    def run_job(self, stage, job, name=""):
        if stage.name == "dpo":
            raise BeforeTraining
        if not job.complete:
            stage.run(stage.read_arguments(stage.arguments(self.config, job)))
        return job.out

    monkeypatch.setattr(iterate.Run, "run_job", run_job)

    def run(base: str, text: str = "") -> Path:
        Path("c.toml").write_text(f'extends = "{SHIPPED / base}.toml"\n{SMALL_SFT}{text}')
        with pytest.raises(BeforeTraining):
            run = iterate.Run(Path("c.toml"), load_settings(Path("c.toml")), Path("run"), Launcher(1, Path("logs")))
            monkeypatch.setattr(run.launcher, "run", lambda *_, **__: 0)  # the preview
            iterate.iterate(run)
        return Path("run/iter1")

    return run


def panel(folder: Path) -> dict:
    return json.loads((folder / "bias.json").read_text())


def test_self_rewarding_without_length_control(derived):
    folder = derived("self-rewarding-no-length-control")
    manifest = read_manifest(folder / "pairs")
    assert manifest["rule"]["length_control"] == "off" and panel(folder)["metajudge"] is None
    assert manifest["counts"]["actor"] > 0 and "judge" not in manifest["counts"]


def test_a_limit_stops_the_run_before_it_trains(derived):
    with pytest.raises(UserError) as error:
        derived("self-rewarding", "[limits]\nparse_rate = 1.0\nmax_top_score_share = 0.01\n")
    line = str(error.value)
    assert line.startswith("run/iter1/bias.json: ") and "\n" not in line and Path("run/iter1/bias.json").is_file()
    assert "limits.parse_rate is 1" in line and "limits.max_top_score_share is 0.01" in line


def test_scores_from_a_file(derived):
    """The reward model's scores are lengths; the iteration waits for their file."""
    path = Path("run/iter1/scores.jsonl")
    with pytest.raises(UserError, match=r"iter1/scores\.jsonl: no such file; score the responses in"):
        derived("scores-from-file")
    rows = read_shards(path.parent / "responses")
    write_jsonl(path, ({"id": row["id"], "score": len(row["text"]) / 10, "text": row["text"]} for row in rows))
    folder = derived("scores-from-file")
    pairs = list(read_jsonl(folder / "pairs" / "actor.jsonl"))
    assert pairs and all(len(a["chosen"][0]["content"]) > len(a["rejected"][0]["content"]) for a in pairs)
    bias = panel(folder)
    assert bias["judge"] is None and bias["responses"]["score_length_spearman_within_prompt"]["value"] == 1


def test_rules_in_the_judges_place(derived):
    """Code's verdicts order the pairs, so that all are ordered rightly; nothing is judged."""
    rule = {"rule": "words_at_most", "count": 9}
    write_jsonl("ruled.jsonl", [row | {"rules": [rule]} for row in read_jsonl("data/prompts/train.jsonl")])
    text = '[respond]\nprompts = ["ruled.jsonl"]\n[[iteration]]\nlabels = "rules"\njudge_pairs = false\n'
    folder = derived("../tiny", text)
    pairs = list(read_jsonl(folder / "pairs" / "actor.jsonl"))
    assert pairs and all(
        word_count(p["chosen"][0]["content"]) <= 9 < word_count(p["rejected"][0]["content"]) for p in pairs
    )
    bias = panel(folder)
    assert bias["judge"] is None and bias["selection"]["rules"]["ordered"]["value"] == 1
    assert bias["selection"]["rules"]["best"]["value"] == bias["selection"]["rules"]["oracle"]["value"]
    assert [stage for stage in read_manifest(folder / "pairs")["inputs"] if stage in ("judgments", "scores")] == []


def test_balanced_comparisons(derived):
    folder = derived("balanced-comparisons", "[judge]\nN = 6\n")
    sizes = []
    for rows in group_by(read_shards(folder / "comparisons"), "response_id").values():
        first, second = (Counter(row[place] for row in rows) for place in ("first", "second"))
        assert first == second and {*first.values()} == {min(2, len(first) - 1)}
        sizes.append(len(first))
    assert max(sizes) > 3  # so that two opponents are fewer than all


def test_expected_scores(derived):
    """With the verdict first, the response of a prompt with the highest variance is judged, for comparisons."""
    folder = derived("../tiny", EXPECTED.format("first"))
    responses, scores = (list(read_shards(folder / name)) for name in ("responses", "scores"))
    assert [row["response_id"] for row in scores] == [row["id"] for row in responses]
    judged = {row["response_id"] for row in read_shards(folder / "judgments")}
    scored = group_by((row for row in scores if row["failure"] is None), "prompt_id")
    highest = {name: max(row["variance"] for row in rows) for name, rows in scored.items()}
    assert {row["prompt_id"]: row["variance"] for row in scores if row["response_id"] in judged} == highest
    assert len(judged) == len(highest)
    pairs, score_of = list(read_jsonl(folder / "pairs" / "actor.jsonl")), {r["response_id"]: r["score"] for r in scores}
    assert pairs and all(pair["chosen_score"] == score_of[pair["chosen_id"]] for pair in pairs)
    judge = panel(folder)["judge"]
    masses = [sum(row["probabilities"]) for row in scores]
    assert judge["score"] == "expected" and judge["digit_mass"] == pytest.approx(sum(masses) / len(masses), abs=1e-4)
