"""Each baseline runs from its own config on a tiny model, and does what its name says.

The stages run in this process, one after the other, so that torch is imported only once. Runs are smaller than the
configs say, and start from "tiny-judge", which writes verdicts without SFT.
"""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

import iterate
from sampling.worker import Item
from stages.files import UserError, digest, read_jsonl, read_manifest, read_shards, write_jsonl
from stages.launch import Launcher
from stages.records import group_by
from stages.settings import load_settings
from stages.stage import Job, Stage

ROOT = Path(__file__).parent.parent
SMALL = "[respond]\nprompts_per_iteration = 5\n"
JUDGE = '[model]\npath = "models/tiny-judge"\nprepare = "tiny-judge"\n[sft]\nenabled = false\n'
ONE = "[[iteration]]\nrho = 0.0\n"


def in_process(self, stage: Stage, job: Job, name: str = "") -> Path:
    """`iterate.Run.run_job` by the same command line, without a process of its own."""
    if not job.complete:
        stage.run(stage.read_arguments(stage.arguments(self.config, job)))
    return job.out


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One folder for all baselines."""
    place = tmp_path_factory.mktemp("baselines")
    (place / "data").symlink_to(ROOT / "data")
    return place


@pytest.fixture
def run(place, monkeypatch):
    """Run the config `base` with changes; gives the run's folder."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(iterate.Run, "run_job", in_process)

    def run(base: str, name: str = "", text: str = JUDGE + SMALL) -> Path:
        config = place / f"{name or base}.toml"
        source = ROOT / "configs" / "tiny" / f"{base}.toml"
        config.write_text(f'extends = "{source}"\nname = "{config.stem}"\n{text}')
        folder = place / "runs" / config.stem
        folder.mkdir(parents=True, exist_ok=True)
        iterate.iterate(iterate.Run(config, load_settings(config), folder, Launcher(1, folder / "logs")))
        return folder

    return run


def counts(folder: Path, iteration: int) -> dict[str, int]:
    return read_manifest(folder / f"iter{iteration}" / "pairs")["counts"]


def bias(folder: Path, iteration: int) -> dict:
    return json.loads((folder / f"iter{iteration}" / "bias.json").read_text())


@pytest.mark.parametrize("name", ["self-rewarding", "self-rewarding-no-length-control"])
def test_self_rewarding(run, name):
    """The shipped iterations; of the variant without length control, whose iterations are alike, the first."""
    controlled = name == "self-rewarding"
    folder = run(
        name, text=JUDGE + SMALL + ("" if controlled else f"{ONE}length_control = false\njudge_pairs = false\n")
    )
    shipped = load_settings(ROOT / "configs" / "tiny" / f"{name}.toml").iteration
    assert [(i.length_control, i.judge_pairs) for i in shipped] == [(controlled, False)] * 2
    for t in (1, 2) if controlled else (1,):
        assert not (folder / f"iter{t}" / "comparisons").exists() and bias(folder, t)["metajudge"] is None
        assert counts(folder, t)["actor"] > 0 and "judge" not in counts(folder, t)
        assert {row["kind"] for row in read_jsonl(folder / f"iter{t}" / "pairs" / "actor.jsonl")} == {"actor"}
        assert (folder / f"iter{t}" / "checkpoint" / "model.safetensors").is_file()
    assert read_manifest(folder / "iter1" / "pairs")["rule"]["length_control"] is controlled


def test_no_sft(run, place):
    folder = run("no-sft", text=SMALL)
    seed = place / "models" / "tiny-judge"
    assert not (folder / "sft").exists()
    assert read_manifest(folder / "iter1" / "responses")["inputs"]["model"]["digest"] == digest(seed)
    assert bias(folder, 1)["judge"]["parse_rate"]["value"] > 0.2
    assert counts(folder, 1)["actor"] > 0 and counts(folder, 1)["judge"] > 0
    assert counts(folder, 2)["actor"] > 0


def test_sft_only(run, capsys):
    sizes = "[sft]\nconstructed_judgments = 12\nconstructed_comparisons = 6\nepochs = 1\n"
    folder = run("sft-only", text=sizes)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == [] and (Path(summary["sft"]["checkpoint"]) / "model.safetensors").is_file()
    assert not list(folder.glob("iter*")) and "sft-only" in capsys.readouterr().out


def test_scores_from_a_file(run):
    """The reward model's scores are lengths; each iteration waits for its file."""
    for t in (1, 2):
        with pytest.raises(UserError, match=rf"iter{t}/scores\.jsonl: no such file; score the responses in") as error:
            run("scores-from-file")
        path = Path(str(error.value).split(": no such file")[0])
        rows = list(read_shards(path.parent / "responses"))
        write_jsonl(path, ({"id": row["id"], "score": len(row["text"]) / 10, "text": row["text"]} for row in rows))
    folder = run("scores-from-file")
    for t in (1, 2):
        assert not (folder / f"iter{t}" / "judgments").exists()
        pairs = list(read_jsonl(folder / f"iter{t}" / "pairs" / "actor.jsonl"))
        assert pairs and all(len(a["chosen"][0]["content"]) > len(a["rejected"][0]["content"]) for a in pairs)
        panel = bias(folder, t)
        assert panel["judge"] is None and panel["responses"]["score_length_spearman_within_prompt"]["value"] == 1


def test_near_scores(run):
    folder = run("near-scores", text=JUDGE + SMALL + ONE) / "iter1"
    score = {(row["response_id"], row["index"]): row["score"] for row in read_shards(folder / "judgments")}
    rows = list(read_shards(folder / "comparisons"))
    gaps = {abs(score[row["response_id"], row["first"]] - score[row["response_id"], row["second"]]) for row in rows}
    assert gaps and gaps <= {0, 1}


def test_balanced_comparisons(run):
    folder = run("balanced-comparisons", text=JUDGE + SMALL + ONE) / "iter1"
    times_shown: dict[str, dict[int, list[int]]] = {}
    for row in read_shards(folder / "comparisons"):
        for position, key in enumerate(("first", "second")):
            times_shown.setdefault(row["response_id"], {}).setdefault(row[key], [0, 0])[position] += 1
    for judgments in times_shown.values():
        assert all(times == [min(2, len(judgments) - 1)] * 2 for times in judgments.values())
    assert max(map(len, times_shown.values())) > 3  # so that two opponents are fewer than all


def test_a_frozen_metajudge_is_measured_as_itself(run, place):
    """In iteration 2 the judge is M1 and the meta-judge M0: the panel has the agreement of each."""
    for name, source, lines in (("few", "comparisons", 3), ("groups", "groups", 2)):
        text = (ROOT / "data" / "evaluation" / f"{source}.jsonl").read_text().splitlines(keepends=True)
        (place / f"{name}.jsonl").write_text("".join(text[:lines]))
    measured = '[evaluation]\njudge_cases = "groups.jsonl"\ncomparisons = "few.jsonl"\n'
    folder = run("frozen-metajudge", text=JUDGE + SMALL + measured)
    judges, metajudges = (
        [read_manifest(folder / f"iter{t}" / stage)["inputs"]["model"]["digest"] for t in (1, 2)]
        for stage in ("judgments", "comparisons")
    )
    assert metajudges == [judges[0]] * 2 and judges[1] != judges[0]
    panel = bias(folder, 2)
    m0, m1 = (
        json.loads((folder / "evaluation" / name / "agreement.json").read_text())
        for name in ("M0/metajudge", "M1/judge")
    )
    assert panel["meta_agreement"]["agreement"] == m0["agreement"] and panel["agreement"]["pairwise"] == m1["pairwise"]
    assert panel["weights"]["metajudge"] == bias(folder, 1)["weights"]["judge"] != panel["weights"]["judge"]
    assert panel["metajudge"]["model"] == "initial" and panel["metajudge"]["opponents"] == "all"
    # Its iterations are those of judge-pairs-throughout.
    throughout = load_settings(ROOT / "configs" / "tiny" / "judge-pairs-throughout.toml")
    assert throughout.iteration == load_settings(ROOT / "configs" / "tiny" / "frozen-metajudge.toml").iteration
    assert all(counts(folder, t)["judge"] > 0 for t in (1, 2))


@pytest.mark.parametrize("verdict", ["first", pytest.param("last", marks=pytest.mark.slow)])
def test_expected_scores(run, verdict):
    """With the verdict first, one response a prompt is judged, for comparisons; with the verdict last, all are.

    A score needs tokens of digits, which "tiny-judge" lacks, so SFT teaches the model judging."""
    text = f'[judge]\nscore = "expected"\nverdict_position = "{verdict}"\n[limits]\nparse_rate = 0.0\n'
    folder = run("../tiny", f"expected-{verdict}", text)
    responses = list(read_shards(folder / "iter1" / "responses"))
    scores, judgments = (list(read_shards(folder / "iter1" / name)) for name in ("scores", "judgments"))
    judged = {row["response_id"] for row in judgments}
    if verdict == "first":
        assert [row["response_id"] for row in scores] == [row["id"] for row in responses]
        scored = group_by((row for row in scores if row["failure"] is None), "prompt_id")
        highest = {name: max(row["variance"] for row in rows) for name, rows in scored.items()}
        variances = {row["prompt_id"]: row["variance"] for row in scores if row["response_id"] in judged}
        assert variances == highest and len(judged) == len(highest) > 4
        assert not (folder / "iter2" / "judgments").exists()  # no judge pairs, so nothing to compare
    else:
        assert judged == {row["id"] for row in responses}
    pairs = list(read_jsonl(folder / "iter1" / "pairs" / "actor.jsonl"))
    scores_of = group_by(scores, "response_id")
    for pair in pairs:
        for side in ("chosen", "rejected"):
            rows = [row for row in scores_of[pair[f"{side}_id"]] if row["score"] is not None]
            assert pair[f"{side}_score"] == float(sum(Fraction(str(row["score"])) for row in rows) / len(rows))
    panel = bias(folder, 1)["judge"]
    assert pairs and panel["score"] == "expected" and 0.5 < panel["digit_mass"] <= 1
    assert (folder / "iter2" / "checkpoint" / "model.safetensors").is_file()


def test_judgments_that_people_agree_with_become_sft_examples(run, place):
    """Eight invented groups of replies; the untaught judge scores at random, so some orders agree."""
    groups = [
        {
            "message_id": f"g{i}",
            "context": [{"role": "prompter", "text": f"What is the number {i}?"}],
            "replies": [{"rank": 0, "text": f"It is {i}."}, {"rank": 1, "text": f"It is {i + 1}."}],
        }
        for i in range(8)
    ]
    write_jsonl(place / "ranked.jsonl", groups)
    taught = "[sft]\nenabled = true\nepochs = 1\nconstructed_judgments = 12\nconstructed_comparisons = 6\n"
    text = f'{taught}[eft]\nsources = ["ranked.jsonl"]\nheld_out = 0.2\nN = 12\n'
    folder = run("no-sft", "eft", text + SMALL + ONE)
    eft = read_manifest(folder / "sft" / "eft")["counts"]
    assert eft["groups"] == 8 and eft["examples"] > 0
    kinds = read_manifest(folder / "sft" / "examples")["counts"]
    assert kinds["judge."] == eft["examples"] and sum(kinds.values()) == 12 + 6 + eft["examples"]
    assert (folder / "iter1" / "checkpoint" / "model.safetensors").is_file()


def test_new_prompts_are_the_pool(run, place, monkeypatch, capsys):
    """The tiny model writes no tasks, which is an error; so the test writes the completions."""
    text = '[respond]\nprompts = ""\nprompts_per_iteration = 5\n'
    text += '[prompts]\nseeds = "data/prompts/train.jsonl"\ncount = 10\nround_attempts = 12\nmax_attempts = 12\n'
    with pytest.raises(UserError, match=r"pool/prompts\.jsonl: 0 prompts, but the iterations need 10"):
        run("no-sft", "prompts", text)
    assert "0 of the 10 prompts wanted: attempts 12, unlabelled" in capsys.readouterr().err
    shutil.rmtree(place / "runs" / "prompts")
    texts = [row["prompt"] for row in read_jsonl(ROOT / "data" / "prompts" / "evaluation.jsonl")]
    tasks = iter(f"Task 9: {text}" for text in texts)

    class TaskItem(Item):
        def row(self, completion, chat):
            return self.record | {"ids": [], "text": next(tasks), "finish_reason": "stop"}

    monkeypatch.setattr("prepare.new_prompts.Item", TaskItem)
    folder = run("no-sft", "prompts", text)
    pool = [row["prompt"] for row in read_jsonl(folder / "pool" / "prompts.jsonl")]
    assert len(pool) == 10 and set(pool) <= set(texts)
    drawn = [row["prompt"] for t in (1, 2) for row in read_jsonl(folder / f"iter{t}" / "prompts.jsonl")]
    assert sorted(drawn) == sorted(pool)


def test_a_run_needs_prompts(run):
    with pytest.raises(UserError, match=r"no-prompts\.toml: no prompts; set respond\.prompts, or prompts\.seeds"):
        run("no-sft", "no-prompts", '[respond]\nprompts = ""\n')


def test_a_limit_stops_the_run_before_it_trains(run):
    with pytest.raises(UserError) as error:
        run("no-sft", "limited", "[limits]\nparse_rate = 0.99\nactor_yield = 1.0\n")
    line, folder = str(error.value), Path("runs/limited")
    assert "limited/iter1/bias.json: " in line and line.count("\n") == 0
    assert "limits.parse_rate is 0.99" in line and "limits.actor_yield is 1" in line
    assert (folder / "iter1" / "bias.json").is_file() and not (folder / "iter1" / "checkpoint").exists()
