"""A command: its options, its streams, and its end. An error that the user can mend is one line and exit code 2."""

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
WORDS = ["os error", "failed writing", "allocate memory", "out of memory", "bad_alloc", "start new thread"]
WORDS += map(os.strerror, EXHAUSTED)
LIMIT = re.compile("|".join(WORDS))  # of the machine, in errors of Rust's, torch's and gloo's, which are no `OSError`
MAKE_ROOM = "make room or raise the limit, then run the same command again"
LONGEST = 2000  # characters of an error


class UserError(Exception):
    """An error that the user can mend. The message is one line: what, where (file, line, key), what to do."""


class Terminated(SystemExit):
    """A SIGTERM that does not end the process at once (`on_sigterm_raise`)."""


def on_sigterm_raise() -> None:
    """Make the first SIGTERM raise `Terminated`, so that child processes can be ended; later ones do nothing."""

    def raise_terminated(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, raise_terminated)


def printable(text: str) -> str:
    """A text whose control characters, and those that turn the direction of writing, are shown as JSON escapes."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class LastingFile(io.FileIO):  # what nobody reads, and what a full disk does not take, is lost
    def write(self, data) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def use_lasting_streams() -> None:
    """Have standard output and error never fail, also where the process has none; what they can't encode is escaped."""
    for number, name in enumerate(("stdout", "stderr"), 1):
        if (old := getattr(sys, name)) is getattr(sys, f"__{name}__"):  # else it is a test's
            if old is None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            file = io.BufferedWriter(LastingFile(number, "w", closefd=False))
            encoding, by_lines = old and old.encoding, number == 2 or file.isatty()
            setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=by_lines))


def command(main: Callable[[], Any]) -> Any:
    """Run a command's `main`; a `UserError` and a limit of the machine are a line on stderr and exit code 2, Ctrl-C is
    130, `Terminated` 143."""
    use_lasting_streams()
    try:
        if not all(map(_is_text, sys.argv)):
            raise UserError(f"{sys.argv}: not UTF-8; rename the file or folder")
        return main()
    except (KeyboardInterrupt, Terminated) as error:
        what, code = ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else ("terminated", error.code)
        line = f"{what}: run the same command again to continue"
    except UserError as error:
        line, code = f"error: {error}", 2
    except Exception as error:
        lines = [line for line in str(error).splitlines() if isinstance(error, OSError) or LIMIT.search(line)]
        if not lines and not isinstance(error, MemoryError):
            raise
        other = isinstance(error, OSError) and error.errno not in EXHAUSTED and not LIMIT.search(str(error))
        mend = "mend it, then run the same command again" if other else MAKE_ROOM
        line, code = f"error: {[*lines, 'out of memory'][0]}; {mend}", 2
    print(printable(line).replace("\n", "\\n")[:LONGEST], file=sys.stderr)
    raise SystemExit(code)


def _is_text(word: str) -> bool:
    """Whether a word of a command line, or a name, can be written in UTF-8."""
    return word == word.encode(errors="ignore").decode()


def arguments(doc: str | None, *paths: str, **others: Any) -> argparse.Namespace:
    """A command's options: required `paths`, and `others` with argparse's keywords; `doc` is the help's description."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, keywords in ({path: {"required": True, "type": Path} for path in paths} | others).items():
        parser.add_argument(f"--{name}", **keywords)
    return parser.parse_args()
