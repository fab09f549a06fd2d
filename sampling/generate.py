"""Work units: a stage's requests cut into files of fixed content, claimed by ranks, written whole.

`torchrun -m sampling.generate` writes the responses; judging and meta-judging run their requests through a `Worker`
too. A unit's bytes are a function of its requests, the weights and the settings, so a killed run that is started again,
on any number of ranks, ends with the same bytes, and does only what is missing.
"""

import argparse
import ctypes
import gc
import hashlib
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from model.chat import ChatFormat, Message, load_chat
from model.dtype import generation_dtype
from model.weights import load_packed
from sampling.engine import Engine
from sampling.request import Completion, Request, Sampling
from stages.files import (
    UserError,
    command,
    digest,
    is_complete,
    read_jsonl,
    read_manifest,
    stage_key,
    write_jsonl,
    write_manifest,
)
from stages.progress import progress
from stages.settings import Engine as Options
from stages.settings import Settings, as_dict, load_settings


@dataclass(frozen=True)
class Item:
    """A request of a stage, its prompt made only when its unit is claimed: a stage may have half a million."""

    name: str
    messages: Callable[[], list[Message]]
    sampling: Sampling
    seed: int
    group: str
    """Items of one group share a prefix and stand in one unit; a stage lists them next to one another."""
    record: dict[str, Any]
    """What the output record says besides the completion."""
    begun: tuple[int, ...] = ()
    """Tokens that the answer is made to begin with."""
    named: tuple[int, ...] = ()
    """Tokens whose probabilities behind them are asked for."""

    def request(self, chat: ChatFormat) -> Request:
        ids = [*chat.prompt_ids(self.messages()), *self.begun]
        return Request(self.name, ids, self.sampling, self.seed, self.named)


def request_seed(seed: int, iteration: int, stage: str, item_id: str) -> int:
    """The noise stream of one item: 63 bits, a function of the run's seed and of what the item is."""
    text = f"{seed}/{iteration}/{stage}/{item_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def completion_fields(completion: Completion, chat: ChatFormat, seed: int) -> dict[str, Any]:
    """The fields of a record that every generating stage shares."""
    return {
        "ids": completion.ids,
        "text": chat.text(completion.ids),
        "finish_reason": completion.finish_reason,
        "logprob": round(completion.logprob, 4),
        "seed": seed,
    }


def generation_key(
    stage: str, settings: Settings, section: dict[str, Any], iteration: int, inputs: dict[str, Path | str]
) -> str:
    """The identity of a generating stage's work; `section` are the settings that it reads besides the engine's."""
    facts = {
        "section": section,
        "engine": as_dict(settings.engine),
        "dtype": settings.model.dtype,
        "attention": settings.model.attention,
        "seed": settings.seed,
        "iteration": iteration,
    }
    return stage_key(stage, facts, inputs)


def cut_units(items: list[Item], shard_requests: int) -> list[list[Item]]:
    """Consecutive items in units of about equal size, `unit_requests` at most but for whole groups; an even number, so
    that two ranks have as much to do."""
    units: list[list[Item]] = []
    size = len(items) / (2 * math.ceil(len(items) / shard_requests / 2) or 1)
    for i, item in enumerate(items):
        full = units and i >= len(units) * size and units[-1][-1].group != item.group
        if not units or full:
            units.append([])
        units[-1].append(item)
    return units


@dataclass(frozen=True)
class Work:
    """A stage's units, and where they are written."""

    units: list[list[Item]]
    paths: list[Path]
    missing: list[int]
    """The units that were not there at the start."""
    record: Callable[[Item, Completion], dict[str, Any]]


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


class Worker:
    """One process's part in what a model is asked: its chat format, and an engine, which is loaded when first needed.

    Under torchrun it works together with the other ranks.
    """

    def __init__(self, settings: Settings, model_dir: Path):
        self.settings, self.model_dir = settings, model_dir
        self.chat = load_chat(model_dir)
        self._engine: Engine | None = None

    def engine(self, log: bool) -> Engine:
        self._engine = self._engine or load_engine(self.settings, self.model_dir, log=log)
        return self._engine

    def record(self, item: Item, completion: Completion) -> dict[str, Any]:
        """What is written of a completion where nothing is read out of it."""
        return item.record | completion_fields(completion, self.chat, item.seed)

    def run(
        self,
        stage: str,
        items: list[Item],
        out: Path,
        key: str,
        record: Callable[[Item, Completion], dict[str, Any]] | None = None,
    ) -> None:
        """Complete all items and write `out`/units-*/*.jsonl and the manifest.

        Returns when the manifest is there. Nothing is done when `out` is complete for `key` already. `record` makes
        what is written of a completion.
        """
        if is_complete(out, key):
            return
        started = time.monotonic()
        units = cut_units(items, self.settings.engine.shard_requests)
        folder = out / f"units-{key[:12]}"
        paths = [folder / f"{i:05}.jsonl" for i in range(len(units))]
        work = Work(units, paths, [i for i, path in enumerate(paths) if not path.is_file()], record or self.record)
        forks = min(cpu_processes(self.settings.engine), len(work.missing)) - 1
        store, rank = _rendezvous(stage, key)
        if "RANK" not in os.environ and forks > 0:
            self._share(work, stage, forks)
        else:
            order = longest_first(work.units)
            indices = chain(unclaimed(store, order, paths), unwritten(store, order, paths))
            self._take_part(work, stage, indices, first=rank == 0)
        while not all(path.is_file() for path in paths):  # other ranks' last units
            time.sleep(0.2)
        if is_complete(out, key) or (not _first(store, "finished") and _completed_by_another(out, key)):
            return
        counts, new_tokens = count_records(row for path in paths for row in read_jsonl(path))
        write_manifest(
            out,
            stage,
            key,
            paths,
            units=[str(path.relative_to(out)) for path in paths],
            counts=counts,
            new_tokens=new_tokens,
            seconds=round(time.monotonic() - started, 1),
            **self.facts(),
        )
        for old in out.glob("units-*"):
            if old != folder:
                shutil.rmtree(old)

    def _take_part(self, work: Work, stage: str, indices: Iterable[int], first: bool) -> None:
        """Write these units; the `first` rank shows how far all are."""
        bar = progress(sum(len(work.units[i]) for i in work.missing), stage, "req", first=first)

        def count_others() -> None:
            bar.update(sum(len(work.units[i]) for i in work.missing if work.paths[i].is_file()) - bar.n)

        for index in indices:
            engine, unit, rows = self.engine(log=first), work.units[index], {}
            named = {item.name: item for item in unit}
            for completion in engine.run([item.request(self.chat) for item in unit]):
                if work.paths[index].is_file():  # by the rank that claimed it first, and was slow
                    break
                rows[completion.id] = work.record(named[completion.id], completion)
                bar.update()
            else:
                write_jsonl(work.paths[index], (rows[item.name] for item in unit))
            count_others()
        count_others()
        bar.close()

    def _share(self, work: Work, stage: str, forks: int) -> None:
        """Take part as the first of several ranks, the others copies of this process; they meet in a file.

        When all copies have ended, this process writes the units of those that died.
        """
        self.engine(log=True)
        parent, order = os.getpid(), longest_first(work.units)
        with tempfile.TemporaryDirectory() as folder:

            def follow() -> None:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: Linux ends the copy with its parent
                if os.getppid() == parent:
                    store = dist.FileStore(f"{folder}/claims")
                    self._take_part(work, stage, unclaimed(store, order, work.paths), first=False)

            def lead() -> Iterator[int]:
                store = dist.FileStore(f"{folder}/claims")
                yield from unclaimed(store, order, work.paths)
                while copies:
                    os.waitpid(copies[-1], 0)
                    copies.pop()
                yield from unwritten(store, order, work.paths)

            copies = [fork(follow) for _ in range(forks)]
            try:
                self._take_part(work, stage, lead(), first=True)
            finally:
                for copy in copies:
                    os.kill(copy, signal.SIGTERM)
                    os.waitpid(copy, 0)

    def facts(self) -> dict[str, Any]:
        """What a manifest says of how the records were made."""
        settings = self.settings
        return {
            "weights": digest(self.model_dir),
            "settings": {
                "engine": as_dict(settings.engine),
                "dtype": settings.model.dtype,
                "attention": settings.model.attention,
                "seed": settings.seed,
            },
            "compute_dtype": str(generation_dtype(settings.model.dtype, local_device())).removeprefix("torch."),
            "environment": environment(),
        }


def longest_first(units: list[list[Item]]) -> list[int]:
    """The units' numbers, those with the most text to read and to write first, so that no rank starts a long one last.

    Counted in characters, four to a token: nothing is tokenized before its unit is claimed.
    """

    def length(unit: list[Item]) -> int:
        texts = sum(len(message["content"]) for item in unit for message in item.messages())
        return texts + sum(4 * item.sampling.max_new_tokens for item in unit)

    lengths = [length(unit) for unit in units]
    return sorted(range(len(units)), key=lambda i: -lengths[i])


def unclaimed(store: dist.Store, order: list[int], paths: list[Path]) -> Iterator[int]:
    """The units, in `order`, that this rank is the first to claim, each once the one before is written."""
    with suppress(dist.DistError):  # the store was rank 0's, which has ended
        # Claims count all units, so that they mean the same to a rank that starts when others have written some.
        while (claim := store.add("claimed", 1) - 1) < len(order):
            if not paths[order[claim]].is_file():
                yield order[claim]


def unwritten(store: dist.Store, order: list[int], paths: list[Path]) -> Iterator[int]:
    """Rather than wait for them: the units that are claimed and not written, once more each.

    Their ranks may be slow or dead, and whoever writes a unit writes the same bytes.
    """
    for index in order:
        if not paths[index].is_file() and _first(store, f"again/{index}"):
            yield index


def _first(store: dist.Store, key: str) -> bool:
    """Whether no other rank has asked this before; where the store has gone with rank 0, each rank is on its own."""
    try:
        return store.add(key, 1) == 1
    except dist.DistError:
        return True


def _completed_by_another(out: Path, key: str, patience: float = 900.0) -> bool:
    """Wait for the rank that finished first to write the manifest; False after `patience` seconds: it may be dead."""
    deadline = time.monotonic() + patience
    while not is_complete(out, key) and time.monotonic() < deadline:
        time.sleep(0.2)
    return is_complete(out, key)


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


def read_units(folder: Path | str) -> Iterator[dict[str, Any]]:
    """All records of a finished generating stage, in the order of its items."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: not a finished stage (no manifest.json); run the stage that writes it")
    for name in manifest["units"]:
        yield from read_jsonl(Path(folder) / name)


def environment() -> dict[str, str]:
    """What besides settings and inputs may change a result's last bits."""
    names = [name for name in ("torch", "triton", "tokenizers", "safetensors") if find_spec(name)]
    processor = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else str(processor)
    return {name: version(name) for name in names} | {"python": platform.python_version(), "device": device}


def first_rank() -> bool:
    """Whether this rank writes what all of them know."""
    return os.environ.get("RANK", "0") == "0"


def local_device() -> torch.device:
    """This rank's accelerator, which becomes the current one, as kernels are launched there; or the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _rendezvous(stage: str, key: str) -> tuple[dist.Store, int]:
    """The store that all ranks share, and this one's rank; a lone rank has a store of its own. No process group.

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


def cpu_processes(options: Options) -> int:
    """How many processes of one thread each take the place of one with several: on a CPU as many.

    Threads wait for each other some thousand times a second. Processes never do, and beside other programs they lose
    only what those take.
    """
    return 1 if torch.cuda.is_available() else options.threads


def load_engine(settings: Settings, model_dir: Path, log: bool = True) -> Engine:
    """An engine by the settings; says on standard error in what it computes, and how much memory its cache takes."""
    device, options = local_device(), settings.engine
    torch.set_num_threads(options.threads // cpu_processes(options))
    gc.collect()  # an engine of an earlier round, kept by a cycle, would keep its cache
    products = generation_dtype(settings.model.dtype, device)
    model = load_packed(model_dir, products, device)
    engine = Engine(
        model,
        num_kv_blocks=options.num_kv_blocks,
        block_size=options.block_size,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=options.max_num_seqs,
        attention=settings.model.attention,
        cuda_graphs=options.cuda_graphs,
    )
    if log:
        dtype, cache = str(products).removeprefix("torch."), engine.cache
        dtype += ", the rest float32," if products == torch.int8 else ""
        processes = int(os.environ.get("WORLD_SIZE", cpu_processes(options)))
        where = f"{device}, {processes} thread{'s'[: processes > 1]}" if device.type == "cpu" else f"{device}"
        tokens = options.num_kv_blocks * options.block_size
        tqdm.write(f"{dtype} on {where}; KV cache {cache.nbytes / 2**20:.0f} MiB, {tokens} tokens", file=sys.stderr)
    return engine


def response_items(prompts: Iterable[dict[str, Any]], chat: ChatFormat, settings: Settings, iteration: int):
    """K requests for each prompt."""
    respond = settings.respond
    sampling = Sampling(respond.temperature, respond.top_p, respond.max_new_tokens, chat.stop_ids)
    for row in prompts:
        messages = [{"role": "user", "content": row["prompt"]}]
        for sample in range(respond.K):
            name = f"{row['id']}/r{sample}"
            seed = request_seed(settings.seed, iteration, "respond", name)
            known = {"id": name, "prompt_id": row["id"], "sample": sample, "prompt": row["prompt"]}
            yield Item(name, messages.copy, sampling, seed, row["id"], known)


def respond_key(settings: Settings, model_dir: Path, prompts: Path, iteration: int) -> str:
    """The identity of the responses' work."""
    inputs: dict[str, Path | str] = {"model": model_dir, "prompts": prompts}
    section = as_dict(settings.respond)
    del section["prompts"], section["prompts_per_iteration"]  # what was drawn is an input
    return generation_key("respond", settings, section, iteration, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample K responses to each prompt.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines of {id, prompt}")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    worker = Worker(settings, arguments.model)
    prompts = read_jsonl(arguments.prompts, ("id", "prompt"))
    items = list(response_items(prompts, worker.chat, settings, arguments.iteration))
    key = respond_key(settings, arguments.model, arguments.prompts, arguments.iteration)
    worker.run("respond", items, arguments.out, key)


if __name__ == "__main__":
    command(main)
