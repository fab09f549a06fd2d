"""One run, one `iterate.py`: whoever works in a run's folder holds the operating system's lock on its file `lock`.

The kernel gives the lock to one process at a time, and frees it when the last process that has the file open ends.
Stages inherit the open file: a stage that outlives a killed `iterate.py` keeps the folder locked. On NFSv4 (and NFSv3
with lockd) the server keeps the lock, so it holds between nodes; Lustre needs the mount option `flock`.
"""

import fcntl
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.files import UserError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/lock. Raises `UserError` where another process holds it, or the file system has no locks."""
    path = folder / "lock"
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{path}: in use by {holder}; wait for it or stop it") from None
        except OSError as error:
            raise UserError(f"{path}: no lock on this file system ({error.strerror}); use one with locks") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # the process that held the lock has removed this file meanwhile
    who, since = f"{os.getpid()} on {platform.node()} ({shlex.join(sys.argv)})", time.strftime("%Y-%m-%d %H:%M:%S %z")
    file.truncate(0)
    file.write(f"process {who} or its stages, since {since}\n")
    file.flush()
    os.set_inheritable(file.fileno(), True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
