"""The lock of stages/lock.py: one holder at a time, among processes at once and stages that outlive their run."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from stages.command import UserError
from stages.lock import run_lock

ROOT = Path(__file__).parents[2]
CONTENDER = """
import subprocess, sys
from pathlib import Path
from stages.command import UserError
from stages.lock import run_lock
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(folder):
        with (folder / "inside").open("x"):  # fails where another is inside, too
            stage = subprocess.Popen(["sleep", "600"], close_fds=False)
            print("held", stage.pid, flush=True)
            sys.stdin.readline()
        (folder / "inside").unlink()
        stage.kill()
except UserError as error:
    print("refused", error, flush=True)
    sys.stdin.readline()
"""


def contend(folder: Path, count: int) -> list[tuple[subprocess.Popen, list[str]]]:
    """Processes that try at the same time, each with the words that it prints; they wait for a further line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1, "cwd": ROOT}
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER, str(folder)], **pipes) for _ in range(count)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * count
    for process in processes:
        process.stdin.write("\n")
    return [(process, process.stdout.readline().split()) for process in processes]


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as raised, run_lock(folder):
        pytest.fail("got a lock that another holds")
    return str(raised.value)


def test_of_several_at_once_one_holds_the_lock(tmp_path):
    contenders = contend(tmp_path, 8)
    [holder] = [process for process, words in contenders if words[0] == "held"]
    assert f"{tmp_path}/lock: in use by process {holder.pid} on " in refused(tmp_path)
    for process, words in contenders:
        assert words[0] in ("held", "refused") and process.communicate("\n", timeout=30)[0] == ""
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_stages_of_a_killed_run_have_a_moment_to_end(tmp_path):
    """The same command may follow a kill at once."""
    [(holder, (_, stage))] = contend(tmp_path, 1)
    holder.kill()
    threading.Timer(1, os.kill, (int(stage), signal.SIGKILL)).start()  # the holder itself is a zombie
    with run_lock(tmp_path):
        assert not (tmp_path / "lock").read_text().startswith(f"process {holder.pid} ")
    holder.communicate()


def test_a_stage_that_outlives_its_killed_run_keeps_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.lock.ENDING", 0.3)
    [(holder, (_, stage))] = contend(tmp_path, 1)
    holder.kill()
    holder.wait(20)
    assert "or its stages, since" in refused(tmp_path)
    os.kill(int(stage), signal.SIGKILL)
    for _ in range(400):  # the kernel frees the lock when the killed process has gone
        with suppress(UserError), run_lock(tmp_path):
            return
        time.sleep(0.05)
    pytest.fail("the lock of dead processes stays")


def test_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """The holder ends after another process has opened the file, and before that process locks it."""
    flock = fcntl.flock

    def locked_late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    with pytest.raises(KeyboardInterrupt), run_lock(tmp_path):
        assert (tmp_path / "lock").is_file() and f"process {os.getpid()} on" in refused(tmp_path)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []  # released whatever happens


@pytest.mark.parametrize(("written", "holder"), [("process 7 on here", "process 7 on here"), ("", "another process")])
def test_a_holder_that_has_just_locked_is_asked_again_for_its_name(tmp_path, monkeypatch, written, holder):
    """A holder locks the file before it writes who it is; one that never says so is another process."""
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(time, "sleep", lambda seconds: (tmp_path / "lock").write_text(f"{written}\n"))
        assert refused(tmp_path) == f"{tmp_path}/lock: in use by {holder}; wait for it or stop it"


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    refuse = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert "/lock: no lock on this file system (No locks available)" in refused(tmp_path)
