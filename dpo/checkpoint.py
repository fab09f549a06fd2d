"""Checkpoints: the state that a stopped run continues from, and the export that the next stage reads.

Both are copied to the CPU's memory, and written while training goes on: under a temporary name, synced and renamed. A
manifest says what belongs to them.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from dpo.lora import merged, save_peft
from dpo.parallel import World
from model.llama import Llama
from model.weights import save_pretrained
from stages.command import MAKE_ROOM, UserError
from stages.files import MANIFEST, is_complete, read_manifest, write_manifest
from stages.stage import Job


@dataclass
class Progress:  # all of a run's state that is not a tensor; schedule and data order are functions of it
    key: str  # identity of the work that the state belongs to
    step: int = 0  # updates done
    epoch: int = 0  # epochs done
    position: int = 0  # global batches done in the current epoch
    metrics_bytes: int = 0  # length of metrics.jsonl; a continued run cuts off what follows
    seconds: float = 0.0  # training time over all starts
    exported: dict[str, Any] = field(default_factory=dict)  # number and held-out metrics of the exported epoch
    first_loss: float | None = None  # of the first batch, before any update
    last: dict[str, float] = field(default_factory=dict)  # the last batch's means of the loss terms

    @property
    def state(self) -> str:  # the name of the state's folder
        return f"state-{self.epoch:04}-{self.step:08}"

    def export(self, folder: Path) -> Path:  # the exported epoch's
        return folder / f"epoch-{self.exported.get('epoch')}"


Write = Callable[[World], None]  # writes what has been copied; its collectives are those of the world given


class Writer:
    """A thread that writes beside training, one job at a time. Its collectives have a group of their own."""

    def __init__(self, world: World, timeout_minutes: float):
        group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
        self.world, self.thread = replace(world, group=group), ThreadPoolExecutor(1)
        self.begun: Future[None] = self.thread.submit(lambda: None)

    def begin(self, *writes: Write) -> None:
        self.begun = self.thread.submit(self._run, writes)

    def _run(self, writes: tuple[Write, ...]) -> None:
        with torch.accelerator.device_index(self.world.device.index):  # a thread starts with the first GPU
            for write in writes:
                write(self.world)
        dist.barrier(self.world.group)

    @property
    def failed(self) -> bool:
        return self.begun.done() and self.begun.exception() is not None

    def wait(self) -> None:
        """Wait for the job that has begun, and raise its error."""
        self.begun.result()


def save_state(folder: Path, model: Llama, optimizer: torch.optim.Optimizer, progress: Progress) -> Write:
    """Copy the state, to be written as `folder`/state-EPOCH-STEP, each rank its own part, and the progress, to
    `folder`'s manifest, which covers state and export. Then older states and exports are removed."""
    tensors = {name: tensor.to("cpu", copy=True) for name, tensor in _tensors(model, optimizer).items()}
    final, exported, facts = folder / progress.state, progress.export(folder), asdict(progress)

    def write(world: World) -> None:
        temporary = folder / f".{final.name}.tmp"  # never reused: other nodes may cache where a folder was
        world.agree(lambda: world.remove(folder.glob(".state-*")))
        try:
            dcp.save(tensors, checkpoint_id=temporary, process_group=world.group)
        except dcp.CheckpointException as error:  # on every rank; no `Exception`
            reason, _ = next(iter(error.failures.values()))
            raise UserError(f"{final}: not written ({reason}); {MAKE_ROOM}") from None
        if world.first:
            _publish(temporary, final)
            files = filter(Path.is_file, (*final.iterdir(), *exported.rglob("*")))
            write_manifest(folder, "state", facts["key"], files, progress=facts)
        world.remove({*folder.glob("state-*"), *folder.glob("epoch-*")} - {final, exported})

    return write


def saved_progress(folder: Path, key: str) -> Progress | None:
    """The progress of the state in `folder` that belongs to the work `key`. None without one, and for one whose files
    have not the digests that this run has noted: a state's metadata is a pickle, and could run code."""
    return Progress(**(read_manifest(folder) or {})["progress"]) if is_complete(folder, key) else None


def load_state(folder: Path, progress: Progress, model: Llama, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer exactly as they were saved; the number of ranks may have changed."""
    for moments in optimizer.state.values():
        moments["step"].fill_(progress.step)
    dcp.load(_tensors(model, optimizer), checkpoint_id=folder / progress.state)


def _tensors(model: Llama, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The trained fp32 parameters and Adam's moments by name. DCP reads and writes each rank's rows in place."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in trained.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"{moment}.{name}": optimizer.state[p][moment] for name, p in trained.items()}
    return tensors


def export(world: World, model: Llama, source: Path, folder: Path, peft: bool = False) -> Write:
    """Copy the model in bf16 to the first rank, where it will be written, with the configuration and tokenizer of
    `source`. `peft`: adapters, which are merged, are at once written by themselves, in `folder`/adapter."""
    temporary, parameters = folder.with_name(f".{folder.name}.tmp"), list[tuple[str, Tensor]]()
    if world.first:
        shutil.rmtree(temporary, ignore_errors=True)
        if peft:
            save_peft(model, source, temporary / "adapter")
    for name, local in merged(model):
        tensor = local.to(torch.bfloat16)
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # collective
        parameters += [(name, whole.cpu())] if world.first else []

    def write(world: World) -> None:
        if world.first:
            save_pretrained(parameters, model.config, source, temporary)
            for path in temporary.rglob("*"):
                _sync(path)
            _publish(temporary, folder)

    return write


def finish(exported: Path, job: Job, **facts: Any) -> None:
    """Write an export's manifest and move the export to its final place; no state is needed any more."""
    files = [path for path in exported.rglob("*") if path.is_file() and path.name != MANIFEST]
    write_manifest(exported, job.name, job.key, files, **facts, inputs=job.lineage())
    job.out.parent.mkdir(parents=True, exist_ok=True)
    _publish(exported, job.out)
    (exported.parent / MANIFEST).unlink(missing_ok=True)


def _publish(temporary: Path, final: Path) -> None:
    """Rename a finished folder to its final name, replacing an older one."""
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
