"""The work of generation's steps, and how long work takes on GPUs that are not here, or on this CPU."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from dpo.lora import trained_parameters
from dpo.memory import CONTEXT_BYTES
from dpo.metrics import PEAK_FLOPS, best_rate, product_flops
from dpo.parallel import replicas
from model.config import LlamaConfig
from model.dtype import training_dtype
from sampling.blocks import BlockPool
from sampling.request import Request
from sampling.scheduler import PASSES, Scheduler, Step
from stages.settings import EngineOptions, Settings

GPUS_PER_NODE = 8


class StepWork(NamedTuple):  # the work of a forward pass
    tokens: int  # computed, without prefixes that the cache holds
    drawn: int  # rows of the head
    keys_read: int  # from the cache, one that several decoding sequences share once
    keys_seen: int  # summed over queries

    @classmethod
    def of(cls, step: Step, block_size: int, passed: int = 0) -> "StepWork":
        """Of one of a step's passes."""
        metadata = step.metadata(block_size, passed)
        read = sum(run.tokens for run in metadata.shared_runs()) + sum(span.end for span in metadata.prefill)
        drawn, positions = sum(item.samples for item in step.scheduled), metadata.positions
        return cls(len(positions), drawn, read, sum(positions) + len(positions))


def simulate(requests: Sequence[Request], engine: EngineOptions, context: int, passes: int = 1) -> Iterator[StepWork]:
    """The passes of the engine's own scheduler on a shard whose completions are as long as they may be."""
    pool, token = BlockPool(engine.num_kv_blocks, engine.block_size), 0
    scheduler = Scheduler(pool, engine.max_num_batched_tokens, engine.max_num_seqs, context, passes)
    for request in requests:
        scheduler.add(request)
    while scheduler.busy:
        step = scheduler.schedule()
        drawn = list[list[int]]()
        for passed in range(step.passes):
            yield (work := StepWork.of(step, engine.block_size, passed))
            token -= work.drawn  # negative and unique: completions share no prefix
            drawn.append(list(range(token, token + work.drawn)))
        scheduler.complete(step, drawn, drawn)  # which stand for log-probabilities that nobody reads


class Card(NamedTuple):  # a machine's peaks
    flops: float  # dense bf16 operations a second
    bandwidth: float  # bytes a second from its memory
    memory: float  # bytes
    link: float = math.inf  # bytes a second to the other GPUs of a node in one direction


CARDS = {  # SXM modules: NVIDIA's data sheets
    "a100": Card(PEAK_FLOPS["A100"], 2.039e12, 80e9, 300e9),
    "h100": Card(PEAK_FLOPS["H100"], 3.35e12, 80e9, 450e9),
    "h200": Card(PEAK_FLOPS["H200"], 4.8e12, 141e9, 450e9),
    "b200": Card(PEAK_FLOPS["B200"], 8e12, 180e9, 900e9),
    "rtx4090": Card(165.2e12, 1.008e12, 24e9, 32e9),  # Ada's white paper; the link is PCIe 4.0's
}


def this_cpu(settings: Settings) -> Card:
    """This machine's CPU: operations a second of a large product, bytes a second of a large copy."""
    torch.set_num_threads(settings.engine.threads)
    device, source = torch.device("cpu"), torch.zeros(2**28, dtype=torch.uint8)
    flops = product_flops(device, training_dtype(settings.model.dtype, device), 1024, 3)
    memory, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (share := limit.read_text(encoding="ascii").strip()).isdigit():  # a container's
        memory = min(memory, int(share))
    return Card(flops, best_rate(lambda: source.clone(), 2 * len(source), 3), memory)


@dataclass(frozen=True)
class Roofline:  # `ranks` GPUs of one kind, or CPUs like this one, with a model on them in bf16
    config: LlamaConfig
    settings: Settings
    card: Card
    ranks: int

    def formula(self) -> str:
        """How times are reckoned, for readers."""
        card, plan = self.card, self.settings.plan
        return (
            f"time of a step of generation: max(operations / ({card.flops / 1e12:.3g} Tflop/s x product_utilisation "
            f"{plan.product_utilisation}), bytes / ({card.bandwidth / 1e9:.0f} GB/s x bandwidth_utilisation "
            f"{plan.bandwidth_utilisation})) + {plan.step_milliseconds:g} ms; of a micro-batch: max(operations of 3, "
            f"with activation checkpointing 4, forward passes / (peak x training_utilisation "
            f"{plan.training_utilisation}), 8 bytes a parameter / ({self.link / 1e9:.0f} GB/s x "
            f"bandwidth_utilisation)); of an update: 28 bytes a parameter; of a stage: {plan.start_seconds:g} s, at "
            f"{plan.disk_gigabytes_per_second:g} GB/s 2 bytes a parameter for weights (each measurement and round of "
            "the pool, too: an upper bound) and exports, 12 for states, beside training. Utilisations are [plan]'s."
        )

    @property
    def passes(self) -> int:
        """Of a step at most: several with CUDA graphs. A CPU has no link."""
        graphs = self.settings.engine.cuda_graphs and self.settings.model.attention == "triton"
        return PASSES if graphs and math.isfinite(self.card.link) else 1

    @property
    def link(self) -> float:
        """Bytes a second between GPUs; of several nodes, over the network."""
        return self.card.link if self.ranks <= GPUS_PER_NODE else 1e9 * self.settings.plan.network_gigabytes_per_second

    @property
    def key_bytes(self) -> int:
        """Of a token's keys and values in all layers, in bf16."""
        return 4 * self.config.num_hidden_layers * self.config.kv_size

    def disk_seconds(self, bytes_a_parameter: float, bytes_a_trained_one: float = 0) -> float:
        trained = trained_parameters(self.config, self.settings.trainer)
        size = bytes_a_parameter * self.config.parameter_count() + bytes_a_trained_one * trained
        return size / (1e9 * self.settings.plan.disk_gigabytes_per_second)

    def step_seconds(self, step: StepWork) -> float:
        """2 operations a weight and token (in the head: a token drawn), 4 head_dim a head, query and key; all weights
        are read once, keys and values read and written."""
        plan, config = self.settings.plan, self.config
        products = 2 * config.block_weights * step.tokens + 2 * config.head_weights * step.drawn
        flops = products + 4 * config.num_hidden_layers * config.q_size * step.keys_seen
        moved = 2 * (config.block_weights + config.head_weights) + self.key_bytes * (step.keys_read + step.tokens)
        arithmetic = flops / (self.card.flops * plan.product_utilisation)
        reading = moved / (self.card.bandwidth * plan.bandwidth_utilisation)
        return max(arithmetic, reading) + plan.step_milliseconds / 1000

    def training_seconds(self, flops: float) -> float:
        return flops / (self.card.flops * self.settings.plan.training_utilisation)

    def update_seconds(self, forward_flops: Sequence[float]) -> float:
        """An update, given the operations of each micro-batch's forward pass. FSDP gathers parameters, 2 bytes each,
        twice, and reduces gradients, 4 bytes each; copies of the model add theirs up, sent twice. Adam reads four
        numbers a parameter and writes three."""
        options = self.settings.trainer
        passes = 3 + options.activation_checkpointing - (options.lora_rank > 0)  # frozen weights have no gradients
        size = trained_parameters(self.config, options)
        degree = self.ranks // (copies := replicas(self.ranks, options))
        near = self.card.link if degree <= GPUS_PER_NODE else self.link
        sending = 8 * size * ((degree - 1) / degree / near + (copies - 1) / copies / degree / self.link)
        sending /= self.settings.plan.bandwidth_utilisation
        computing = sum(max(passes * self.training_seconds(flops), sending) for flops in forward_flops)
        return computing + 28 * size / degree / self.card.bandwidth

    def generation_memory(self) -> dict[str, float]:
        """Memory of a rank that generates in bf16, by part."""
        config, engine = self.config, self.settings.engine
        inner = 3 * config.hidden_size + config.q_size + 2 * config.kv_size + 3 * config.intermediate_size
        logits = 4 * engine.max_num_seqs * config.vocab_size * 3  # bf16, fp32, and top-p's copies
        cache = self.key_bytes * engine.block_size * (engine.num_kv_blocks + 1)
        step = 2 * engine.max_num_batched_tokens * inner + logits
        return {"weights": 2 * config.parameter_count(), "KV cache": cache, "a step": step, "CUDA": CONTEXT_BYTES}
