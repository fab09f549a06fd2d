"""The progress of a stage: a bar in a terminal, a line a minute in a file."""

import re
import sys
from typing import Any, TextIO

from tqdm import tqdm

MINUTE = 60.0


class Lines:
    """A stream for tqdm that writes each state of the bar as a line, and a state that is shown again only once."""

    def __init__(self, stream: TextIO):
        self.stream, self.shown = stream, ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        # Without the times, which tqdm's last line has anew, and without the bar, which is as long as they leave it.
        done = re.sub(r"\|.*\|", "", line.partition(" [")[0])
        if line and done != self.shown:
            self.stream.write(f"{line}\n")
            self.shown = done

    def flush(self) -> None:
        self.stream.flush()


def progress(total: int, what: str, unit: str, *, first: bool, done: int = 0) -> tqdm:
    """The progress bar of `total` pieces of work, which the first rank shows; on other ranks it is silent."""
    display: dict[str, Any] = {"mininterval": 1.0}
    if not sys.stderr.isatty():
        # A delay, however short, suppresses the line at 0%.
        display = {"file": Lines(sys.stderr), "mininterval": MINUTE, "maxinterval": MINUTE, "delay": 1e-9, "ncols": 100}
    return tqdm(total=total, initial=done, desc=what, unit=unit, disable=not first, **display)
