"""One run, one `iterate.py`: the file `lock` in a run's folder says which process works there.

It is made for folders that nodes share, where no kernel sees all processes. On its own machine a holder lives as long
as its process does; on others by its signs of life, a touch of the file every `BEAT`. How old the last one is says the
file system's clock, since those of nodes differ.
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
"""Seconds between two signs of life."""
STALE = 120.0
"""Seconds without one after which a holder is taken to be lost, with its machine."""
POLL = 1.0
"""Seconds between two looks at a lock whose holder may be lost."""


@dataclass(frozen=True)
class Holder:
    """What the file says: a process, and what tells it from others of its number."""

    host: str
    pid: int
    started: str
    command: str
    kernel: str
    """The machine's boot and the process's namespace (a container's): only there does `pid` say which process."""
    ticks: str
    """The kernel's time of the process's start."""

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
        """Whether a process of this machine has ended; its number may be another's by now."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        state, ticks = _process(self.pid)
        return state in ("Z", "X") or (bool(ticks) and ticks != self.ticks)


@dataclass(frozen=True)
class Sight:
    """A lock as it was seen: its text, its last change in ns, how many seconds before that was."""

    text: str
    changed: int
    age: float

    @property
    def holder(self) -> Holder | None:
        """None where the file is damaged: then its age alone counts."""
        try:
            return Holder(**json.loads(self.text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        who = "an unknown process (the file is damaged)"
        if holder := self.holder:
            who = f"process {holder.pid} on {holder.host} ({holder.command}), since {holder.started}"
        return f"{who}, last sign of life {self.age:.0f} s ago"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/lock; no other process does at the same time. The folder must be there.

    A lock that was left behind is taken over, which stderr says. Raises `UserError` where its holder lives; to find
    that out of one on another machine may take `STALE` seconds.
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
        with contextlib.suppress(OSError):  # what stays is taken over by the next
            if path.read_text(encoding="utf-8", errors="replace") == text:
                path.unlink()


def _take(path: Path, text: str) -> None:
    """Make the file `path`, with this text, or put it in the place of one that was left behind.

    Of those who would replace the same file at once, one may: who holds its claim, a lock like this one, named after
    the file's content. So a slow process can't replace what another has put there meanwhile.
    """
    while not _create(path, text):
        found = _left_behind(path)
        if found is None:
            continue
        claim = path.with_name(f"{path.name}.{hashlib.sha256(found.text.encode()).hexdigest()[:12]}")
        _take(claim, text)
        now = _look(path)
        if now and (now.text, now.changed) == (found.text, found.changed):
            print(f"{path}: left behind by {found}; taken over", file=sys.stderr, flush=True)
            claim.replace(path)
            return
        claim.unlink()


def _create(path: Path, text: str) -> bool:
    """Whether there was no such file; then there is now."""
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


def _left_behind(path: Path) -> Sight | None:
    """The lock, once it is certain that its holder is gone; None where there is no lock any more.

    Raises `UserError` where the holder lives.
    """
    first = _look(path)
    seen = first
    while first and seen:
        alive = (seen.text, seen.changed) != (first.text, first.changed)
        if (holder := seen.holder) and holder.local:
            if holder.gone:
                return seen
            alive = True
        if alive:
            raise UserError(
                f"{path}: in use by {seen}; wait for it, stop it, or, if you are certain that it is gone, delete the "
                "file"
            )
        if seen.age > STALE:
            return seen
        if seen is first:
            wait = f"waiting {STALE - seen.age:.0f} s at most for another"
            print(f"{path}: held by {seen}; {wait}", file=sys.stderr, flush=True)
        time.sleep(POLL)
        seen = _look(path)
    return None


def _look(path: Path) -> Sight | None:
    """The lock, or None where there is none. It is opened, since a network file system is then asked anew."""
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
    return Sight(text, changed, (now - changed) / 1e9)


def _beat(path: Path, text: str, done: threading.Event) -> None:
    """Touch the lock until `done`, or until it is no longer ours."""
    while not done.wait(BEAT):
        try:
            if path.read_text(encoding="utf-8", errors="replace") == text:
                os.utime(path)
                continue
        except FileNotFoundError:
            pass
        except OSError:  # a network folder's moment of weakness: the next beat will do
            continue
        print(f"{path}: no longer this process's; another may work in this folder: stop one of them", file=sys.stderr)
        return


def _kernel() -> str:
    """The boot and the process namespace; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """A process's state and the ticks from the boot to its start (proc_pid_stat(5): fields 3 and 22); empty where
    /proc does not show it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], fields[19]
