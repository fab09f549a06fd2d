"""What the doctor tries in processes of their own: faults and time-outs have a reason, nothing is left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from stages.files import UserError
from tools import trials

ROOT = Path(__file__).parents[2]


def test_isolated_processes_that_fail():
    for call, words in {
        "no_such_thing()": "AttributeError: module 'tools.trials' has no attribute 'no_such_thing'",
        "os.abort()": "killed by SIGABRT",
        "try_folder('/proc')": "0 MB are free",
    }.items():
        with pytest.raises(UserError, match=words):
            trials.run_isolated(call)


def test_a_folder_that_can_not_be_written_to(monkeypatch):
    monkeypatch.setattr(trials.shutil, "disk_usage", lambda folder: trials.shutil._ntuple_diskusage(0, 0, 10**12))
    with pytest.raises(OSError, match="/proc"):
        trials.try_folder("/proc")


def test_a_folder_that_can(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "SPEED_BYTES", 8 * 2**20)
    speeds = trials.try_folder(str(tmp_path))
    assert speeds["write"] > 0 and speeds["read"] > 0 and list(tmp_path.iterdir()) == []


def test_a_file_system_that_replaces_in_parts(tmp_path, monkeypatch):
    def replace(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:1000])
        time.sleep(0.002)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UserError, match="seen in part"):
        trials.try_names(tmp_path)


def test_a_file_system_without_exclusive_creation(tmp_path, monkeypatch):
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r", *rest, **more: real(path, mode.replace("x", "w")))
    with pytest.raises(UserError, match="created twice"):
        trials.try_names(tmp_path)


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder as a fetched model's: one tensor, a tokenizer with ChatML's tokens, a template."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"model.norm.weight": torch.ones(8)}, folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "<|im_start|>"}))
    return folder


def test_a_model_opens(model):
    assert trials.open_model(str(model)) == {"tensors": 1, "end": 2}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "00001-of-00002"),
        ("model.safetensors", "version https://git-lfs", "damaged"),
        ("tokenizer_config.json", {}, "no chat_template"),
        ("tokenizer_config.json", {"chat_template": "<start_of_turn>"}, "the chat template is none of"),
    ],
)
def test_half_a_model_and_one_without_a_chat_format(model, file, content, words):
    (model / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words):
        trials.open_model(str(model))


def test_ranks_that_hang_are_ended(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = f"Path({str(tmp_path / 'started')!r}).touch() or trials.time.sleep({1000 + os.getpid()})"
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer within 12 s"):
        trials.run_isolated(call, sys.executable, *torchrun, "--shutdown-timeout", "5", "--no-python", limit=12)
    assert time.monotonic() - began < 30 and (tmp_path / "started").exists()
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not any(call.encode() in command for command in commands)


RANKS = """\
W0801 12:00:00.000000 1 torch/distributed/run.py:800] Setting OMP_NUM_THREADS
[rank1]: Traceback (most recent call last):
[rank1]:   File "tools/trials.py", line 1, in sum_over_ranks
[rank1]: RuntimeError: gloo: a sum over 2 ranks is wrong: [2.0]
[rank0]: RuntimeError: Connection closed by peer
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
"""


@pytest.mark.parametrize(
    ("err", "code", "reason"),
    [
        (RANKS, 1, "RuntimeError: gloo: a sum over 2 ranks is wrong: [2.0]"),
        ("error: rank 0: another rank has ended\n", 1, "rank 0: another rank has ended"),
        ("Traceback\n  x\nstages.files.UserError: head_dim 512: too large\n", 1, "head_dim 512: too large"),
        ("  error_file: <N/A>\n  traceback : Signal 11 (SIGSEGV) received by PID 7\n=====\n", 1, "killed by SIGSEGV"),
        ("", -9, "killed by SIGKILL"),
        ("some words\n\n", 3, "some words"),
        ("", 3, "exit code 3, no message"),
    ],
)
def test_failure_reason(err, code, reason):
    assert trials.failure_reason(err, code) == reason


def test_kernels_give_what_the_eager_references_give(tmp_path):
    """In Triton's interpreter."""
    call = f"launch_kernels({str(tmp_path)!r}, 'cpu', 'float32')"
    code = f"import json; from tools import trials; print(json.dumps(trials.{call}))"
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert list(differences) == ["logprob", "attention", "paged"]
    assert all(0 < difference < 1e-4 for difference in differences.values())
