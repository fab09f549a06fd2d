"""Checkpoints: a stopped run continues to the last bit; exports are complete and exact."""

import gc
import os
import shutil
import signal
import threading
import time
from concurrent.futures import wait
from functools import partial
from multiprocessing import get_context
from pkgutil import resolve_name
from unittest.mock import Mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from training import (
    SETTINGS,
    arguments,
    before_step,
    changed,
    killed,
    make_model,
    parameters,
    run,
    run_killed,
    run_stopped,
)

import dpo.train
from dpo.checkpoint import export
from dpo.parallel import Interruption, distributed, load_sharded, sharded_model
from dpo.trainer import Trainer
from model.config import LlamaConfig
from stages.files import digest, read_jsonl, read_manifest

LASTING = changed(dpo={"epochs": 3, "held_out": 0.25, "batch_size": 2})


def without_times(metrics):
    times = ("seconds", "tokens_per_second", "mfu", "memory_mib")
    return [{name: row[name] for name in row if name not in times} for row in metrics]


def test_a_run_stopped_often_continues_to_the_last_bit(folder, monkeypatch):
    """Each signal comes three times at once, as when a scheduler, a terminal and torchrun send it."""
    whole, numbers = run(LASTING, arguments(folder, place="whole")), (signal.SIGTERM, signal.SIGINT)
    for step in (0, 4, 5, 13):  # an epoch has 5 steps
        handler = signal.getsignal(numbers[step % 2])
        run_stopped(monkeypatch, numbers[step % 2], step, LASTING, arguments(folder), times=3)
        assert signal.getsignal(numbers[step % 2]) is handler
        assert len(list((folder / "run" / "train").glob("state-*"))) == 1
    continued = run(LASTING, arguments(folder))
    assert len(whole) == 18 and without_times(continued) == without_times(whole)
    expected, manifest = (read_manifest(folder / place / "out") or {} for place in ("whole", "run"))
    assert [manifest[key] for key in ("digest", "first_loss")] == [expected[key] for key in ("digest", "first_loss")]


def test_a_run_stopped_after_its_last_step_still_knows_that_steps_figures(folder, monkeypatch):
    whole = run(SETTINGS, arguments(folder, place="whole"))
    run_stopped(monkeypatch, signal.SIGTERM, len(whole) - 1, SETTINGS, arguments(folder))
    run(SETTINGS, arguments(folder))
    expected, manifest = (read_manifest(folder / place / "out") or {} for place in ("whole", "run"))
    assert all(manifest[key] == expected[key] for key in ("digest", "loss", "accuracy", "margin"))


def test_ctrl_c_again_later_does_not_wait_for_the_step(folder, monkeypatch):
    monkeypatch.setattr(Interruption, "patience", -1.0)
    before_step(monkeypatch, 2, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(signal, "SIG_DFL", signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run(LASTING, arguments(folder))
    signal.signal(signal.SIGINT, handler)
    torch.distributed.destroy_process_group()
    assert not list((folder / "run" / "train").glob("state-*"))


def test_a_killed_run_continues_from_its_last_state(folder, monkeypatch):
    """Killed two steps after a state: lines and exports written since then are written again."""
    settings = changed(LASTING, trainer={"save_every": 3})
    whole = run(settings, arguments(folder, place="whole"))
    run_killed(monkeypatch, 11, settings, arguments(folder))
    work = folder / "run" / "train"
    (work / ".state-9.tmp" / "torn").mkdir(parents=True)  # as if killed during a save
    assert len(list(read_jsonl(work / "metrics.jsonl"))) == 11 + 2
    assert (read_manifest(work) or {})["progress"]["step"] == 9
    continued = run(settings, arguments(folder))
    assert without_times(continued) == without_times(whole)
    assert digest(folder / "run" / "out") == digest(folder / "whole" / "out")


@pytest.mark.parametrize(
    ("name", "count"),
    [("save_pretrained", 1), ("_publish", 2), ("dcp.save", 2), ("_publish", 3), ("write_manifest", 2)],
)
def test_a_run_killed_while_it_writes_continues_from_the_state_before(folder, monkeypatch, name, count):
    """Killed by the writer, while further steps change the weights, before the export after step 5 or the state after
    step 6 is complete: in the call `count` of a function."""
    settings = changed(LASTING, trainer={"save_every": 3})
    whole, calls = run(settings, arguments(folder, place="whole")), []

    def write(*given, real, **keywords):
        if len(calls) == count - 1:
            time.sleep(0.1)
            os._exit(9)
        calls.append(given)
        return real(*given, **keywords)

    place = f"dpo.checkpoint.{name}"
    monkeypatch.setattr(place, partial(write, real=resolve_name(place)))
    gc.collect()  # of process groups that have ended: in a copy they would wait for threads that are not there
    process = get_context("fork").Process(target=run, args=(settings, arguments(folder)))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    monkeypatch.undo()
    assert (read_manifest(folder / "run" / "train") or {})["progress"]["step"] == 3
    assert without_times(run(settings, arguments(folder))) == without_times(whole)
    assert digest(folder / "run" / "out") == digest(folder / "whole" / "out")


def test_a_write_that_fails_ends_the_training_after_the_step(folder, monkeypatch):
    real = Trainer.step

    def step(trainer, batch):
        wait([trainer.writer.begun])
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr("dpo.checkpoint.write_manifest", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run(changed(LASTING, trainer={"save_every": 3}), arguments(folder))
    torch.distributed.destroy_process_group()
    assert [row["step"] for row in read_jsonl(folder / "run" / "train" / "metrics.jsonl")] == [0, 1, 2, 3]


def test_training_goes_on_while_a_state_is_written(folder, monkeypatch):
    reached, real = threading.Event(), dcp.save
    before_step(monkeypatch, 4, reached.set)
    monkeypatch.setattr(dcp, "save", lambda *given, **names: reached.wait(60) and real(*given, **names))
    assert len(run(changed(LASTING, trainer={"save_every": 3}), arguments(folder))) == 18


def test_a_state_of_other_work_is_not_continued(folder, monkeypatch):
    run_stopped(monkeypatch, signal.SIGTERM, 2, LASTING, arguments(folder))
    assert len(list((folder / "run" / "train").glob("state-*"))) == 1
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
        export(world, model, source, tmp_path / "out")(world)
    assert all(map(torch.equal, parameters(source), parameters(tmp_path / "out")))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in source.iterdir()}
    before, after = (load_file(place / "model.safetensors") for place in (source, tmp_path / "out"))
    assert before.keys() == after.keys() and {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_a_finished_run_that_was_not_published_is_published(folder, monkeypatch):
    """Killed between the last export and its renaming: the next start only publishes."""
    whole = run(LASTING, arguments(folder, place="whole"))
    monkeypatch.setattr(dpo.train, "finish", killed)
    run_killed(monkeypatch, 99, LASTING, arguments(folder))  # it ends before that step
    shutil.rmtree(folder / "run" / "train" / "reference")
    continued = run(LASTING, arguments(folder))
    assert without_times(continued) == without_times(whole)
    assert digest(folder / "run" / "out") == digest(folder / "whole" / "out")
