"""Work shards: their content, and that each is written, whichever rank claims it."""

import os
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from marks import needs_int8
from processes import ROOT

from prepare.seed_model import prepare
from sampling import worker as workers
from sampling.request import Completion, Sampling
from sampling.respond import response_items
from sampling.worker import Item, Work, Worker
from stages.command import UserError
from stages.files import read_manifest
from stages.settings import EngineOptions, load_settings
from stages.shards import LOCAL_RANKS, cut_shards, local_device, unclaimed, unwritten, write_shard
from stages.stage import Job

CHAT = SimpleNamespace(prompt_ids=lambda messages: [1], text=lambda ids: "text")
SETTINGS = load_settings(ROOT / "configs" / "tiny.toml")


def job(out: Path, name: str = "respond") -> Job:
    return Job(name, None, 0, {}, {}, "key", out)


def items(count: int, group_size: int) -> list[Item]:
    sampling = Sampling(1.0, 1.0, 4)
    return [Item(f"i{n}", list, sampling, n, f"g{n // group_size}", {"id": f"i{n}"}) for n in range(count)]


def fake_engine(monkeypatch, note=lambda name: None) -> None:
    """Workers have an engine that draws one token for each request, after it has called `note` with the name."""

    def run(requests):
        for request in requests:
            note(request.id)
            yield Completion(request.id, [7], "length", 0.0)

    monkeypatch.setattr(workers, "load_engine", lambda settings, model_dir, log: SimpleNamespace(run=run))
    monkeypatch.setattr(workers, "load_chat", lambda folder: CHAT)


def test_an_environment_without_triton(monkeypatch):
    monkeypatch.setattr(workers, "find_spec", lambda name: name != "triton")
    assert {"torch", "python", "device"} < workers.environment().keys() and "triton" not in workers.environment()


def test_shards_hold_whole_groups():
    options = EngineOptions(shard_requests=6)
    assert options.shards(20) == 4 and replace(options, shard_multiple=3).shards(20) == 6 and options.shards(0) == 0
    shards = cut_shards(items(20, 4), options)
    assert [len(shard) for shard in shards] == [8, 4, 4, 4]
    assert [item.name for shard in shards for item in shard] == [f"i{n}" for n in range(20)]


def test_a_rank_that_starts_late_leaves_no_shard_out(tmp_path, monkeypatch):
    """Another rank has claimed and written the first shard before this rank starts."""
    store = dist.HashStore()
    store.add("claimed", 1)
    fake_engine(monkeypatch)
    monkeypatch.setattr(workers, "rendezvous", lambda stage, key: (store, 0))
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: pytest.fail("the worker waits"))
    first = tmp_path / "out" / "shards-key" / "00000.jsonl"
    write_shard(first, [{"id": "i0", "ids": [7], "finish_reason": "length"}])
    Worker(SETTINGS, tmp_path).run(job(tmp_path / "out"), items(96, 8))
    shards = cut_shards(items(96, 8), SETTINGS.engine)
    assert read_manifest(tmp_path / "out")["counts"]["records"] == 96 - len(shards[0]) + 1
    assert len(list(first.parent.glob("*.jsonl"))) == len(shards)


@pytest.mark.parametrize("damaged", ["00001.jsonl", "00001.sha256"])
@pytest.mark.parametrize("change", [lambda old: b"", lambda old: old[:-1], lambda old: b"%c" % (old[0] ^ 1) + old[1:]])
def test_a_shard_that_has_changed_since_a_killed_run_wrote_it_is_made_again(tmp_path, monkeypatch, damaged, change):
    """Of all shards, which are there without a manifest, that one alone."""
    fake_engine(monkeypatch)
    Worker(SETTINGS, tmp_path).run(job(tmp_path / "out"), items(96, 8))
    folder, drawn = tmp_path / "out" / "shards-key", list[str]()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "out" / "manifest.json").unlink()
    (folder / damaged).write_bytes(change(whole[damaged]))
    fake_engine(monkeypatch, drawn.append)
    Worker(SETTINGS, tmp_path).run(job(tmp_path / "out"), items(96, 8))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert drawn == [item.name for item in cut_shards(items(96, 8), SETTINGS.engine)[1]]


def test_the_longest_shards_come_first():
    def shard(text: str, new_tokens: int) -> list[Item]:
        return [Item("i", lambda: [{"role": "user", "content": text}], Sampling(1.0, 1.0, new_tokens), 0, "g", {})]

    shards = [shard("a" * 40, 5), shard("a", 100), shard("a" * 90, 5), shard("a" * 40, 5)]
    assert Work("respond", shards, [], dict).order == [1, 2, 0, 3]


def test_shards_of_a_dead_rank_are_claimed_once_more(tmp_path):
    """Of four shards, a rank that died had claimed the first; another rank has claimed the second and writes it."""
    store, paths = dist.HashStore(), [tmp_path / str(i) for i in range(4)]
    store.add("claimed", 2)
    order = [2, 1, 0, 3]
    claimed = []
    for index in chain(unclaimed(store, order, paths), unwritten(store, order, paths)):
        claimed.append(index)
        write_shard(paths[1], [])
        if index != 2:
            write_shard(paths[index], [])
    assert claimed == [0, 3, 2]
    assert [*unclaimed(store, order, paths), *unwritten(store, order, paths)] == []  # no third time


@pytest.mark.parametrize(("dtype", "dies"), [("float32", False), pytest.param("int8", True, marks=needs_int8)])
def test_processes_of_one_thread_write_what_one_process_writes(dtype, dies, tmp_path, monkeypatch, capfd):
    """Also where a process dies before its shard is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    model, short = prepare(SETTINGS.model), replace(SETTINGS.respond, max_new_tokens=6)
    settings = replace(SETTINGS, model=replace(SETTINGS.model, dtype=dtype), respond=short)
    prompts = [{"id": f"p{i}", "prompt": "What is rain?" * i} for i in range(20)]
    own = os.getpid()

    def claims_of_the_dying(*arguments):
        for shard in unclaimed(*arguments):
            if os.getpid() != own:
                os._exit(9)
            yield shard

    def written(threads: int) -> dict[str, bytes]:
        worker = Worker(replace(settings, engine=replace(settings.engine, threads=threads)), model)
        out = tmp_path / str(threads)
        for stage in ("one", "two"):
            worker.run(job(out / stage, name=stage), response_items(prompts, worker.chat, settings, 1))
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.jsonl")}

    alone = written(1)
    if dies:
        monkeypatch.setattr(workers, "unclaimed", claims_of_the_dying)
    assert len(alone) == 2 * 4 and written(3) == alone
    assert "Traceback" not in capfd.readouterr().err


def test_a_fast_process_does_not_repeat_the_shard_of_a_slow_one(tmp_path, monkeypatch):
    own, made = os.getpid(), tmp_path / "made"

    def slowly(*arguments):
        for shard in unclaimed(*arguments):
            if os.getpid() != own:
                time.sleep(1)
            yield shard

    def note(name: str) -> None:
        with made.open("a") as file:
            file.write(f"{name}\n")

    fake_engine(monkeypatch, note)
    monkeypatch.setattr(workers, "unclaimed", slowly)
    settings = replace(SETTINGS, engine=replace(SETTINGS.engine, threads=2))
    Worker(settings, tmp_path).run(job(tmp_path / "out"), items(96, 8))
    assert sorted(made.read_text().split()) == sorted(item.name for item in items(96, 8))


def test_a_rank_that_repeats_a_shard_stops_when_it_is_written(tmp_path, monkeypatch):
    path, made = tmp_path / "shard.jsonl", []

    def note(name: str) -> None:
        made.append(name)
        if len(made) == 3:
            write_shard(path, [{"id": "of the slow rank"}])

    fake_engine(monkeypatch, note)
    Worker(SETTINGS, tmp_path)._take_part(Work("respond", [items(8, 8)], [path], lambda row: {}), [0], first=False)
    assert len(made) == 3 and path.read_text() == '{"id": "of the slow rank"}\n'


@pytest.fixture
def gpus(monkeypatch) -> SimpleNamespace:
    """A node with `count` GPUs for this process, whose numbers are their uuids."""
    node = SimpleNamespace(count=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: node.count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=device.index))
    for name in LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    return node


@pytest.mark.parametrize(
    ("count", "variables", "number"),
    [
        (8, "RANK=11 LOCAL_RANK=3", 3),
        (1, "RANK=11 LOCAL_RANK=3", 0),  # each rank sees a GPU of its own
        (8, "RANK=13 SLURM_LOCALID=5", 5),
        (8, "RANK=10 SLURM_LOCALID=0 OMPI_COMM_WORLD_LOCAL_RANK=2", 2),  # mpirun in a job of Slurm
        (8, "RANK=13", 5),
        (8, "", 0),
    ],
)
def test_the_gpu_of_a_rank_under_any_launcher(gpus, monkeypatch, count, variables, number):
    gpus.count = count
    for name, value in (entry.split("=") for entry in variables.split()):
        monkeypatch.setenv(name, value)
    assert local_device() == torch.device("cuda", number)


def test_two_ranks_on_one_gpu_are_an_error(gpus, monkeypatch):
    gpus.count, store = 2, dist.HashStore()
    for rank in ("0", "1", "1"):  # a rank may ask again
        monkeypatch.setenv("RANK", rank)
        local_device(store)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match=r"^ranks 0 and 2 are on one GPU \(0\); start a rank for each"):
        local_device(store)
