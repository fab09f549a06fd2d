"""stages/progress.py: a line a minute where there is no terminal."""

import io
import sys

from stages import progress


def log(monkeypatch) -> io.StringIO:
    """Standard error, in place of a terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return sys.stderr


def test_each_state_is_a_line_and_the_last_is_shown_once(monkeypatch):
    stream = log(monkeypatch)
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    bar = progress.progress(4, "judge", "req", first=True, done=1)
    for _ in range(3):
        bar.update()
    bar.close()
    lines = [line.partition("|")[0] for line in stream.getvalue().splitlines()]
    assert lines == ["judge:  50%", "judge:  75%", "judge: 100%"] and "\r" not in stream.getvalue()


def test_not_more_than_a_line_a_minute(monkeypatch):
    stream = log(monkeypatch)
    bar = progress.progress(10_000, "judge", "req", first=True)
    for _ in range(9_999):
        bar.update()
    assert stream.getvalue() == ""
    bar.close()
    assert stream.getvalue().startswith("judge: 100%") and stream.getvalue().count("\n") == 1


def test_other_ranks_are_silent(monkeypatch):
    stream = log(monkeypatch)
    with progress.progress(4, "judge", "req", first=False) as bar:
        bar.update(4)
    assert stream.getvalue() == ""
