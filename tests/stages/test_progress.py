"""stages/progress.py: a line a minute where there is no terminal."""

import io
import sys

from stages import progress


def test_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    bar = progress.progress(4, "judge", "req", first=True, done=1)
    for _ in range(3):
        bar.update()
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("judge:  50%") and lines[-1].startswith("judge: 100%")
    assert len(lines) >= 3 and all(line.startswith("judge: ") and "\r" not in line for line in lines)


def test_not_more_than_a_line_a_minute(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.progress(10_000, "judge", "req", first=True)
    for _ in range(9_999):
        bar.update()
    assert stream.getvalue() == ""
    bar.close()
    assert stream.getvalue().startswith("judge: 100%") and stream.getvalue().count("\n") == 1


def test_other_ranks_are_silent(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress(4, "judge", "req", first=False) as bar:
        bar.update(4)
    assert stream.getvalue() == ""
