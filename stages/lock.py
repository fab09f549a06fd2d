"""The lock of a folder: one run at a time works in it."""

import fcntl
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.command import UserError

ENDING = 10.0  # seconds that the stages of a killed `iterate.py` have to end, too


def _has_ended(holder: str) -> bool:
    """Whether the process that took a lock has ended, on this machine, while its stages still hold the lock."""
    found = re.match(r"process (\d+) on (\S+) ", holder)
    if not found or found[2] != platform.node():
        return False
    stat = Path(f"/proc/{found[1]}/stat")
    return not stat.exists() or ") Z " in stat.read_text()


@contextmanager
def run_lock(folder: Path, wait: bool = False, sweep: bool = True) -> Iterator[None]:
    """Hold the operating system's lock on `folder`/lock, so that one `iterate.py` at a time works in a run's folder;
    `sweep` it of what killed ones have left half written. Stages inherit the open file: one that outlives a killed
    `iterate.py` keeps the lock. It holds between the nodes of an NFS; Lustre needs the mount option `flock`. Raises
    `UserError` where another holds it, unless `wait`, or where no locks exist."""
    folder.mkdir(parents=True, exist_ok=True)
    path, begun = folder / "lock", time.monotonic()
    while True:
        if path.is_symlink():
            raise UserError(f"{path}: a link, which locks nothing here; remove it")
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            patience = ENDING if _has_ended(holder) else 0.3  # in which one that has just locked writes who it is
            if not (wait and holder) and time.monotonic() < begun + patience:
                file.close()
                time.sleep(0.1)
                continue
            holder = holder or "another process"
            if not wait:
                raise UserError(f"{path}: in use by {holder}; wait for it or stop it") from None
            print(f"{path}: waiting for {holder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"{path}: no lock on this file system ({error.strerror}); use one with locks") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # the process that held the lock has removed this file meanwhile
    who, since = f"{os.getpid()} on {platform.node()} ({shlex.join(sys.argv)})", time.strftime("%Y-%m-%d %H:%M:%S %z")
    file.truncate(0)
    print(f"process {who} or its stages, since {since}", file=file, flush=True)
    os.set_inheritable(file.fileno(), True)
    try:
        for left in list(folder.rglob(".*.tmp")) if sweep else ():
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)  # one within another has gone
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
