"""Ctrl-C ends a process that has imported this first, and imports the rest, with one line and exit code 130."""

import sys

from stages.files import command


def _interrupted() -> None:
    raise KeyboardInterrupt


def _hook(kind, error, trace) -> None:
    command(_interrupted) if kind is KeyboardInterrupt else sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
