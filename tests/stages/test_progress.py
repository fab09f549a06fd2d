"""stages/progress.py: a line a minute where there is no terminal."""

import io
import sys

import pytest

from stages import progress


@pytest.mark.parametrize(
    ("total", "done", "minute", "first", "lines"),
    [
        (4, 1, 0.0, True, ["judge:  50%", "judge:  75%", "judge: 100%"]),
        (10_000, 0, 60.0, True, ["judge: 100%"]),
        (4, 0, 0.0, False, []),
    ],
)
def test_each_state_is_a_line_of_the_first_rank_once_a_minute(monkeypatch, total, done, minute, first, lines):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "MINUTE", minute)
    with progress.progress(total, "judge", "req", first=first, done=done) as bar:
        for _ in range(total - done):
            bar.update()
    shown = sys.stderr.getvalue()
    assert [line.partition("|")[0] for line in shown.splitlines()] == lines and "\r" not in shown


def test_a_state_is_shown_once_though_its_times_and_so_its_bar_have_another_length():
    stream = io.StringIO()
    lines = progress.Lines(stream)
    for text in ("dpo:  90%|###  | 9/10 [00:59]", "dpo: 100%|#####| 10/10 [01:01]", "dpo: 100%|####| 10/10 [101:03]"):
        lines.write(f"\r{text}")
    assert stream.getvalue().splitlines() == ["dpo:  90%|###  | 9/10 [00:59]", "dpo: 100%|#####| 10/10 [01:01]"]
