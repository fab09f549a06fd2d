"""A worker claims shards of a stage's requests to a model, and completes and writes them, as other ranks do."""

import ctypes
import gc
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
from model.llama import Llama
from model.weights import load_packed
from sampling.engine import Engine
from sampling.request import Completion, Request, Sampling
from stages import shards
from stages.files import read_jsonl
from stages.progress import progress
from stages.records import Record as Row
from stages.settings import EngineOptions, Settings, as_dict
from stages.shards import is_written, local_device, rendezvous, unclaimed, write_shard
from stages.stage import Job, Output

Verdict = Callable[[Row], Row]  # from a completion's row to further fields, such as a judgment's score


def sampling_of(section: Any, chat: ChatFormat) -> Sampling:
    """The sampling of a section of the settings; the tokens that end the model's turn stop it."""
    return Sampling(section.temperature, section.top_p, section.max_new_tokens, chat.stop_ids)


@dataclass(frozen=True)
class Item:  # a request of a stage, of which there may be half a million. Its prompt is made when its shard is claimed
    name: str
    messages: Callable[[], list[Message]]
    sampling: Sampling
    seed: int
    group: str  # items of a group share a prefix and stand in one shard; a stage gives them one after another
    record: Row  # the fields of the output row besides those of the completion
    begun: tuple[int, ...] = ()  # tokens that the answer is forced to begin with
    named: tuple[int, ...] = ()  # tokens whose probabilities at the next position are the completion

    def request(self, chat: ChatFormat) -> Request:
        ids = [*chat.prompt_ids(self.messages()), *self.begun]
        return Request(self.name, ids, self.sampling, self.seed, self.named)

    def row(self, completion: Completion, chat: ChatFormat) -> Row:
        """The output row of the request: the sampled tokens, or the probabilities of the `named` tokens."""
        ids, reason = completion.ids, completion.finish_reason
        if self.named:
            probabilities = [round(p, 6) for p in completion.probabilities]
            return self.record | {"finish_reason": reason, "probabilities": probabilities}
        sampled = {"ids": ids, "text": chat.text(ids), "finish_reason": reason}
        return self.record | sampled | {"logprob": round(completion.logprob, 4), "seed": self.seed}


def generation_settings(settings: Settings, iteration: int, section: Any) -> Row:
    """The settings that the output of a generating stage depends on, for its key; `section` are the stage's own."""
    return {"section": section, "iteration": iteration, **_common_settings(settings)}


def _common_settings(settings: Settings) -> Row:
    engine, model = as_dict(settings.engine), settings.model
    return {"engine": engine, "dtype": model.dtype, "attention": model.attention, "seed": settings.seed}


@dataclass(frozen=True)
class Work:  # the shards of a stage, and the files that they are written to
    stage: str
    shards: list[list[Item]]
    paths: list[Path]
    verdict: Verdict

    @property
    def order(self) -> list[int]:
        """The shards' numbers by falling length of prompts and completions, so that no rank starts a long shard last.
        Length is in characters, four to a token, since prompts are not tokenized before their shard is claimed."""

        def length(item: Item) -> int:
            return sum(len(message["content"]) for message in item.messages()) + 4 * item.sampling.max_new_tokens

        return sorted(range(len(self.shards)), key=lambda i: -sum(map(length, self.shards[i])))

    def missing(self) -> list[int]:
        """The numbers of the shards that are not written."""
        return [i for i, path in enumerate(self.paths) if not is_written(path)]


class Worker:
    """A process's model for the requests of stages: its chat format, and an engine that is loaded when first needed."""

    def __init__(self, settings: Settings, model_dir: Path):
        self.settings, self.model_dir = settings, model_dir
        self.chat = load_chat(model_dir)
        self._engine: Engine | None = None

    def engine(self, log: bool) -> Engine:
        self._engine = self._engine or load_engine(self.settings, self.model_dir, log=log)
        return self._engine

    def run(self, job: Job, items: Iterable[Item], verdict: Verdict = lambda row: {}, **extra: Iterable[Any]) -> None:
        """Complete all items and write shards-*/*.jsonl and the manifest; returns when it exists, on any rank. `extra`:
        rows of further JSON-lines files, by name without ".jsonl"."""
        if job.complete:
            return
        started = time.monotonic()
        cut = shards.cut_shards(list(items), self.settings.engine)
        folder = job.out / f"shards-{job.key[:12]}"
        paths = [folder / f"{i:05}.jsonl" for i in range(len(cut))]
        work = Work(job.name, cut, paths, verdict)
        copies = min(cpu_processes(self.settings.engine), len(work.missing())) - 1
        store, rank = rendezvous(job.name, job.key)
        device = local_device(store)
        if "RANK" not in os.environ and copies > 0:
            self._share(work, copies)
        else:
            claims = (store, work.order, paths)
            self._take_part(work, chain(unclaimed(*claims), shards.unwritten(*claims)), first=rank == 0)
        while work.missing():  # other ranks' last shards
            time.sleep(0.2)
        if not job.complete and shards.is_first_to_end(store, job.out, job.key):
            counts, new_tokens = shards.count_records(row for path in paths for row in read_jsonl(path))
            facts = {"counts": counts, "new_tokens": new_tokens, "seconds": round(time.monotonic() - started, 1)}
            facts |= {"shards": [str(path.relative_to(job.out)) for path in paths], "environment": environment()}
            dtype = str(generation_dtype(self.settings.model.dtype, device)).removeprefix("torch.")
            facts |= {"settings": _common_settings(self.settings), "compute_dtype": dtype}
            Output({f"{name}.jsonl": rows for name, rows in extra.items()}, facts, paths).write(job)
            for old in set(job.out.glob("shards-*")) - {folder}:
                shutil.rmtree(old)

    def _take_part(self, work: Work, indices: Iterable[int], first: bool) -> None:
        """Complete and write these shards; the `first` rank shows the progress of all ranks."""
        sizes = {work.paths[i]: len(work.shards[i]) for i in work.missing()}
        bar = progress(sum(sizes.values()), work.stage, "req", first=first)

        def count_others() -> None:
            bar.update(sum(size for path, size in sizes.items() if path.is_file()) - bar.n)

        for index in indices:
            engine, shard, rows = self.engine(log=first), work.shards[index], {}
            items = {item.name: item for item in shard}
            for completion in engine.run([item.request(self.chat) for item in shard]):
                if is_written(work.paths[index]):  # the slow rank that claimed the shard first has written it
                    break
                row = items[completion.id].row(completion, self.chat)
                rows[completion.id] = row | work.verdict(row)
                bar.update()
            else:
                write_shard(work.paths[index], (rows[item.name] for item in shard))
            count_others()
        count_others()
        bar.close()

    def _share(self, work: Work, count: int) -> None:
        """Share the shards with `count` copies of this process, and write the shards of copies that died."""
        self.engine(log=True)
        parent, order = os.getpid(), work.order
        with tempfile.TemporaryDirectory() as folder:

            def follow() -> None:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: Linux ends the copy with its parent
                if os.getppid() == parent:
                    store = dist.FileStore(f"{folder}/claims")
                    self._take_part(work, unclaimed(store, order, work.paths), first=False)

            def lead() -> Iterator[int]:
                store = dist.FileStore(f"{folder}/claims")
                yield from unclaimed(store, order, work.paths)
                while copies:
                    os.waitpid(copies[-1], 0)
                    copies.pop()
                yield from shards.unwritten(store, order, work.paths)

            copies = [shards.fork(follow) for _ in range(count)]
            try:
                self._take_part(work, lead(), first=True)
            finally:
                for copy in copies:
                    os.kill(copy, signal.SIGTERM)
                    os.waitpid(copy, 0)


def environment() -> dict[str, str]:
    """Package versions and the device: besides settings and inputs, they may change the last bits of a result."""
    versions = {name: version(name) for name in ("torch", "triton", "tokenizers", "safetensors") if find_spec(name)}
    processor = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else str(processor)
    return versions | {"python": platform.python_version(), "device": device}


def cpu_processes(options: EngineOptions) -> int:
    """How many processes generate: on a CPU one for each thread, since threads wait for an interrupted one."""
    return 1 if torch.cuda.is_available() else options.threads


def new_engine(model: Llama, settings: Settings) -> Engine:
    names = ("num_kv_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs", "cuda_graphs")
    chosen = {name: getattr(settings.engine, name) for name in names}
    return Engine(model, attention=settings.model.attention, **chosen)


def load_engine(settings: Settings, model_dir: Path, log: bool = True) -> Engine:
    """An engine as the settings describe it. With `log`, standard error gets its dtype, device and cache size."""
    device, options = local_device(), settings.engine
    torch.set_num_threads(options.threads // cpu_processes(options))
    gc.collect()  # an engine of an earlier round, kept by a cycle, would keep its cache
    products = generation_dtype(settings.model.dtype, device)
    engine = new_engine(load_packed(model_dir, products, device), settings)
    if log:
        dtype = str(products).removeprefix("torch.") + ", the rest float32," * (products == torch.int8)
        processes = int(os.environ.get("WORLD_SIZE", cpu_processes(options)))
        where = f"{device}, {processes} process{'es' * (processes > 1)}" if device.type == "cpu" else f"{device}"
        size, tokens = engine.cache.nbytes / 2**20, options.num_kv_blocks * options.block_size
        tqdm.write(f"{dtype} on {where}; KV cache {size:.0f} MiB, {tokens} tokens", file=sys.stderr)
    return engine
