"""One run, one `iterate.py`: whoever works in a run's folder holds the operating system's lock on its file `lock`.

The kernel, or on NFS the server, gives the lock to one process at a time and frees it when the last process that holds
it has ended. Stages inherit the lock: while one of them still writes, the folder stays locked, even when `iterate.py`
was killed.
"""

import contextlib
import fcntl
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from stages.files import UserError


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/lock; no other process, on any node, does at the same time. The folder must exist.

    Raises `UserError` where another process holds it, or the file system has no locks.
    """
    path = folder / "lock"
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{path}: in use by {file.read().strip() or 'another process'}; wait for it or stop it"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: no lock on this file system ({error.strerror}); use one with locks") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # the holder before has removed this file meanwhile
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    file.write(
        f"process {os.getpid()} on {platform.node()} ({shlex.join(sys.argv)}) or one of its stages, since {started}\n"
    )
    file.flush()
    os.set_inheritable(file.fileno(), True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
