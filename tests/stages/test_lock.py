"""stages/lock.py: one holder at a time, among processes that try at once, that were lost, or that seem lost."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stages import lock
from stages.files import UserError
from stages.lock import Holder

ROOT = Path(__file__).parents[2]
FAR = {"host": "far-away", "kernel": "another boot"}

CONTENDER = """
import sys, time
from pathlib import Path
from stages import lock
from stages.files import UserError
lock.POLL = 0.05
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock.run_lock(folder):
        with (folder / "inside").open("x"):  # fails where another is inside, too
            print("held", flush=True)
            sys.stdin.readline()
        (folder / "inside").unlink()
except UserError as error:
    print("refused", error, flush=True)
    sys.stdin.readline()
"""


def contend(folder: Path, processes: int) -> list[str]:
    """The line that each of several processes prints when all try at the same time; the holder waits for all lines."""
    command = [sys.executable, "-c", CONTENDER, str(folder)]
    started = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in started]
    assert all(process.communicate("\n", timeout=30)[0] == "" for process in started)
    assert [process.returncode for process in started] == [0] * processes
    return lines


def leave(folder: Path, age: float = 0.0, **changes) -> Path:
    """A lock of this process, or of one that differs by `changes`, last touched `age` seconds ago."""
    path = folder / "lock"
    path.write_text(json.dumps(asdict(replace(Holder.current(), **changes))))
    return aged(path, age)


def aged(path: Path, age: float) -> Path:
    os.utime(path, (time.time() - age,) * 2)
    return path


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as raised, lock.run_lock(folder):
        pytest.fail("got a lock that another holds")
    return str(raised.value)


@pytest.mark.parametrize("left", ["nothing", "a lost machine's", "an ended process's", "a damaged one"])
def test_one_of_those_that_try_at_once_gets_it(tmp_path, left):
    for _ in range(4):
        if left == "a lost machine's":
            leave(tmp_path, 500, **FAR)
        elif left == "an ended process's":
            leave(tmp_path, pid=ended())
        elif left == "a damaged one":
            (tmp_path / "lock").touch()
            aged(tmp_path / "lock", 500)
        lines = contend(tmp_path, 4)
        assert [line.split()[0] for line in sorted(lines)] == ["held", "refused", "refused", "refused"], lines
        assert list(tmp_path.iterdir()) == []


def test_a_slow_taker_leaves_a_new_lock_alone(tmp_path, monkeypatch):
    """After a process finds the old holder lost, and before it takes over, another process takes over and works."""
    path = leave(tmp_path, 500, **FAR)
    wait_until_stale = lock._wait_until_stale

    def overtaken(path: Path) -> lock.LockState | None:
        stale = wait_until_stale(path)
        monkeypatch.setattr(lock, "_wait_until_stale", wait_until_stale)
        lock._take(path, path.read_text().replace("far-away", "quick").replace("another boot", "third"))
        return stale

    monkeypatch.setattr(lock, "_wait_until_stale", overtaken)
    monkeypatch.setattr(lock, "POLL", 0.01)
    beats = threading.Timer(0.5, os.utime, (path,))
    beats.start()
    assert "on quick" in refused(tmp_path)
    beats.join()
    assert json.loads(path.read_text())["host"] == "quick" and list(tmp_path.iterdir()) == [path]


def test_a_claim_left_behind_is_no_obstacle(tmp_path):
    """A process died while it took over."""
    path = leave(tmp_path, 500, **FAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *names: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            lock._take(path, json.dumps(asdict(replace(Holder.current(), pid=ended()))))
    assert len(list(tmp_path.iterdir())) == 2
    with lock.run_lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_is_named(tmp_path):
    with lock.run_lock(tmp_path):
        before = (tmp_path / "lock").read_text()
        error = refused(tmp_path)
        assert (tmp_path / "lock").read_text() == before
    facts = json.loads(before)
    assert {"host", "pid", "started", "command"} <= set(facts) and facts["pid"] == os.getpid()
    for word in (f"{tmp_path}/lock: in use by process {os.getpid()} on {facts['host']}", facts["started"], "delete"):
        assert word in error
    assert "\n" not in error


def test_a_local_process_lives_however_old_its_lock_is(tmp_path):
    """A stopped process (Ctrl-Z) touches nothing."""
    leave(tmp_path, 5000)
    assert "last sign of life 5000 s ago" in refused(tmp_path)


@pytest.mark.parametrize("gone", ["ended", "its number is another's", "zombie"])
def test_the_lock_of_an_ended_process_is_taken_over_at_once(tmp_path, capsys, gone):
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    changes = {
        "ended": {"pid": ended()},
        "its number is another's": {"ticks": "1"},
        "zombie": {"pid": process.pid, "ticks": lock._process(process.pid)[1]},
    }
    leave(tmp_path, **changes[gone])
    with lock.run_lock(tmp_path):
        message = capsys.readouterr().err
    assert message.startswith(f"{tmp_path}/lock: left behind by process ") and message.count("\n") == 1
    process.wait()


def test_a_process_number_of_another_namespace_counts_nothing(tmp_path, monkeypatch):
    """The processes of a container with the same host name are invisible, and may live."""
    path = leave(tmp_path, pid=ended(), kernel="another boot")
    monkeypatch.setattr(lock, "POLL", 0.01)
    threading.Timer(0.2, os.utime, (path,)).start()
    assert "in use by process" in refused(tmp_path)


def test_the_lock_of_a_lost_machine_is_taken_over(tmp_path, capsys):
    leave(tmp_path, lock.STALE + 1, **FAR)
    with lock.run_lock(tmp_path):
        message = capsys.readouterr().err
    assert "on far-away" in message and "last sign of life 121 s ago; taken over" in message
    assert message.count("\n") == 1


def test_a_holder_on_another_machine_is_given_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "STALE", 2.0)
    monkeypatch.setattr(lock, "POLL", 0.05)
    leave(tmp_path, **FAR)
    started = time.monotonic()
    with lock.run_lock(tmp_path):
        assert time.monotonic() - started > 1.5
    waiting, taken = capsys.readouterr().err.splitlines()
    assert "on far-away" in waiting and waiting.endswith("waiting 2 s at most for another")
    assert taken.endswith("last sign of life 2 s ago; taken over")


def test_a_sign_of_life_ends_the_wait(tmp_path, monkeypatch, capsys):
    path = leave(tmp_path, 60, **FAR)
    monkeypatch.setattr(lock, "POLL", 0.05)
    threading.Timer(0.3, os.utime, (path,)).start()
    started = time.monotonic()
    assert "on far-away" in refused(tmp_path) and time.monotonic() - started < 10
    assert "waiting 60 s at most" in capsys.readouterr().err


def test_a_lock_released_during_the_wait_is_taken(tmp_path, monkeypatch):
    path = leave(tmp_path, **FAR)
    monkeypatch.setattr(lock, "POLL", 0.05)
    threading.Timer(0.3, path.unlink).start()
    with lock.run_lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{not JSON", "[]", "{}", '{"host": "h", "pid": 1}', "\x80"])
def test_a_damaged_lock_is_judged_by_its_age(tmp_path, monkeypatch, capsys, text):
    monkeypatch.setattr(lock, "STALE", 1.0)
    monkeypatch.setattr(lock, "POLL", 0.05)
    (tmp_path / "lock").write_text(text, encoding="latin-1")
    started = time.monotonic()
    with lock.run_lock(tmp_path):
        assert time.monotonic() - started > 0.5
    assert "the file is damaged" in capsys.readouterr().err


def test_a_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.run_lock(tmp_path):
        aged(tmp_path / "lock", 1000)
        time.sleep(0.5)
        assert lock._read_lock(tmp_path / "lock").age < 1


def test_a_lock_taken_by_another_is_reported_and_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.run_lock(tmp_path):
        path = leave(tmp_path, 1000, **FAR)
        time.sleep(0.5)
        assert "no longer this process's" in capsys.readouterr().err
    assert "far-away" in path.read_text() and lock._read_lock(path).age > 900


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_lock_is_released_whatever_happens(tmp_path, error):
    with pytest.raises(error), lock.run_lock(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_no_lock(tmp_path):
    with pytest.raises(TypeError):
        lock._create(tmp_path / "lock", None)
    assert list(tmp_path.iterdir()) == []
