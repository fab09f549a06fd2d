"""Each kind of fault is a line with a reason and exit code 1; a healthy machine has none."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training import changed

from prepare.seed_model import make_tiny
from stages.command import UserError
from stages.settings import load_settings
from tools import doctor
from tools.doctor import missing_inputs

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.toml"


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["doctor", "--config", str(TINY)])
    return load_settings(TINY)


def test_one_screen(tiny, capsys):
    doctor.main()
    out, err = capsys.readouterr()
    *screen, last = out.splitlines()
    assert not err and len(screen) < 24 and all(len(line) <= 110 and line.startswith("ok ") for line in screen)
    names = [line.split()[1] for line in screen]
    assert list(dict.fromkeys(names)) == ["versions", "inputs", "devices", "ranks", "kernels", "disk"]
    assert "2 ranks under torchrun add up" in out and "compiled for sm_90" in out and last.startswith("Nothing")


def test_exit_code_and_reasons(tiny, monkeypatch, capsys):
    def check_broken(settings):
        yield "y"
        raise ImportError("no torch")

    def check_disk(settings):
        raise UserError("no disk")

    monkeypatch.setattr(doctor, "CHECKS", (check_broken, check_disk))
    with pytest.raises(SystemExit, match="1"):
        doctor.main()
    out, err = capsys.readouterr()
    assert "will not run here:\n  broken: ImportError: no torch\n  disk: no disk\n" in err
    assert [line.split()[:2] for line in out.splitlines()] == [["ok", "broken"], ["FAIL", "broken"], ["FAIL", "disk"]]


def test_ranks_that_hang_or_fail(tiny, monkeypatch):
    """The reason is the first error that any rank prints."""
    monkeypatch.setattr(doctor, "LIMIT", 0.01)
    with pytest.raises(UserError, match=r"^no answer within 0\.01 s; the host name must resolve"):
        list(doctor.check_ranks(tiny))
    torchrun = "Setting OMP\n[rank1]: Traceback\n[rank1]: RuntimeError: gloo: wrong\nx.ChildFailedError: \n===="
    for err, reason in {torchrun: "RuntimeError: gloo: wrong; ", "some words\n": "exit code 1; "}.items():
        done = subprocess.CompletedProcess([], 1, "", err)
        monkeypatch.setattr(doctor.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(UserError, match=f"^{reason}"):
            list(doctor.check_ranks(tiny))


def test_missing_inputs_are_named_by_their_keys(tiny, tmp_path):
    """Files that the run makes, and without iterations the pool, are not wanted; Meta's layout is told how to mend."""

    def keys(settings) -> str:
        return " ".join(text.partition(":")[0] for text in missing_inputs(settings))

    (tmp_path / "params.json").write_text("{}")
    evaluation = {"judge_cases": "{run}/cases", "comparisons": "no/comparisons", "prompts": "", "judge": "no/judge"}
    settings = changed(tiny, sft={"examples": ["no/a"], "sft_delta": "no/d"}, eft={"sources": ["no/trees"]})
    settings = changed(settings, evaluation=evaluation, metajudge={"model": "no/model"})
    settings = changed(settings, respond={"prompts": ["no/pool"]}, model={"path": str(tmp_path), "prepare": ""})
    files = "sft.examples eft.sources sft.sft_delta respond.prompts evaluation.comparisons"
    assert keys(settings) == f"{files} model.path metajudge.model"
    with pytest.raises(UserError, match=rf"sft.examples: no/a: .*prepare.meta {tmp_path}.*; metajudge.model"):
        list(doctor.check_inputs(settings))
    seeds = {"seeds": "no/seeds", "evaluation": ["no/test"], "model": "no/writer"}
    settings = changed(tiny, respond={"prompts": []}, prompts=seeds, sft={"enabled": False})
    assert keys(settings) == "prompts.seeds prompts.evaluation prompts.model"
    settings.iteration.clear()
    assert keys(settings) == ""


def test_models_are_opened(tiny, tmp_path):
    make_tiny(tmp_path)
    settings = changed(tiny, model={"path": str(tmp_path), "prepare": ""})
    assert next(doctor.check_inputs(settings)).endswith(" tensors and a chat template")
    for file, words in (("model.safetensors", "damaged"), ("tokenizer_config.json", "no chat_template")):
        (tmp_path / file).write_text("{}")
        with pytest.raises(UserError, match=words):
            list(doctor.check_inputs(settings))


def test_devices(tiny, monkeypatch, tmp_path):
    """A driver that torch can't use, unless the CPU is meant; then two ranks on one GPU that others use, too."""

    def fails(settings, words: str) -> None:
        with pytest.raises(UserError, match=words):
            list(doctor.check_devices(settings))

    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(list(doctor.check_devices(tiny))) == 1
    (tmp_path / "version").touch()
    fails(tiny, "can't use it; update the driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(list(doctor.check_devices(tiny))) == 1
    gpu = {"mem_get_info": (20e9, 80e9), "get_device_name": "H100", "get_device_capability": (9, 0)}
    for name, value in gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    fails(tiny, "float32 on CUDA has no kernels")
    settings = replace(changed(tiny, model={"dtype": "bfloat16"}), nproc_per_node=2)
    fails(settings, r"nproc_per_node is 2, but torch sees 1 GPUs")


def test_disk(tiny, monkeypatch):
    settings = changed(tiny, model={"path": "none", "architecture": str(ROOT / "configs/architectures/llama-3-8b")})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    assert next(doctor.check_disk(tiny)).startswith("1.0 GB are free, a run takes 0.0")
    with pytest.raises(UserError, match=r"1\.0 GB are free, a run takes"):
        list(doctor.check_disk(settings))
