"""Checkpoints: the state that a stopped run continues from, and the export that the next stage reads.

Both are written under another name, synced and renamed, so that a folder with its final name is always whole.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from dpo.parallel import World
from model.llama import Llama
from model.weights import save_pretrained
from stages.files import MANIFEST, write_json, write_manifest

PROGRESS = "progress.json"


@dataclass
class Progress:
    """Where a run stands: all of its state that is no tensor. Schedule and data order are functions of it."""

    key: str
    """What work the state belongs to (`files.stage_key`)."""
    step: int = 0
    """Updates done."""
    epoch: int = 0
    """Epochs done."""
    position: int = 0
    """Global batches done of the epoch under way."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl: lines that a run wrote after its last state are cut off."""
    seconds: float = 0.0
    """Time spent in training, over all starts."""
    exported: dict[str, Any] = field(default_factory=dict)
    """The metrics of the epoch that is exported so far; empty when none is."""
    first_loss: float | None = None
    """The first batch's loss, before any update."""


def save_state(folder: Path, world: World, model: Llama, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write `folder`/state-EPOCH-STEP, each rank its own part, and remove older states."""
    final = folder / f"state-{progress.epoch:04}-{progress.step:08}"
    temporary = folder / f".{final.name}.tmp"  # another each time: other nodes may remember a folder's old place
    if world.first:
        for torn in folder.glob(".state-*"):
            shutil.rmtree(torn)
    dist.barrier()
    dcp.save(_tensors(model, optimizer), checkpoint_id=temporary)
    if world.first:
        write_json(temporary / PROGRESS, asdict(progress))
        _publish(temporary, final)
        for old in folder.glob("state-*"):
            if old != final:
                shutil.rmtree(old)
    dist.barrier()


def latest_state(folder: Path, key: str) -> Path | None:
    """The newest state in `folder`, if it belongs to the work `key`."""
    found = sorted(folder.glob(f"state-*/{PROGRESS}"))
    own = [path.parent for path in found if json.loads(path.read_text(encoding="utf-8"))["key"] == key]
    return own[-1] if own else None


def load_state(state: Path, model: Llama, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill model and optimizer, exactly as they were; the number of ranks may differ from the one that saved."""
    progress = Progress(**json.loads((state / PROGRESS).read_text(encoding="utf-8")))
    for moments in optimizer.state.values():
        moments["step"].fill_(progress.step)
    dcp.load(_tensors(model, optimizer), checkpoint_id=state)
    return progress


def _tensors(model: Llama, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The fp32 parameters and Adam's two moments, by name; DCP reads and writes them in place, each rank its rows."""
    tensors = {}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        tensors[f"parameter.{name}"] = parameter.detach()
        tensors |= {f"{moment}.{name}": moments[moment] for moment in ("exp_avg", "exp_avg_sq")}
    return tensors


def export(world: World, model: Llama, source: Path, folder: Path) -> None:
    """Write the model as a Hugging Face directory in bf16; configuration and tokenizer are those of `source`.

    Parameters are gathered one after another, so that no rank holds the whole model.
    """
    parameters = _gathered(model)
    if world.first:
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        save_pretrained(parameters, model.config, source, temporary)
        for path in temporary.iterdir():
            _sync(path)
        _publish(temporary, folder)
    else:
        for _ in parameters:  # each takes part in the gathering
            pass
    dist.barrier()


def _gathered(model: Llama) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().to(torch.bfloat16).full_tensor().cpu()  # type: ignore[attr-defined]


def finish(exported: Path, out: Path, key: str, **facts: Any) -> None:
    """Give an export its manifest and its final place; what was there before is removed."""
    files = [path for path in exported.iterdir() if path.name != MANIFEST]
    write_manifest(exported, "train", key, files, **facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    _publish(exported, out)


def _publish(temporary: Path, final: Path) -> None:
    """Rename a written folder to its final name, in place of an older one."""
    _sync(temporary)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
