"""Checkpoints: the state that a stopped run continues from, and the export that the next stage reads.

Both are written under a temporary name, synced and renamed: a folder with its final name is always whole.
"""

import json
import os
import shutil
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from dpo.parallel import World
from model.llama import Llama
from model.weights import save_pretrained
from stages.files import MANIFEST, write_json, write_manifest
from stages.stage import Job

PROGRESS = "progress.json"


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


def save_state(folder: Path, world: World, model: Llama, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write `folder`/state-EPOCH-STEP, each rank its own part, and remove older states."""
    final = folder / f"state-{progress.epoch:04}-{progress.step:08}"
    temporary = folder / f".{final.name}.tmp"  # never reused: other nodes may cache where a folder was
    world.remove(folder.glob(".state-*"))
    dist.barrier()
    dcp.save(_tensors(model, optimizer), checkpoint_id=temporary)
    if world.first:
        write_json(temporary / PROGRESS, asdict(progress))
        _publish(temporary, final)
    world.remove(old for old in folder.glob("state-*") if old != final)
    dist.barrier()


def latest_state(folder: Path, key: str) -> Path | None:
    """The newest state in `folder` that belongs to the work `key`."""
    paths = sorted(folder.glob(f"state-*/{PROGRESS}"), reverse=True)
    return next((path.parent for path in paths if json.loads(path.read_text(encoding="utf-8"))["key"] == key), None)


def load_state(state: Path, model: Llama, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill model and optimizer exactly as they were saved; the number of ranks may have changed."""
    progress = Progress(**json.loads((state / PROGRESS).read_text(encoding="utf-8")))
    for moments in optimizer.state.values():
        moments["step"].fill_(progress.step)
    dcp.load(_tensors(model, optimizer), checkpoint_id=state)
    return progress


def _tensors(model: Llama, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The fp32 parameters and Adam's two moments by name. DCP reads and writes each rank's rows in place."""
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for moment in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"{moment}.{name}": optimizer.state[p][moment] for name, p in model.named_parameters()}
    return tensors


def export(world: World, model: Llama, source: Path, folder: Path) -> None:
    """Write the model in bf16, with the configuration and tokenizer of `source`; no rank holds the whole model."""
    local = ((name, cast(DTensor, p.detach().to(torch.bfloat16))) for name, p in model.named_parameters())
    parameters = ((name, tensor.full_tensor().cpu()) for name, tensor in local)
    if world.first:
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        save_pretrained(parameters, model.config, source, temporary)
        for path in temporary.iterdir():
            _sync(path)
        _publish(temporary, folder)
    deque(parameters, maxlen=0)  # on the other ranks: gathering is collective
    dist.barrier()


def finish(exported: Path, job: Job, **facts: Any) -> None:
    """Write an export's manifest and move the export to its final place."""
    files = [path for path in exported.iterdir() if path.name != MANIFEST]
    write_manifest(exported, job.name, job.key, files, **facts, inputs=job.lineage())
    job.out.parent.mkdir(parents=True, exist_ok=True)
    _publish(exported, job.out)


def _publish(temporary: Path, final: Path) -> None:
    """Rename a finished folder to its final name, replacing an older one."""
    _sync(temporary)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
