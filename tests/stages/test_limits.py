"""Limits of the machine: a full disk, files that may not grow, folders that can't be written, no memory. Each is one
line and exit code 2, and the same command continues once there is room."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from processes import ROOT
from training import arguments, changed, make_inputs, run

from iterate import Run
from model.weights import write_tensors
from sampling.respond import RESPOND
from stages.command import UserError, command
from stages.files import digest, write_atomic, write_json, write_jsonl
from stages.launch import Launcher
from stages.lock import run_lock
from stages.settings import load_settings

SETTINGS = changed(dpo={"epochs": 2, "held_out": 0.25, "batch_size": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, pairs, and in "whole" a training that nothing limits."""
    folder = make_inputs(tmp_path_factory.mktemp("limits"))
    run(SETTINGS, arguments(folder, place="whole"))
    return folder


LIMITED = """
import resource
from training import arguments, make_job
from dpo.parallel import address_space, distributed
from dpo.train import train
from stages.command import command
from stages.shards import end_process
from test_limits import SETTINGS
from pathlib import Path
def main():
    given = arguments(Path({folder!r}), place={place!r})
    resource.setrlimit(resource.{limit}, ({size}, {size}))
    with distributed(1) as world:
        train(make_job(SETTINGS, given), world, given.place / "train")
end_process(lambda: command(main))
"""


def run_limited(folder: Path, place: str, size: int | str, limit: str = "RLIMIT_FSIZE") -> tuple[int, list[str]]:
    """Train in a process with a limit, else on the bytes of a file: its exit code, and the lines that it prints."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support", Path(__file__).parent)))
    words = [sys.executable, "-c", LIMITED.format(folder=str(folder), place=place, size=size, limit=limit)]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("size", [200, 3_000, 60_000, 120_000])
def test_a_training_that_can_t_write_says_so_and_continues_with_room(folder, size):
    """The reference's log-probabilities, an export, a state's metadata and its tensors are too large."""
    given = arguments(folder, place=f"at {size}")
    code, lines = run_limited(folder, f"at {size}", size)
    [error] = [line for line in lines if not line.startswith(("dpo:", "reference:"))]
    assert code == 2 and error.startswith("error: ")
    assert error.endswith("; make room or raise the limit, then run the same command again")
    run(SETTINGS, given)
    assert digest(given.place / "out") == digest(folder / "whole" / "out")
    assert {path.name for path in (given.place / "train").iterdir()} == {"metrics.jsonl", "reference"}


@pytest.mark.parametrize("count", [5, 11, 16, 63])
def test_too_few_open_files_are_one_line(folder, count):
    """Before gloo opens its own, which ends in an error of C++, or in a hang."""
    code, [error] = run_limited(folder, f"open files {count}", count, "RLIMIT_NOFILE")
    assert (code, error) == (2, f"error: open files are limited to {count}, 64 are needed; raise the limit (ulimit -n)")


@pytest.mark.parametrize("megabytes", [0, 20, 255])
def test_too_little_address_space_is_one_line(folder, megabytes):
    """Before gloo starts its threads: without room for one it may wait for it for ever."""
    room = f"address_space() + ({megabytes} << 20)"
    code, [error] = run_limited(folder, f"room {megabytes}", room, "RLIMIT_AS")
    assert code == 2 and error.startswith("error: memory is limited to ") and error.endswith("; raise the limit")


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN"])
def test_a_limit_in_a_library_s_own_error_is_one_line(capfd, name):
    def main() -> None:
        raise RuntimeError(f"[enforce fail at socket.cc:24] rv != -1\nsocket: {os.strerror(getattr(errno, name))}")

    assert complaint(main, capfd).startswith(f"error: socket: {os.strerror(getattr(errno, name))}; make room or raise")


def complaint(main, capfd) -> str:
    with pytest.raises(SystemExit) as ended:
        command(main)
    err = capfd.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    return err


def test_what_no_room_mends_is_not_told_to_make_some(tmp_path, capfd):
    (tmp_path / "lock").mkdir()
    error = complaint(lambda: (tmp_path / "lock").read_text(), capfd)
    assert error.endswith("lock'; mend it, then run the same command again\n")


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    error = complaint(lambda: write_atomic(tmp_path / "file", "new"), capfd)
    assert f"No space left on device: '{tmp_path}/file'; make room" in error
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_weights_for_which_there_is_no_room_are_named(tmp_path, capfd):
    def main() -> None:
        write_tensors([("weight", torch.zeros(1 << 20))], tmp_path)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        error = complaint(main, capfd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.startswith(f"error: {tmp_path}/shard-0: ") and "make room" in error


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run", "{tmp}/file/run", "{tmp}/loop/run", "{tmp}/file"])
def test_a_folder_that_can_t_be_written_is_named_before_anything_else(tmp_path, capfd, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    path = place.replace("{tmp}", str(tmp_path))

    def main() -> None:
        with run_lock(Path(path)):
            pytest.fail("locked a folder that is none")

    assert str(Path(path)) in complaint(main, capfd) or str(Path(path).parent) in complaint(main, capfd)


@pytest.mark.parametrize("allocate", [lambda: bytearray(1 << 60), lambda: torch.empty(1 << 55, dtype=torch.uint8)])
def test_memory_that_is_not_there_is_one_line(capfd, allocate):
    error = complaint(allocate, capfd)
    assert ("out of memory" in error or "can't allocate memory" in error) and "; make room" in error


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 // 0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stage_that_the_system_kills_for_memory_is_named(tmp_path, monkeypatch, capfd, ranks):
    monkeypatch.chdir(tmp_path)
    Path("greedy.py").write_text("import os\nif os.environ.get('RANK', '0') == '0':\n    os.kill(os.getpid(), 9)\n")
    assert Launcher(ranks, tmp_path / "logs").run("greedy", [], "greedy") == 137
    assert "was killed: out of memory?" in capfd.readouterr().err


@pytest.mark.parametrize("free", [699, 700])
def test_room_for_a_checkpoint_and_a_state_is_looked_for_before_a_stage_starts(tmp_path, monkeypatch, free):
    """A state has 12 bytes a parameter and a checkpoint 2, like the model's 100 bytes in bf16."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(100))
    write_json(tmp_path / "model" / "config.json", {})
    write_jsonl(tmp_path / "prompts.jsonl", [])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Mock(free=free if path == tmp_path / "run" else None))
    settings, launcher = load_settings(ROOT / "configs" / "tiny.toml"), Mock(run=Mock(return_value=0))
    inputs = {"model": tmp_path / "model", "prompts": tmp_path / "prompts.jsonl"}
    own = Run(ROOT / "configs" / "tiny.toml", settings, tmp_path / "run", launcher)
    if free < 700:
        with pytest.raises(UserError, match=r"run: 0\.0 GB are free, 0\.0 needed; make room"):
            own.run_stage(RESPOND, tmp_path / "run" / "responses", 1, **inputs)
    else:
        own.run_stage(RESPOND, tmp_path / "run" / "responses", 1, **inputs)
    assert launcher.run.called == (free == 700)
