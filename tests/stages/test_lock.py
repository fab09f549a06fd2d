"""One holder at a time: of processes that try at once, of killed ones, of stages that outlive their run."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from stages.files import UserError
from stages.lock import run_lock

ROOT = Path(__file__).parents[2]
CONTENDER = """
import subprocess, sys
from pathlib import Path
from stages.files import UserError
from stages.lock import run_lock
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(folder):
        with (folder / "inside").open("x"):  # fails where another is inside, too
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
            print("held", child.pid, flush=True)
            sys.stdin.readline()
        (folder / "inside").unlink()
        child.communicate(b"x")
except UserError as error:
    print("refused", error, flush=True)
    sys.stdin.readline()
"""


def contend(folder: Path) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", CONTENDER, str(folder)], **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


def go_on(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_several_at_once_one_holds_the_lock(tmp_path):
    for _ in range(3):
        processes = [contend(tmp_path) for _ in range(4)]
        for process in processes:
            go_on(process)
        lines = [process.stdout.readline() for process in processes]
        assert sorted(line.split()[0] for line in lines) == ["held", "refused", "refused", "refused"], lines
        for process in processes:
            go_on(process)
            assert process.wait(20) == 0
        assert not list(tmp_path.iterdir())


def test_the_refusal_names_the_holder(tmp_path):
    holder = contend(tmp_path)
    go_on(holder)
    holder.stdout.readline()
    with pytest.raises(UserError, match=rf"lock: in use by process {holder.pid} on .*; wait for it or stop it"):
        run_lock(tmp_path).__enter__()
    go_on(holder)
    assert holder.wait(20) == 0
    with run_lock(tmp_path):
        assert (tmp_path / "lock").is_file()
    assert not (tmp_path / "lock").exists()


def test_a_stage_that_outlives_its_killed_run_keeps_the_lock(tmp_path):
    holder = contend(tmp_path)
    go_on(holder)
    child = int(holder.stdout.readline().split()[1])
    holder.stdin.close  # noqa: B018 (stays open for the child)
    holder.kill()
    holder.wait(20)
    with pytest.raises(UserError, match="or one of its stages"):
        run_lock(tmp_path).__enter__()
    subprocess.run(["kill", "-9", str(child)], check=True)
    for _ in range(100):
        try:
            with run_lock(tmp_path):
                break
        except UserError:
            subprocess.run(["sleep", "0.1"], check=True)
    else:
        pytest.fail("the lock of dead processes stays")


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"lock: no lock on this file system \(No locks available\)"):
        run_lock(tmp_path).__enter__()
