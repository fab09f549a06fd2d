"""Counts a run's file operations, in all its processes together, and sends a signal at one of them.

An audit hook sees each operation that changes the run's folders, runs/ and models/, before it happens. A log beside
them has a line for each, so that the log's length numbers them.
"""

import os
import signal
import sys
import time

FOLDERS = ("runs", "models")
LOG = "operations.log"
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
LIMITS = "CHAOS_LIMITS"  # {name of a resource: its limit}, as JSON
VARIABLE = "CHAOS"  # in its environment a process finds what to do: PLACE:NUMBER:SIGNAL:WHOM


def install(place: str, number: int = 0, sent: int = signal.SIGKILL, whom: str = "self") -> None:
    """Send the signal at the operation of this number, from 1, to this process ("self") or to "all" of its session;
    0: never."""
    place = os.path.realpath(place)
    log = os.open(os.path.join(place, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & CHANGES:
                return
        elif event in EVENTS:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.relpath(os.path.join(os.getcwd(), os.fsdecode(path)), place)
        if name.split(os.sep)[0] not in FOLDERS:
            return
        line = f"{time.time():.3f} {os.getpid()} {event} {name}\n".encode(errors="replace")
        os.write(log, line)
        with open(f"/proc/self/fd/{log}", "rb") as written:
            count = written.read().count(b"\n")
        if count == number:
            if whom == "all":
                os.killpg(0, sent)
            os.kill(os.getpid(), sent)

    sys.addaudithook(hook)


def install_from_environment() -> None:
    if text := os.environ.get(VARIABLE):
        place, number, sent, whom = text.rsplit(":", 3)
        install(place, int(number), int(sent), whom)
