import sys
from pathlib import Path

import pytest

import prepare.seed_model


@pytest.fixture(scope="session")
def judge(tmp_path_factory) -> Path:
    """A tiny model that utters a score or a winner, each half of the time."""
    folder = tmp_path_factory.mktemp("judge") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        winners = ["Winner: Response A\n", "Winner: Response B\n"]
        patch.setattr(prepare.seed_model, "VERDICTS", [*prepare.seed_model.VERDICTS[:-2], *winners])
        prepare.seed_model.make_tiny(folder, judge=True)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls a command's main with these words; its output, "out" and "err"."""

    def called(main, *words: object):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        main()
        return capsys.readouterr()

    return called
