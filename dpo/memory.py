"""The memory that training needs on each GPU, counted without a GPU: `python -m dpo.memory --config C`.

The trainer's own step runs on tensors without storage, as rank 0 of a fake process group; allocations and releases are
counted, but not the allocator's fragmentation. A step has two full micro-batches: in the second one, gradients exist.
"""

from collections.abc import Iterable
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpo.data import Example
from dpo.loss import completion_logprob, dpo_loss
from dpo.packing import lay_out, own_prefix
from dpo.parallel import World, keep_gathered, make_mesh, sharded_model
from dpo.trainer import clip, local_gradients, make_optimizer, squared_norm
from kernels.compile import recording
from model.config import LlamaConfig
from model.llama import Llama, _frequencies
from stages.command import arguments, command
from stages.settings import Settings, load_settings

CONTEXT_BYTES = 2 * 2**30  # our allowance for CUDA, its libraries and NCCL's buffers


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations create, until they are freed. Sizes are read anew each time,
    since FSDP resizes storages outside of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = WeakSet[torch.UntypedStorage]()  # those that are not freed
        self.peak = 0

    @property
    def live(self) -> int:
        return sum(map(torch.UntypedStorage.nbytes, self.storages))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        storages = {storage_of(value) for value in tree_leaves(result) if isinstance(value, Tensor)}
        if not storages <= self.storages:
            self.storages |= storages
            self.peak = max(self.peak, self.live)
        return result


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """The storage of a tensor, or of its shard on this rank."""
    return getattr(tensor, "_local_tensor", tensor).untyped_storage()


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages; FSDP's gradients of a block share one."""
    return sum({storage._cdata: storage.nbytes() for storage in map(storage_of, tensors)}.values())


def count(config: LlamaConfig, settings: Settings, ranks: int) -> dict[str, int]:
    """Bytes of a bf16 DPO step on one of `ranks` GPUs, with the kernels' settings for sm_90."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        world, tracker = World(0, ranks, torch.device("cpu")), LiveBytes()
        mesh = make_mesh(world, settings.trainer)
        with FakeTensorMode(allow_non_fake_inputs=True), recording(90, keep=False), tracker:
            model = sharded_model(config, world, torch.bfloat16, settings.trainer, mesh)
            return _step(model, settings, world, tracker)
    finally:
        dist.destroy_process_group()
        _frequencies.cache_clear()  # its tensors have no storage


def _step(model: Llama, settings: Settings, world: World, tracker: LiveBytes) -> dict[str, int]:
    tracker.peak = tracker.live  # so far only the model on `meta` was counted, which takes no memory
    optimizer = make_optimizer(model, settings.dpo)
    tokens, twice = settings.trainer.tokens_per_microbatch, 1 if settings.trainer.share_prefixes else 2
    prompt = tokens // 4 // twice  # with two completions, the pair fills the micro-batch
    example = Example("full", [0] * prompt, ([0] * ((tokens - twice * prompt) // 2 + 1),) * 2)
    batch = lay_out([example], [0], {0: own_prefix(example, settings.trainer)})
    for more in (True, False):
        before = tracker.live
        logprob_n = completion_logprob(model, batch, settings.model.attention)
        activations = tracker.live - before
        terms = dpo_loss(batch.sums(logprob_n), torch.zeros(1, 2), settings.dpo.beta)
        keep_gathered(model, settings.trainer, more)
        terms["loss"].sum().backward()
        del logprob_n, terms
    gradients = local_gradients(model.parameters())
    if lora := settings.trainer.lora_rank:
        world.average(gradients)
    squared_norm(gradients)
    clip(gradients, 2.0, 1.0)
    optimizer.step()
    moments = (state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    block = 0 if lora else 2 * sum(parameter.numel() for parameter in model.layers[0].parameters())
    frozen, trained = ([p for p in model.parameters() if p.requires_grad == needed] for needed in (False, True))
    sizes = {"frozen parameters, bf16": storage_bytes(frozen)} if lora else {}
    sizes |= {"parameters, fp32": storage_bytes(trained), "gradients, fp32": storage_bytes(gradients)}
    sizes |= {"Adam's moments, fp32": storage_bytes(moments), "activations kept for backward": activations}
    sizes |= {"all tensors at the peak": tracker.peak, "a block gathered ahead": block}
    sizes |= {"CUDA and NCCL (allowance)": CONTEXT_BYTES}
    return sizes | {"needed": tracker.peak + block + CONTEXT_BYTES}


def main() -> None:
    number = {"type": int, "help": "GPUs in all; default: the config's nproc_per_node"}
    given = arguments(__doc__, "config", ranks=number)
    settings = load_settings(given.config)
    config, ranks = LlamaConfig.load(settings.model.shape), given.ranks or settings.nproc_per_node
    print(f"{settings.name} on {ranks} GPUs, micro-batches of {settings.trainer.tokens_per_microbatch} tokens")
    for name, size in count(config, settings, ranks).items():
        print(f"{name:32}{size / 1e9:8.2f} GB")


if __name__ == "__main__":
    command(main)
