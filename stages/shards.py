"""Work shards: a stage's requests in files whose bytes depend on requests, weights and settings alone, so that a killed
run ends with the same bytes on any number of ranks. A rank claims a shard and writes it whole."""

import hashlib
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from stages.command import UserError, command
from stages.files import digest, is_complete, to_json, write_atomic
from stages.settings import EngineOptions

LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "RANK")  # by torchrun, mpirun, srun, or all


def cut_shards(items: list[Any], engine: EngineOptions) -> list[list[Any]]:
    """Consecutive items in shards of about equal size; items of one `group` stay together."""
    shards: list[list[Any]] = []
    size = len(items) / (engine.shards(len(items)) or 1)
    for i, item in enumerate(items):
        if not shards or (i >= len(shards) * size and shards[-1][-1].group != item.group):
            shards.append([])
        shards[-1].append(item)
    return shards


def write_shard(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a shard and, before it, its digest, as `sha256sum -c` reads it."""
    content = "".join(to_json(row, path) for row in rows).encode()
    write_atomic(path.with_suffix(".sha256"), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    write_atomic(path, content)


def is_written(path: Path) -> bool:
    """Whether a shard is there, with the bytes that a rank has written: a killed run's may have changed since."""
    side = path.with_suffix(".sha256")
    return path.is_file() and side.is_file() and side.read_bytes() == f"{digest(path)}  {path.name}\n".encode()


def unclaimed(store: dist.Store, order: list[int], paths: list[Path]) -> Iterator[int]:
    """The shards, in `order`, that this rank claims first; it claims a shard when the one before is written."""
    with suppress(dist.DistError):  # rank 0, which has the store, has ended
        # Claims count written shards, too, so that a rank which starts later agrees on their numbers.
        while (claim := store.add("claimed", 1) - 1) < len(order):
            if not is_written(paths[order[claim]]):
                yield order[claim]


def unwritten(store: dist.Store, order: list[int], paths: list[Path]) -> Iterator[int]:
    """The claimed shards that are not written, since their ranks are slow or dead; one other rank does each again."""
    return (index for index in order if not is_written(paths[index]) and first_to_ask(store, f"again/{index}"))


def first_to_ask(store: dist.Store, key: str) -> bool:
    """Whether this rank is the first to ask with `key`; true for every rank once rank 0, with the store, has ended."""
    try:
        return store.add(key, 1) == 1
    except dist.DistError:
        return True


def is_first_to_end(store: dist.Store, out: Path, key: str, patience: float = 900.0) -> bool:
    """Whether this rank writes the manifest; another rank waits until the first has, `patience` seconds at most."""
    if first_to_ask(store, "finished"):
        return True
    deadline = time.monotonic() + patience
    while not (complete := is_complete(out, key)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not complete


def rendezvous(stage: str, key: str) -> tuple[dist.Store, int]:
    """The store that all ranks share, and this rank's number, from torchrun's variables; a lone rank has its own store.
    Needs no process group."""
    if "RANK" not in os.environ:
        return dist.HashStore(), 0
    store, rank, _ = _meeting()
    return dist.PrefixStore(f"{stage}/{key}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store), rank


def local_device(store: dist.Store | None = None) -> torch.device:
    """This rank's GPU, made the current device, on which kernels are launched; or the CPU. Raises `UserError` where
    another rank of the `store` has the same GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(next((os.environ[name] for name in LOCAL_RANKS if name in os.environ), "0"))
    device = torch.device("cuda", number % torch.cuda.device_count())  # a launcher may show each rank only its own
    torch.cuda.set_device(device)
    uuid, rank, first = torch.cuda.get_device_properties(device).uuid, os.environ.get("RANK", "0"), b""
    with suppress(dist.DistError):  # rank 0, which has the store, has ended
        first = store.compare_set(f"gpu/{uuid}", "", rank) if store else first
    if first not in (b"", rank.encode()):
        advice = "start a rank for each, no more, and give each its number on its node as LOCAL_RANK"
        raise UserError(f"ranks {first.decode()} and {rank} are on one GPU ({uuid}); {advice}")
    return device


@cache  # one store for the whole process, since all rounds of a stage meet at the same address
def _meeting() -> tuple[dist.Store, int, int]:
    return next(iter(dist.rendezvous("env://")))


def fork(run: Callable[[], None]) -> int:
    """Call `run`, as a command, in a copy of this process, which then ends. Returns the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork() or end_process(lambda: command(run))


def end_process(run: Callable[[], None]) -> NoReturn:
    """Run a command and end the process with its exit code, without finalisation of the interpreter, in which a thread
    of gloo that frees a tensor would abort the process (pytorch/pytorch issues 38228, 190489)."""
    code: Any = 0
    try:
        run()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def count_records(records: Iterable[dict[str, Any]]) -> tuple[dict[str, int], int]:
    """The number of records, in all and by finish reason and failure; and the number of their tokens."""
    counts: Counter[str] = Counter()
    tokens = 0
    for row in records:
        tokens += len(row.get("ids", ()))
        counts.update(("records", row["finish_reason"]))
        if failure := row.get("failure"):
            counts[f"failure.{failure}"] += 1
    return dict(counts), tokens
