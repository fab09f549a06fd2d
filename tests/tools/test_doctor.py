"""Each kind of fault is a line with a reason and exit code 1; a healthy machine has none."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import changed

from prepare.seed_model import make_tiny
from stages.settings import load_settings
from tools import doctor
from tools.inputs import missing_inputs

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.toml"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return load_settings(TINY)


def failed(lines) -> str:
    return "\n".join(text for level, text in lines if level == "FAIL")


def test_the_whole_command():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.doctor", "--config", str(TINY)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    screen = done.stdout.splitlines()
    assert len(screen) <= 24 and all(len(line) <= 110 for line in screen)
    assert all(any(f"ok    {name}" in line for line in screen) for name in doctor.CHECKS)
    assert "2 ranks under torchrun add up" in done.stdout and "compiled for sm_90" in done.stdout


def test_exit_code_and_reasons(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run_check", lambda name, *_: [f"FAIL  no {name}"] if name == "disk" else ["ok    x"])
    monkeypatch.setattr(sys, "argv", ["doctor", "--config", str(TINY)])
    with pytest.raises(SystemExit) as raised:
        doctor.main()
    assert raised.value.code == 1 and "will not run here:\n  disk: no disk" in capsys.readouterr().err
    broken = tmp_path / "broken.toml"
    broken.write_text(f'extends = "{TINY}"\nnproc_per_nod = 2')
    monkeypatch.setattr(sys, "argv", ["doctor", "--config", str(broken)])
    with pytest.raises(SystemExit, match="nproc_per_nod: unknown key"):
        doctor.main()


def test_a_check_that_fails_or_hangs(tiny, monkeypatch):
    """The reason comes with the check's advice; ranks that hang are ended."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing")
    [line] = doctor.run_check("ranks", TINY, 1)
    assert line.startswith("FAIL  ") and "nothing" in line and line.endswith("let local connections through")
    began = time.monotonic()
    assert doctor.run_check("ranks", TINY, 2, limit=1)[-1].startswith("FAIL  no answer within 1 s")
    assert time.monotonic() - began < 30


def test_failure_reason():
    torchrun = "Setting OMP\n[rank1]: Traceback\n[rank1]: RuntimeError: gloo: wrong\nx.ChildFailedError: \n===="
    assert doctor.failure_reason(torchrun, 1) == "RuntimeError: gloo: wrong"
    assert doctor.failure_reason("error: rank 0: another rank has ended\n", 1) == "rank 0: another rank has ended"
    assert "SIGSEGV" in doctor.failure_reason("  traceback : Signal 11 (SIGSEGV) received by PID 7\n====\n", 1)
    assert doctor.failure_reason("some words\n\n", -9) == "exit code -9, some words"


def test_versions(tiny, monkeypatch):
    """Only what the project and torch ask for counts, not what other packages of the environment ask for."""
    out = "llm 1 requires x, which is not installed.\nmeta-rewarding 0.1.0 requires tqdm, which is not installed.\n"
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, out))
    lines = list(doctor.check_versions(tiny))
    assert failed(lines) == "meta-rewarding 0.1.0 requires tqdm, which is not installed: make setup"
    assert lines[0][1].startswith("Python 3") and "torch 2" in lines[0][1]


def test_missing_inputs_are_named_by_their_keys(tiny, tmp_path):
    """Files that the run makes, and without iterations the pool, are not wanted; Meta's layout is told how to mend."""
    (tmp_path / "params.json").write_text("{}")
    settings = changed(
        tiny,
        sft={"examples": ["no/a"], "sft_delta": "no/d"},
        eft={"sources": ["no/trees"]},
        respond={"prompts": "no/pool"},
        evaluation={"judge_cases": "{run}/cases", "comparisons": "no/comparisons"},
        metajudge={"model": "no/model"},
        model={"path": str(tmp_path), "prepare": ""},
    )
    told = list(missing_inputs(settings))
    keys = ["sft.examples", "eft.sources", "sft.sft_delta", "respond.prompts"]
    assert [text.partition(":")[0] for text in told] == [
        *keys,
        "evaluation.comparisons",
        "model.path",
        "metajudge.model",
    ]
    assert f"run python -m prepare.meta {tmp_path}" in told[-2] and told[-1].endswith(
        "no such file; point metajudge.model at a Hugging Face directory"
    )
    seeds = {"seeds": "no/seeds", "evaluation": ["no/test"], "model": "no/writer"}
    settings = changed(tiny, respond={"prompts": ""}, prompts=seeds, sft={"enabled": False})
    keys = ["prompts.seeds", "prompts.evaluation", "prompts.model"]
    assert [text.partition(":")[0] for text in missing_inputs(settings)] == keys
    settings.iteration.clear()
    assert list(missing_inputs(settings)) == []


@pytest.mark.parametrize(
    ("file", "words"), [("", ""), ("model.safetensors", "damaged"), ("tokenizer_config.json", "no chat_template")]
)
def test_models_are_opened(tiny, tmp_path, file, words):
    make_tiny(tmp_path / "model")
    if file:
        (tmp_path / "model" / file).write_text("{}")
    lines = list(doctor.check_inputs(changed(tiny, model={"path": str(tmp_path / "model"), "prepare": ""})))
    assert words in failed(lines) if words else lines[0][1].endswith(" tensors and a known chat format")


def test_devices(tiny, monkeypatch, tmp_path):
    """A driver that torch can't use, unless the CPU is meant; then two ranks on one GPU that others use, too."""
    driver = tmp_path / "version"
    monkeypatch.setattr(doctor, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not failed(doctor.check_devices(tiny))
    driver.touch()
    assert "can't use it; update the driver" in failed(doctor.check_devices(tiny))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not failed(doctor.check_devices(tiny))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (20 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    lines = list(doctor.check_devices(replace(tiny, nproc_per_node=2)))
    assert ("note", "H100: 20 of 80 GB are free") in lines
    assert "float32 on CUDA has no kernels" in failed(lines), "the tiny config's dtype"
    assert "nproc_per_node is 2, but torch sees 1 GPUs" in failed(lines)


def test_disk(tiny, monkeypatch, tmp_path):
    assert not failed(doctor.check_disk(tiny))
    free = doctor.shutil._ntuple_diskusage(0, 0, 10)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: free)
    settings = changed(tiny, model={"path": "none", "architecture": str(ROOT / "configs/architectures/llama-3-8b")})
    assert "0.0 GB are free, a run takes" in failed(doctor.check_disk(settings))
    monkeypatch.chdir("/proc")
    with pytest.raises(OSError):
        list(doctor.check_disk(tiny))
