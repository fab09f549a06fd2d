"""Ranks and sharding: processes and their groups, FSDP2, and sums over ranks. One rank runs the same code as many."""

import ctypes
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from dpo.lora import add_adapters
from model.config import LlamaConfig
from model.llama import Block, Llama
from model.weights import load_weights
from stages.command import UserError
from stages.settings import TrainerOptions
from stages.shards import local_device

OPEN_FILES, ADDRESSES = 64, 2**28  # a process group's, at least
PARTING = 10.0  # seconds that a rank has to end by itself once another rank has ended
ENDED = "another rank has ended; its log says why"
T = TypeVar("T")


def return_memory() -> None:
    """Give a CPU's freed memory back to the system, which `distributed` lets glibc keep: the pieces of it between
    tensors grow by some 20 MB a step."""
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def address_space() -> int:
    """Bytes of the address space that this process has taken."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@dataclass(frozen=True)
class World:
    """The rank of this process among those that train the same model."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # in which it agrees; None: the default group

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values`, summed over ranks in place."""
        dist.all_reduce(values)
        return values

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over ranks, all in one sum."""
        means = self.sum(torch.cat([tensor.flatten() for tensor in tensors])).div_(self.size)
        parts = means.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])

    def agree(self, compute: Callable[[], T]) -> T:
        """The result of `compute` on rank 0, given to every rank; its UserError is raised on every rank."""
        outcome: list[Any] = [None]
        try:
            outcome = [compute() if self.first else None]
        except UserError as error:
            outcome = [error]
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if isinstance(outcome[0], UserError):
            raise outcome[0]
        return outcome[0]

    def say(self, message: str) -> None:
        """Print a line for the user on rank 0."""
        if self.first:
            print(message, file=sys.stderr, flush=True)

    def remove(self, folders: Iterable[Path]) -> None:
        """Remove folders on rank 0."""
        for folder in folders if self.first else ():
            shutil.rmtree(folder)


@contextmanager
def distributed(threads: int, timeout_minutes: float = TrainerOptions.timeout_minutes) -> Iterator[World]:
    """The process group that torchrun describes, or one of this process alone; `threads` CPU threads a rank. A rank
    that loses another prints why and ends with exit code 1."""
    # Where little is left, gloo may hang.
    if (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < OPEN_FILES:
        raise UserError(f"open files are limited to {limit}, {OPEN_FILES} are needed; raise the limit (ulimit -n)")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit - address_space() < ADDRESSES:
        raise UserError(f"memory is limited to {limit >> 20} MiB (ulimit -v), and nearly all is taken; raise the limit")
    torch.set_num_threads(threads)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():  # read when torch was imported
            torch._C._accelerator_setAllocatorSettings("expandable_segments:True")  # each micro-batch has its own size
    else:
        backend = "gloo"
        # Tensor shapes change at every step. PyTorch caches 64 oneDNN products, as code for a thousand shapes would
        # fragment the memory; glibc keeps large freed blocks, as the system would have to zero returned pages.
        os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
        with suppress(OSError, AttributeError, TypeError):  # not glibc
            for parameter, value in ((-1, 2**31 - 1), (-4, 0)):  # trim_threshold, mmap_max
                ctypes.CDLL(None).mallopt(parameter, value)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):  # one node: no other machine is to connect
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store, timeout = None if "WORLD_SIZE" in os.environ else dist.HashStore(), timedelta(minutes=timeout_minutes)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        with _ended_with_others(rank, size):
            device = local_device(_get_default_store())
            yield World(rank, size, device)
    except (UserError, SystemExit) as error:
        dist.destroy_process_group()
        if isinstance(error, UserError) and rank and os.environ.get("LOCAL_RANK") != "0":
            time.sleep(1)  # the first rank of the node prints the error: torchrun ends the others when one ends
        raise
    except RuntimeError as error:  # the group is not destroyed: destroying could hang, too
        if "timed out waiting" in (text := str(error).lower()):
            reason = f"another rank did not take part within {timeout_minutes:g} minutes (trainer.timeout_minutes): "
            reason += "it hangs, or its disk is slow; look for its last line in the logs of all ranks"
        elif re.search("connection (closed|reset) by peer", text):
            reason = ENDED
        else:
            raise
        print(f"error: rank {rank}: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    dist.destroy_process_group()


@contextmanager
def _ended_with_others(rank: int, size: int) -> Iterator[None]:
    """Inside, this process ends soon after another rank has ended, under any launcher and wherever it waits: NCCL would
    wait until its timeout. In the ring of ranks each waits for a word of the one before it, or for its end."""
    if size == 1:
        yield
        return
    left, group, word = threading.Event(), dist.new_group(backend="gloo", timeout=timedelta(days=365)), torch.zeros(1)

    def exchange(way: Callable[..., Any], other: int) -> None:
        with suppress(RuntimeError):  # the other rank has ended
            way(word, other % size, group)

    def watch() -> None:
        exchange(dist.recv, rank - 1)
        if not left.is_set():
            exchange(dist.send, rank + 1)  # so that all ranks hear of it at once
        if not left.wait(PARTING):
            print(f"error: rank {rank}: {ENDED}", file=sys.stderr, flush=True)
            os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        dist.barrier()
        left.set()
        exchange(dist.send, rank + 1)
        watcher.join()
    finally:
        left.set()


class Interruption:
    """Ctrl-C or SIGTERM, remembered until the step is done. A second Ctrl-C, more than `patience` seconds later since
    torchrun passes on what its processes got themselves, ends the process at once."""

    signal, since, patience = 0, 0.0, 5.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The first signal is only remembered."""
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _frame: Any) -> None:
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > self.patience:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def sharded_model(
    config: LlamaConfig, world: World, dtype: torch.dtype, options: TrainerOptions, mesh: DeviceMesh | None = None
) -> Llama:
    """A model of fp32 parameters, not yet filled, each of its `replicas` sharded evenly over ranks. Embedding, blocks,
    and head with norm are gathered in `dtype` one after another for their computation. Gradients are averaged over all
    ranks in fp32. With LoRA nothing is sharded."""
    with torch.device("meta"):
        model = Llama(config)
    # Inputs are not cast, so that the rotary tables stay fp32.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in cast(list[Block], model.layers):
        block.recompute = options.activation_checkpointing
        if options.compile:
            block.fuse()
    if options.lora_rank:
        for module in add_adapters(model, options).modules():
            for name, p in list(module.named_parameters(recurse=False)):  # `to` fails on the fake tensors of dpo.memory
                empty = torch.empty_like(p, dtype=torch.float32 if p.requires_grad else dtype, device=world.device)
                module.register_parameter(name, nn.Parameter(empty, p.requires_grad))
        return model
    shard = partial(fully_shard, mesh=mesh or make_mesh(world, options), mp_policy=policy)
    for layer in model.layers:
        shard(layer, reshard_after_forward=options.reshard_after_forward)
    if model.lm_head:  # a tied embedding is the head, too, and stays with the rest
        shard(model.embed_tokens, reshard_after_forward=options.reshard_after_forward)
        cast(FSDPModule, model.embed_tokens).set_unshard_in_backward(False)  # its gradient needs the ids alone
        shard([model.norm, model.lm_head], reshard_after_forward=False)
    shard(model)
    model.to_empty(device=world.device)
    return model


def replicas(ranks: int, options: TrainerOptions) -> int:
    """How many copies of the model the ranks hold together: with LoRA one each, else one per `shard_degree` ranks."""
    degree = 1 if options.lora_rank else min(options.shard_degree or ranks, ranks)
    if ranks % degree:
        raise UserError(f"trainer.shard_degree is {degree}, which does not divide {ranks} ranks; set a divisor, or 0")
    return ranks // degree


def make_mesh(world: World, options: TrainerOptions) -> DeviceMesh:
    """The ranks that share a copy of the model or, where there are several copies, all ranks by copy."""
    copies = replicas(world.size, options)
    mesh = init_device_mesh(world.device.type, (copies, world.size // copies), mesh_dim_names=("replica", "shard"))
    return mesh if copies > 1 else mesh["shard"]


def keep_gathered(model: Llama, options: TrainerOptions, more: bool) -> None:
    """With `reshard_after_forward` off: whether the next backward leaves weights and gradients whole, for `more`."""
    if isinstance(model, FSDPModule) and not options.reshard_after_forward:
        model.set_reshard_after_backward(not more)
        model.set_requires_gradient_sync(not more)


def load_sharded(model: Llama, folder: Path | str) -> None:
    """`model.weights.load_weights` for a sharded model: each rank reads only its own rows."""

    def local(shard: nn.Parameter) -> tuple[Tensor, int]:
        if not isinstance(shard, DTensor):
            return shard, 0
        _, offset = compute_local_shape_and_global_offset(shard.shape, shard.device_mesh, shard.placements)
        return shard.to_local(), offset[0]

    load_weights(model, folder, local)


def reshard(model: Llama) -> None:
    """Free gathered parameters after a forward without a backward: they would hide the next loaded weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
