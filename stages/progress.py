"""A stage's progress: a bar in a terminal, a line a minute in a file."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

MINUTE = 60.0


class Lines:
    """A stream for tqdm that gives each state of the bar a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(total: int, what: str, unit: str, *, first: bool, done: int = 0) -> tqdm:
    """What the first rank shows of `total` units of work; the other ranks count in silence."""
    where: dict[str, Any] = {"mininterval": 1.0}
    if not sys.stderr.isatty():
        # Any delay: without one there is a line at 0%.
        where = {"file": Lines(sys.stderr), "mininterval": MINUTE, "maxinterval": MINUTE, "delay": 1e-9, "ncols": 100}
    return tqdm(total=total, initial=done, desc=what, unit=unit, disable=not first, **where)
