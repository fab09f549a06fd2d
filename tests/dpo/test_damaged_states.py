"""A training's state and its reference's log-probabilities: what is not as this run wrote it is not used, and no pickle
of another's is read."""

import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from training import arguments, changed, make_inputs, run, run_stopped

from stages.files import digest

SETTINGS = changed(dpo={"epochs": 2, "held_out": 0.25, "batch_size": 2})  # an epoch has 5 steps


class Planted:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "state-*/*.distcp": flip,
    "state-*/.metadata": cut,
    "epoch-1/model.safetensors": flip,
    "reference/*/logprobs.jsonl": lambda path: path.write_text("".join(path.open().readlines()[:-1])),
    "reference/*/manifest.json": cut,
    "manifest.json": flip,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The digest of what a run that is not stopped exports."""
    folder = make_inputs(tmp_path_factory.mktemp("whole"))
    run(SETTINGS, arguments(folder))
    return digest(folder / "run" / "out")


@pytest.mark.parametrize("damaged", DAMAGE)
def test_what_has_changed_is_made_again_and_said(folder, monkeypatch, capfd, whole, damaged):
    run_stopped(monkeypatch, signal.SIGTERM, 7, SETTINGS, arguments(folder))
    [path] = (folder / "run" / "train").glob(damaged)
    DAMAGE[damaged](path)
    metrics = run(SETTINGS, arguments(folder))
    assert [row["step"] for row in metrics if row["split"] == "train"] == list(range(10))
    assert digest(folder / "run" / "out") == whole
    assert f"warning: {path}: not as it was written; it is made again" in capfd.readouterr().err
    assert {path.name for path in (folder / "run" / "train").iterdir()} == {"metrics.jsonl", "reference"}
    left = {path.name for path in (folder / "run" / "train" / "reference").glob("*/*")}
    assert left == {"logprobs.jsonl", "manifest.json"}


def test_a_state_that_this_run_has_not_written_is_not_unpickled(folder, monkeypatch, tmp_path, whole):
    run_stopped(monkeypatch, signal.SIGTERM, 7, SETTINGS, arguments(folder))
    [metadata] = (folder / "run" / "train").glob("state-*/.metadata")
    metadata.write_bytes(pickle.dumps(Planted(tmp_path / "planted")))
    run(SETTINGS, arguments(folder))
    assert not (tmp_path / "planted").exists() and digest(folder / "run" / "out") == whole
    with pytest.raises(AttributeError):  # the pickle does what it says
        pickle.loads(pickle.dumps(Planted(tmp_path / "planted"))).missing  # noqa: B018
    assert (tmp_path / "planted").exists()
