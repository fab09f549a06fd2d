"""iterate.py on the tiny model: the whole loop, its records, and a run that is resumed, repeated and on two ranks."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from marks import needs_int8
from processes import ROOT, children_of, fork, free_port, iterate, start, wait, wait_for
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from evaluation.measure import ModelMeasurements
from iterate import Run
from stages.files import read_jsonl, read_manifest, write_json, write_jsonl, write_manifest
from stages.launch import Launcher
from stages.records import ActorPair, Comparison, EloScore, JudgePair, Judgment, MetaJudged, Response
from stages.settings import Evaluation, load_settings


@pytest.fixture(scope="module")
def place(tiny_run, tmp_path_factory) -> Path:
    """A copy of the finished run, for tests that change it."""
    return Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("copy") / "project", symlinks=True))


def checkpoint(place: Path) -> str:
    """The path of M0 in the folder `place`."""
    return json.loads((place / "runs" / "tiny" / "summary.json").read_text())["sft"]["checkpoint"]


@pytest.fixture(scope="module", params=["tiny", pytest.param("int8", marks=needs_int8)])
def name(request, place) -> str:
    """The name of a finished run, and of its config, in each of the dtypes of the exactness tests.

    The one in int8 has one iteration from the other's M0, without measurements.
    """
    if request.param == "int8":
        text = (ROOT / "configs" / "tiny.toml").read_text().replace('"float32"', '"int8"')
        text = text.replace('"models/tiny"\nprepare = "tiny"', f'"{checkpoint(place)}"')
        text = text[: text.rindex("[[iteration]]")].replace("[sft]", "[sft]\nenabled = false")
        (place / "int8.toml").write_text(text)
        code, _, err = iterate(place, "--run", "int8", config="int8.toml")
        assert code == 0, err
    return request.param


def test_summary(tiny_run):
    assert re.search(r"^float32\b.* on cpu", (tiny_run / "err.txt").read_text(), re.MULTILINE)
    summary = json.loads((tiny_run / "runs" / "tiny" / "summary.json").read_text())
    settings = json.loads((tiny_run / "runs" / "tiny" / "settings.json").read_text())
    assert settings["judge"]["N"] == 4 and len(settings["iteration"]) == 2
    before, after = (summary["sft"][name]["parse_rate"] for name in ("agreement_before", "agreement"))
    assert before == 0 and after > 0.2
    first, second = summary["iterations"]
    assert first["pairs"]["actor"] > 0 and second["pairs"]["actor"] > 0
    assert first["pairs"]["judge"] > 0 and second["pairs"]["judge"] == 0
    for row in (first, second):
        assert abs(row["dpo"]["first_loss"] - 0.693147) < 1e-4
        assert 0 <= row["dpo"]["accuracy"] <= 1 and not row["dpo"]["held_out"]
        judge = row["bias"]["judge"]
        assert 0 < judge["parse_rate"]["value"] < 1 and len(judge["score_histogram"]) >= 3
        assert (tiny_run / row["checkpoint"] / "model.safetensors").is_file()
        assert {"respond", "judge", "pairs", "train"} <= set(row["seconds"])


def test_a_run_ends_with_the_table_of_models_and_the_report(tiny_run):
    seed, *trained = json.loads((tiny_run / "runs" / "tiny" / "summary.json").read_text())["models"]
    assert seed["name"] == "seed" and seed["win_rate"] is None and seed["differences"] == {}
    assert [(row["name"], row["win_rate_by"]) for row in trained] == [(f"M{t}", f"M{t}") for t in range(3)]
    for row in (seed, *trained):
        assert row["verifiable"]["count"] == row["characters"]["count"] == 4
        assert (tiny_run / row["checkpoint"] / "model.safetensors").is_file()
    assert {"verifiable", "characters", "agreement"} <= set(trained[2]["differences"])
    table, _, report = (tiny_run / "out.txt").read_text().split("\n\n")[-1].rpartition("  report       ")
    assert [line.split()[0] for line in table.splitlines()[:5]] == ["model", "seed", "M0", "M1", "M2"]
    assert "self-judged" in table
    assert report.strip() == "runs/tiny/report.html" and "<html" in (tiny_run / report.strip()).read_text()


def test_other_answers_make_another_duel(tmp_path, monkeypatch):
    """Also where the answers have equal lengths, and so equal reports."""
    (tmp_path / "prompts.jsonl").write_text('{"id": "p", "prompt": "Well?"}')
    settings = replace(load_settings(ROOT / "configs" / "tiny.toml"), evaluation=Evaluation(prompts="prompts.jsonl"))
    monkeypatch.chdir(tmp_path)
    keys: list[str] = []
    monkeypatch.setattr(Run, "run_job", lambda self, stage, job, *_, **__: keys.append(job.key))
    monkeypatch.setattr("shutil.copytree", lambda *_: None)
    for text in ("Yes.", "Not."):
        for folders in (ModelMeasurements.of(tmp_path, -1), ModelMeasurements.of(tmp_path, 1)):
            write_jsonl(folders.answers / "0.jsonl", [{"name": "p", "kind": "prompt", "text": text}])
            write_manifest(folders.answers, "held-out", "", [folders.answers / "0.jsonl"])
            write_json(folders.held_out / "report.json", {"characters": len(text)})
            write_manifest(folders.held_out, "held-out", "", [folders.held_out / "report.json"])
        Run(Path("c"), settings, tmp_path, cast(Launcher, None)).evaluate(Path("prompts.jsonl"), 1, Path("."))
    first, second = keys
    assert first != second


RECORDS = {
    "responses/shards-*/*.jsonl": Response,
    "judgments/shards-*/*.jsonl": Judgment,
    "comparisons/shards-*/*.jsonl": Comparison,
    "comparisons/meta_judged.jsonl": MetaJudged,
    "pairs/actor.jsonl": ActorPair,
    "pairs/judge.jsonl": JudgePair,
    "pairs/elo.jsonl": EloScore,
}


@pytest.mark.parametrize("files", RECORDS)
def test_records_have_the_fields_that_are_documented(tiny_run, files):
    rows = [row for path in (tiny_run / "runs" / "tiny" / "iter1").glob(files) for row in read_jsonl(path)]
    assert rows and all(set(row) == set(RECORDS[files].__annotations__) for row in rows)


def test_a_missing_shard_alone_is_made_again_to_the_byte(place, name):
    folder = place / "runs" / name / "iter1" / "judgments"
    manifest = read_manifest(folder)
    lost = folder / manifest["shards"][1]
    content = lost.read_bytes()
    kept = {name: (folder / name).stat().st_mtime_ns for name in manifest["shards"] if folder / name != lost}
    lost.unlink()
    (folder / "manifest.json").unlink()
    code, out, err = iterate(place, "--run", name, config=f"{name}.toml")
    assert code == 0 and out.count("->") == 1, err
    assert lost.read_bytes() == content and read_manifest(folder)["digest"] == manifest["digest"]
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def judge_arguments(place: Path, name: str, out: str) -> tuple[str, ...]:
    """The command that wrote the first iteration's judgments, with another output folder."""
    inputs = ("--model", checkpoint(place), "--responses", f"runs/{name}/iter1/responses")
    return ("judging.judge", "--config", f"{name}.toml", "--iteration", "1", *inputs, "--out", f"runs/{out}")


def digest_of(place: Path, folder: str) -> str:
    return read_manifest(place / "runs" / folder)["digest"]


def test_two_nodes_write_the_same_bytes(place):
    """Two processes of torchrun, a rank each, which share the folder."""
    where = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    launch = ("-m", "torch.distributed.run", *where, "--rdzv-id", "nodes", "--nproc-per-node", "1")
    processes = [start(place, *launch, "-m", *judge_arguments(place, "tiny", "two-nodes")) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert digest_of(place, "two-nodes") == digest_of(place, "tiny/iter1/judgments")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_does_not_stop_the_other(place, name, killed):
    """Without torchrun, which would end both ranks, one of two is killed once the first shard is written. Rank 0 has
    the store: when rank 0 had ended, the other rank used to wait for ever for the missing shards."""
    out, where = f"{name}-killed-{killed}", {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = judge_arguments(place, name, out)
    ranks = [fork(place, *words, RANK=rank, WORLD_SIZE="2", **where) for rank in ("0", "1")]
    wait_for(lambda: list((place / "runs").glob(f"{out}/shards-*/*.jsonl")))
    os.kill(ranks[killed], signal.SIGKILL)
    assert wait(ranks[killed]) == -signal.SIGKILL
    assert wait(ranks[1 - killed]) == 0
    assert digest_of(place, out) == digest_of(place, f"{name}/iter1/judgments")


def test_torchrun_takes_no_option_of_a_stage_for_its_own():
    """torchrun accepts abbreviated options, also after the module's name: `--n` used to stop it."""
    own = [option for action in get_args_parser()._actions for option in action.option_strings]
    for folder in ("sampling", "judging", "dpo", "evaluation"):
        for path in (ROOT / folder).glob("*.py"):
            for option in re.findall(r'add_argument\("(--[\w-]+)"', path.read_text()):
                assert not [name for name in own if name.startswith(option)], f"{path}: {option}"


def test_ctrl_c_leaves_a_run_that_the_same_command_continues(place):
    text = (place / "tiny.toml").read_text()
    (place / "stopped.toml").write_text(text[: text.rindex("[[iteration]]")])  # M0 is there already
    tiny, folder = (place / "runs" / name / "iter1" for name in ("tiny", "stopped"))
    shutil.copytree(tiny / "responses", folder / "responses")
    process = start(place, str(ROOT / "iterate.py"), "--config", "stopped.toml", "--run", "stopped")
    wait_for((folder / "judgments").exists)
    for child in (*children_of(process.pid), process.pid):
        os.kill(child, signal.SIGINT)  # a terminal's Ctrl-C reaches every process
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in err
    code, _, err = iterate(place, "--run", "stopped", config="stopped.toml")
    assert code == 0, err
    assert digest_of(place, "stopped/iter1/checkpoint") == digest_of(place, "tiny/iter1/checkpoint")


def test_a_guard_keeps_judge_pairs_from_the_training(place):
    """At most a fifth of all pairs may be judge pairs: one for four actor pairs."""
    text = (place / "tiny.toml").read_text()
    text = text[: text.rindex("[[iteration]]")] + "[guards]\nmax_judge_pair_share = 0.2\n"
    (place / "guarded.toml").write_text(text)
    tiny, folder = (place / "runs" / name / "iter1" for name in ("tiny", "guarded"))
    for name in ("responses", "judgments", "comparisons"):
        shutil.copytree(tiny / name, folder / name)
    code, out, err = iterate(place, "--run", "guarded", config="guarded.toml")
    assert code == 0, err
    before, after = (read_manifest(run / "pairs")["counts"] for run in (tiny, folder))
    removed = before["judge"] - before["actor"] // 4
    assert removed > 0 and after["actor"] == before["actor"] and after["judge"] == before["judge"] - removed
    assert f"{removed} judge pairs removed: too many of all pairs are judge pairs" in out
    trained = [read_manifest(run / "checkpoint")["counts"]["examples"] for run in (tiny, folder)]
    assert trained == [before["actor"] + before["judge"], before["actor"] + before["judge"] - removed]


def test_an_sft_delta_replaces_the_training(place):
    """The file is made from the trained M0, and the merged M0 judges nearly as the trained one does."""
    text = (place / "tiny.toml").read_text()
    text = "iteration = []\n" + text[: text.index("[[iteration]]")] + text[text.index("[evaluation]") :]
    (place / "kept.toml").write_text(text.replace("[sft]", '[sft]\nsft_delta = "sft-delta.safetensors"'))
    code, _, err = iterate(place, "--run", "kept", config="kept.toml")
    assert code == 2 and "sft-delta.safetensors: no such file; `make sft` writes it" in err
    code, out, err = iterate(place, "--run", "kept", "--make-sft-delta", config="kept.toml")
    assert code == 0, err
    facts = json.loads(out[out.index("{") :])
    names = {"command", "recipe", "base", "seed", "trained_pairwise", "merged_pairwise"}
    assert facts["explained"] > 0.999 and names <= set(facts)
    trained, merged = (
        json.loads((place / "runs" / "kept" / "sft" / name / "judge" / "agreement.json").read_text())
        for name in ("trained", "merged")
    )
    assert abs(trained["parse_rate"] - merged["parse_rate"]) < 0.2
    code, out, err = iterate(place, "--run", "kept", config="kept.toml")
    assert code == 0 and "dpo.sft -> models/sft" not in out, err
    summary = json.loads((place / "runs" / "kept" / "summary.json").read_text())
    assert [row["name"] for row in summary["models"]] == ["seed", "M0"]
    (place / "kept.toml").write_text((place / "kept.toml").read_text().replace("epochs = 6", "epochs = 7"))
    code, _, err = iterate(place, "--run", "kept", config="kept.toml")
    assert code == 2 and "made by another [sft] recipe" in err


def test_an_sft_continues_the_mean_of_others(place):
    """They share what is trained already; without examples the mean is M0."""
    text = (place / "tiny.toml").read_text()
    text = "iteration = []\n" + re.sub(r"\[\[iteration\]\][^[]*", "", text[: text.index("[evaluation]")])
    (place / "after.toml").write_text(text.replace("[sft]", '[sft]\nafter = ["tiny.toml"]'))
    mean = '[sft]\nafter = ["tiny.toml", "after.toml"]\n'
    (place / "mean.toml").write_text(re.sub(r"\[sft\]\n.*\n", mean, text))  # in the place of examples
    code, out, err = iterate(place, "--run", "mean", config="mean.toml")
    assert code == 0 and out.count("dpo.sft -> ") == 1, err
    summary = json.loads((place / "runs" / "mean" / "summary.json").read_text())
    trained = [path.parent for path in place.glob("models/sft/*/*/manifest.json") if '"inputs"' in path.read_text()]
    (after,) = (path for path in trained if read_manifest(path)["inputs"]["model"]["path"] == checkpoint(place))
    folders = (place / checkpoint(place), after, place / summary["sft"]["checkpoint"])
    one, other, mean = (load_file(folder / "model.safetensors") for folder in folders)
    for name, tensor in mean.items():
        assert torch.equal(tensor, ((one[name].float() + other[name].float()) / 2).bfloat16())
    assert not torch.equal(one["model.norm.weight"], other["model.norm.weight"])
    (place / "after.toml").write_text((place / "after.toml").read_text().replace("tiny.toml", "mean.toml"))
    code, _, err = iterate(place, "--run", "mean", config="mean.toml")
    assert code == 2 and "after.toml: sft.after leads back to this config" in err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("K = 3", "K = 3\nkk = 4"), "bad.toml: respond.kk: unknown key"),
        (('path = "models/tiny"\nprepare = "tiny"', 'path = "models/none"'), "models/none: no model here"),
        (('train.jsonl"]\nprompts_per', 'none.jsonl"]\nprompts_per'), "data/prompts/none.jsonl: no such file"),
        (("prompts_per_iteration = 8", "prompts_per_iteration = 300"), "400 prompts, but the iterations need 600"),
        (('prompts = "prompts.jsonl"', 'prompts = "none.jsonl"'), "none.jsonl: no such file"),
        (('instructions = "instructions.jsonl"', 'instructions = "bad.jsonl"'), "bad.jsonl, line 1: key 'rules' is"),
        (('judge_cases = "judge_cases.jsonl"', 'judge_cases = "bad.jsonl"'), "line 1: neither a labelled pair"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(place, change, complaint):
    text = (place / "tiny.toml").read_text()
    assert change[0] in text
    (place / "bad.toml").write_text(text.replace(*change))
    (place / "bad.jsonl").write_text('{"id": "1", "prompt": "x"}\n{"id": oops}\n')
    code, _, err = iterate(place, "--run", "bad", config="bad.toml")
    assert code == 2 and complaint in err.strip() and len(err.strip().splitlines()) == 1
    assert not (place / "runs" / "bad" / "sft").exists()
