"""Ctrl-C ends a process that has imported this first, and imports the rest, with one line and exit code 130."""

import signal
import sys
from functools import partial

from stages.command import command

interrupt = partial(signal.default_int_handler, signal.SIGINT, None)
sys.excepthook = lambda kind, *how: command(interrupt) if kind is KeyboardInterrupt else sys.__excepthook__(kind, *how)
