"""Work shards: a stage's requests cut into files of fixed content, claimed by ranks, written whole.

A shard's bytes are a function of its requests, the weights and the settings. So a killed run that is started again, on
any number of ranks, ends with the same bytes, and does only what is missing.
"""

import math
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from stages.files import is_complete


class Grouped(Protocol):
    @property
    def group(self) -> str: ...


T = TypeVar("T", bound=Grouped)


def cut_shards(items: list[T], shard_requests: int) -> list[list[T]]:
    """Consecutive items in shards of about equal size; at most `shard_requests` each, but a group is never divided.

    The number of shards is even, so that two ranks have as much to do.
    """
    shards: list[list[T]] = []
    size = len(items) / (2 * math.ceil(len(items) / shard_requests / 2) or 1)
    for i, item in enumerate(items):
        full = shards and i >= len(shards) * size and shards[-1][-1].group != item.group
        if not shards or full:
            shards.append([])
        shards[-1].append(item)
    return shards


def unclaimed(store: dist.Store, order: list[int], paths: list[Path]) -> Iterator[int]:
    """The shards, in `order`, that this rank is the first to claim, each once the one before is written."""
    with suppress(dist.DistError):  # rank 0, whose store it was, has ended
        # Claims count all shards, so that they mean the same to a rank that starts when others have written some.
        while (claim := store.add("claimed", 1) - 1) < len(order):
            if not paths[order[claim]].is_file():
                yield order[claim]


def unwritten(store: dist.Store, order: list[int], paths: list[Path]) -> Iterator[int]:
    """The shards that are claimed and not written, for one rank each to do once more instead of waiting.

    Their ranks may be slow or dead, and whoever writes a shard writes the same bytes.
    """
    for index in order:
        if not paths[index].is_file() and first_to_ask(store, f"again/{index}"):
            yield index


def first_to_ask(store: dist.Store, key: str) -> bool:
    """Whether no other rank has asked this before; when the store has gone with rank 0, each rank is on its own."""
    try:
        return store.add(key, 1) == 1
    except dist.DistError:
        return True


def completed_by_another(out: Path, key: str, patience: float = 900.0) -> bool:
    """Wait for the rank that finished first to write the manifest; False after `patience` seconds: it may be dead."""
    deadline = time.monotonic() + patience
    while not is_complete(out, key) and time.monotonic() < deadline:
        time.sleep(0.2)
    return is_complete(out, key)


def rendezvous(stage: str, key: str) -> tuple[dist.Store, int]:
    """The store that all ranks share, and this rank's number; a lone rank has a store of its own. No process group.

    Ranks come from torchrun, or from any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """
    if "RANK" not in os.environ:
        return dist.HashStore(), 0
    store, rank = _shared_store()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"{stage}/{key}/{attempt}", store), rank


@cache
def _shared_store() -> tuple[dist.Store, int]:
    """One a process: a stage in several rounds meets the others at the same address again."""
    store, rank, _ = next(iter(dist.rendezvous("env://")))
    return store, rank


def fork(run: Callable[[], None]) -> int:
    """Run `run` in a copy of this process, which then ends; an exception is printed. Returns the copy's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def count_records(records: Iterable[dict[str, Any]]) -> tuple[dict[str, int], int]:
    """How many records there are, and how many of each finish reason and failure; and how many tokens they have."""
    counts: Counter[str] = Counter()
    tokens = 0
    for row in records:
        tokens += len(row.get("ids", ()))
        counts["records"] += 1
        counts[row["finish_reason"]] += 1
        if row.get("failure"):
            counts[f"failure.{row['failure']}"] += 1
    return dict(counts), tokens
