"""One `iterate.py` at a time in a run's folder: the file `lock` there names the process that holds it.

Nodes may share the folder, where no kernel sees all processes. A holder on the same machine is alive while its process
is; a holder on another machine while it touches the file every `BEAT` seconds. Age is measured by the file system's
clock, since the clocks of nodes differ.
"""

import contextlib
import hashlib
import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.files import UserError

BEAT = 20.0
"""Seconds between two touches of the file."""
STALE = 120.0
"""Seconds without a touch after which a holder is taken to be lost, with its machine."""
POLL = 1.0
"""Seconds between two readings of a lock whose holder may be lost."""


@dataclass(frozen=True)
class Holder:
    """The content of the file: a process, and what distinguishes it from others with the same number."""

    host: str
    pid: int
    started: str
    command: str
    kernel: str
    """Ids of the machine's boot and of the process's namespace (a container's), within which `pid` is unique."""
    ticks: str
    """The process's start in clock ticks since the boot."""

    @classmethod
    def current(cls) -> "Holder":
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        pid = os.getpid()
        return cls(platform.node(), pid, now, shlex.join(sys.argv), _kernel(), _process(pid)[1])

    @property
    def local(self) -> bool:
        return (self.host, self.kernel) == (platform.node(), _kernel())

    @property
    def gone(self) -> bool:
        """Whether this machine's process has ended; another process may have its number by now."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # the process of another user
            pass
        state, ticks = _process(self.pid)
        return state in ("Z", "X") or (bool(ticks) and ticks != self.ticks)


@dataclass(frozen=True)
class LockState:
    """A lock at the time of reading: its text, the time of its last change in ns, and its age in seconds."""

    text: str
    changed: int
    age: float

    @property
    def holder(self) -> Holder | None:
        """The process that the file names; None if the file is damaged: then its age alone counts."""
        try:
            return Holder(**json.loads(self.text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        process = "an unknown process (the file is damaged)"
        if holder := self.holder:
            process = f"process {holder.pid} on {holder.host} ({holder.command}), since {holder.started}"
        return f"{process}, last sign of life {self.age:.0f} s ago"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/lock, as no other process does at the same time. The folder must exist.

    A stale lock is taken over, with a line on stderr. Raises `UserError` where the holder is alive; to find that out
    may take `STALE` seconds if the holder is on another machine.
    """
    path = folder / "lock"
    text = json.dumps(asdict(Holder.current()), ensure_ascii=False) + "\n"
    _take(path, text)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, text, done), daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        with contextlib.suppress(OSError):  # a file that stays is taken over by the next holder
            if path.read_text(encoding="utf-8", errors="replace") == text:
                path.unlink()


def _take(path: Path, text: str) -> None:
    """Create the file `path` with this text, or replace a stale lock by it.

    Only the process that creates the claim file, a lock named after the content of the stale lock, may replace the
    stale lock. So a slow process can't replace a lock that is new by then.
    """
    while not _create(path, text):
        stale = _wait_until_stale(path)
        if stale is None:
            continue
        claim = path.with_name(f"{path.name}.{hashlib.sha256(stale.text.encode()).hexdigest()[:12]}")
        _take(claim, text)
        now = _read_lock(path)
        if now and (now.text, now.changed) == (stale.text, stale.changed):
            print(f"{path}: left behind by {stale}; taken over", file=sys.stderr, flush=True)
            claim.replace(path)
            return
        claim.unlink()


def _create(path: Path, text: str) -> bool:
    """Create the file, unless it exists; whether it was created."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except BaseException:
        path.unlink()
        raise
    return True


def _wait_until_stale(path: Path) -> LockState | None:
    """The lock, once its holder is certainly gone; None if the lock has been removed.

    Raises `UserError` where the holder is alive.
    """
    first = _read_lock(path)
    now = first
    while first and now:
        alive = (now.text, now.changed) != (first.text, first.changed)
        if (holder := now.holder) and holder.local:
            if holder.gone:
                return now
            alive = True
        if alive:
            raise UserError(
                f"{path}: in use by {now}; wait for it, stop it or, if you are certain that it is gone, delete the file"
            )
        if now.age > STALE:
            return now
        if now is first:
            wait = f"waiting {STALE - now.age:.0f} s at most for another"
            print(f"{path}: held by {now}; {wait}", file=sys.stderr, flush=True)
        time.sleep(POLL)
        now = _read_lock(path)
    return None


def _read_lock(path: Path) -> LockState | None:
    """The lock, or None where there is none. Opening the file makes a network file system fetch its present state."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text, changed = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    clock = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        clock.touch()
        os.utime(clock)
        now = clock.stat().st_mtime_ns
    finally:
        clock.unlink(missing_ok=True)
    return LockState(text, changed, (now - changed) / 1e9)


def _beat(path: Path, text: str, done: threading.Event) -> None:
    """Touch the lock until `done` is set or the lock is another process's."""
    while not done.wait(BEAT):
        try:
            if path.read_text(encoding="utf-8", errors="replace") == text:
                os.utime(path)
                continue
        except FileNotFoundError:
            pass
        except OSError:  # a network folder may fail for a moment: the next beat will do
            continue
        print(f"{path}: no longer this process's; another may work in this folder: stop one of them", file=sys.stderr)
        return


def _kernel() -> str:
    """The ids of the boot and of the process namespace; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """A process's state and its start in ticks since the boot, fields 3 and 22 of proc_pid_stat(5); else empty."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()  # the program's name in parentheses may hold spaces
    return fields[0], fields[19]
