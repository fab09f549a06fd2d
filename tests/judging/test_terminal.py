"""A model's text on a terminal: control characters are shown, not obeyed."""

import json
import sys

import pytest
from records import judgments, response
from test_trace import folder, whole  # noqa: F401

import judging.preview
from stages.command import UserError, command, printable

HOSTILE = {
    "colour": ("\x1b[31mred", "\\u001b[31mred"),
    "title of the window": ("\x1b]0;owned\x07", "\\u001b]0;owned\\u0007"),
    "eight-bit sequence": ("\x9b2J", "\\u009b2J"),
    "overwriting": ("good\rbad\b", "good\\u000dbad\\u0008"),
    "deletion": ("\x7f\x00", "\\u007f\\u0000"),
    "direction": ("\u202eabc\u2066d\u200f", "\\u202eabc\\u2066d\\u200f"),
}
ORDINARY = "zwei\n\tZeilen, “ü”  日本語　👩‍👩‍👧 می‌خواهم \\x1b"


@pytest.mark.parametrize("name", HOSTILE)
def test_controls_are_shown_and_nothing_else_changes(name):
    text, shown = HOSTILE[name]
    assert printable(text + ORDINARY) == shown + ORDINARY
    assert json.loads(printable(json.dumps(text + ORDINARY, ensure_ascii=False))) == text + ORDINARY


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_trace_shows_what_a_model_would_have_the_terminal_do(folder, words):  # noqa: F811
    text = "\x1b[2J\x9b31m\x07 good"
    folder.write([response(1, 0, text), response(1, 1, "bad")], judgments("p1/r0", [5]) + judgments("p1/r1", [1]))
    shown = folder.trace("actor/p1", *words)
    assert "\\u001b[2J\\u009b31m\\u0007 good" in shown and not {"\x1b", "\x9b", "\x07"} & {*shown}
    assert not words or json.loads(shown)["responses"][0]["text"] == text


def test_so_does_the_preview(monkeypatch, capsys):
    monkeypatch.setattr(judging.preview, "preview", lambda *_: ["\x1b[31mred"])
    for name in ("Worker", "load_settings", "read_prompts"):
        monkeypatch.setattr(judging.preview, name, lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["preview", "--config", "c", "--model", "m", "--prompts", "p"])
    judging.preview.main()
    assert capsys.readouterr().err == "\\u001b[31mred\n"


def test_so_do_errors(capsys):
    def main() -> None:
        raise UserError("file, id '\x1b[31mred': mend it")

    with pytest.raises(SystemExit):
        command(main)
    assert capsys.readouterr().err == "error: file, id '\\u001b[31mred': mend it\n"


def test_an_error_is_one_line_however_names_are_spelled(capsys):
    def main() -> None:
        raise UserError("config.json: a\nerror: all is well" + "x" * 1_000_000)

    with pytest.raises(SystemExit):
        command(main)
    err = capsys.readouterr().err
    assert err.startswith("error: config.json: a\\nerror: all is well") and err.count("\n") == 1 and len(err) < 3000
