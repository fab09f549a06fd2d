"""Checkpoints: a stopped run continues to the last bit; exports are complete and exact."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from training import arguments, changed, kill_at, make_inputs, make_model, parameters, run, stop_at

import dpo.train
from dpo.checkpoint import export, latest_state
from dpo.parallel import Interruption, distributed, load_sharded, sharded_model
from model.config import LlamaConfig
from stages.files import digest, read_jsonl, read_manifest

LASTING = changed(dpo={"epochs": 3, "held_out": 0.25, "batch_size": 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_inputs(tmp_path)


def without_times(metrics):
    machine_dependent = ("seconds", "tokens_per_second", "mfu", "memory_mib")
    return [{name: row[name] for name in row if name not in machine_dependent} for row in metrics]


def test_a_run_stopped_often_continues_to_the_last_bit(folder, monkeypatch):
    """Each signal comes three times at once, as when a scheduler, a terminal and torchrun send it."""
    whole, numbers = run(LASTING, arguments(folder, place="whole")), (signal.SIGTERM, signal.SIGINT)
    for step in (0, 1, 4, 5, 9, 13):  # an epoch has 5 steps
        number = numbers[step % 2]
        stop_at(monkeypatch, number, step, times=3)
        handler = signal.getsignal(number)
        with pytest.raises(SystemExit) as stopped:
            run(LASTING, arguments(folder))
        assert stopped.value.code == 128 + number and signal.getsignal(number) is handler
        assert len(list((folder / "run" / "train").glob("state-*"))) == 1
        monkeypatch.undo()
    continued = run(LASTING, arguments(folder))
    assert len(whole) == 18 and without_times(continued) == without_times(whole)
    expected, manifest = read_manifest(folder / "whole" / "out"), read_manifest(folder / "run" / "out")
    assert expected is not None and manifest is not None
    assert manifest["digest"] == expected["digest"] and manifest["first_loss"] == expected["first_loss"]


def test_ctrl_c_again_later_does_not_wait_for_the_step(folder, monkeypatch):
    monkeypatch.setattr(Interruption, "patience", -1.0)
    stop_at(monkeypatch, signal.SIGINT, 2, times=2)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(signal, "SIG_DFL", signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run(LASTING, arguments(folder))
    signal.signal(signal.SIGINT, handler)
    torch.distributed.destroy_process_group()
    assert not list((folder / "run" / "train").glob("state-*"))


@pytest.mark.parametrize(("killed", "saved"), [(5, 3), (11, 9)])
def test_a_killed_run_continues_from_its_last_state(folder, monkeypatch, killed, saved):
    """Killed some steps after a state: lines and exports written since then are written again."""
    settings = changed(LASTING, trainer={"save_every": 3})
    whole = run(settings, arguments(folder, place="whole"))
    kill_at(monkeypatch, killed)
    with pytest.raises(MemoryError):
        run(settings, arguments(folder))
    torch.distributed.destroy_process_group()
    monkeypatch.undo()
    (folder / "run" / "train" / ".state-9.tmp").mkdir()  # as if killed during a save
    (folder / "run" / "train" / ".state-9.tmp" / "__0_0.distcp").write_text("torn")
    written = [row["split"] for row in read_jsonl(folder / "run" / "train" / "metrics.jsonl")]
    assert written.count("train") == killed and written.count("held_out") == killed // 5
    [state] = (folder / "run" / "train").glob("state-*")
    assert json.loads((state / "progress.json").read_text())["step"] == saved
    continued = run(settings, arguments(folder))
    assert without_times(continued) == without_times(whole)
    assert digest(folder / "run" / "out") == digest(folder / "whole" / "out")


def test_a_state_of_other_work_is_not_continued(folder, monkeypatch):
    stop_at(monkeypatch, signal.SIGTERM, 2)
    with pytest.raises(SystemExit):
        run(LASTING, arguments(folder))
    monkeypatch.undo()
    [state] = (folder / "run" / "train").glob("state-*")
    key = json.loads((state / "progress.json").read_text())["key"]
    assert latest_state(folder / "run" / "train", key) == state
    assert latest_state(folder / "run" / "train", "another") is None
    metrics = run(changed(LASTING, dpo={"beta": 0.2}), arguments(folder))
    assert metrics[0]["step"] == 0 and metrics[-1]["step"] == 14


@pytest.mark.parametrize("tied", [True, False])
def test_export_is_the_model_in_bf16(tmp_path, tied):
    source = make_model(tmp_path / "model", tied=tied)
    (source / "tokenizer.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("of an earlier export")
    with distributed(1) as world:
        model = sharded_model(LlamaConfig.load(source), world, torch.float32, LASTING.trainer)
        load_sharded(model, source)
        export(world, model, source, tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(parameters(source), parameters(tmp_path / "out"), strict=True))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    with (
        safe_open(source / "model.safetensors", "pt") as before,
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as after,
    ):
        assert set(before.keys()) == set(after.keys())
        assert all(after.get_tensor(name).dtype == torch.bfloat16 for name in after.keys())  # noqa: SIM118
        assert after.metadata() == {"format": "pt"}


def test_a_finished_run_that_was_not_published_is_published(folder, monkeypatch):
    """Killed between the last export and its renaming: the next start only publishes."""
    whole = run(LASTING, arguments(folder, place="whole"))

    def killed(*_, **__):
        raise MemoryError

    monkeypatch.setattr(dpo.train, "finish", killed)
    with pytest.raises(MemoryError):
        run(LASTING, arguments(folder))
    torch.distributed.destroy_process_group()
    monkeypatch.undo()
    shutil.rmtree(folder / "run" / "train" / "reference")
    continued = run(LASTING, arguments(folder))
    assert without_times(continued) == without_times(whole)
    assert digest(folder / "run" / "out") == digest(folder / "whole" / "out")
