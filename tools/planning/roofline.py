"""How long work takes on GPUs that are not here, or on this CPU: the shares that a plan assumes of a machine's peaks.

A step of generation takes the longer of its operations and its bytes, and the host's time. A micro-batch of training
takes the longer of its operations and of FSDP's communication, which runs meanwhile: parameters are gathered over the
ranks, gradients reduced.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dpo.flops import PEAK_FLOPS, best_rate, product_flops
from model.config import LlamaConfig
from model.dtype import training_dtype
from stages.settings import Assumptions, Settings
from tools.planning.room import key_bytes, machine_bytes
from tools.simulation import StepWork


@dataclass(frozen=True)
class Card:
    """A machine's peaks, a GPU's as its maker states them."""

    flops: float
    """Dense bf16 operations a second."""
    bandwidth: float
    """Bytes a second from the GPU's memory."""
    memory: float
    """Bytes."""
    link: float
    """Bytes a second to the other GPUs of a node, in one direction."""


CARDS = {
    "a100": Card(PEAK_FLOPS["A100"], 2.039e12, 80e9, 300e9),
    "h100": Card(PEAK_FLOPS["H100"], 3.35e12, 80e9, 450e9),
    "h200": Card(PEAK_FLOPS["H200"], 4.8e12, 141e9, 450e9),
    "b200": Card(PEAK_FLOPS["B200"], 8e12, 180e9, 900e9),
}
"""SXM modules: NVIDIA's data sheets."""


def this_cpu(settings: Settings) -> Card:
    """This machine's CPU: operations a second of a large product, bytes a second of a large copy."""
    torch.set_num_threads(settings.engine.threads)
    device = torch.device("cpu")
    memory = torch.zeros(2**28, dtype=torch.uint8)
    bandwidth = best_rate(lambda: memory.clone(), 2 * len(memory), 3)
    return Card(
        product_flops(device, training_dtype(settings.model.dtype, device), 1024, 3),
        bandwidth,
        machine_bytes(),
        math.inf,
    )


@dataclass(frozen=True)
class Roofline:
    """`ranks` GPUs of one kind, or CPUs like this one, with a model on them in bf16."""

    config: LlamaConfig
    plan: Assumptions
    card: Card
    ranks: int
    recompute: bool
    """Whether a backward pass computes the blocks again."""

    def of(self, config: LlamaConfig) -> "Roofline":
        """The machine with another model on it."""
        return replace(self, config=config)

    def stated(self) -> dict[str, Any]:
        """The figures that times come from, for readers."""
        card = self.card
        return {
            "bf16 Tflop/s": card.flops / 1e12,
            "memory TB/s": card.bandwidth / 1e12,
            "memory GB": card.memory / 1e9,
            "link GB/s": card.link / 1e9,
        }

    @property
    def start_seconds(self) -> float:
        return self.plan.start_seconds

    @property
    def load_seconds(self) -> float:
        return self.disk_seconds(2 * self.config.parameter_count())

    def disk_seconds(self, size: float) -> float:
        return size / (1e9 * self.plan.disk_gigabytes_per_second)

    def generation_seconds(self, steps: Iterable[StepWork]) -> float:
        return sum(self.step_seconds(step) for step in steps)

    def step_seconds(self, step: StepWork) -> float:
        """The longer of arithmetic and reading, plus the host's part."""
        plan = self.plan
        arithmetic = generation_flops(self.config, step) / (self.card.flops * plan.product_utilisation)
        reading = generation_bytes(self.config, step) / (self.card.bandwidth * plan.bandwidth_utilisation)
        return max(arithmetic, reading) + plan.step_milliseconds / 1000

    def update_seconds(self, micro_batches: Sequence[float]) -> float:
        passes = 4 if self.recompute else 3
        # Parameters, 2 bytes each, are gathered for forward and for backward; gradients, 4 bytes each, are reduced.
        sent = self.sending_seconds(8)
        batches = sum(max(passes * flops / self.training_flops, sent) for flops in micro_batches)
        # Adam reads parameter, gradient and two moments and writes three of them, 4 bytes each.
        return batches + 28 * self.config.parameter_count() / self.ranks / self.card.bandwidth

    def forward_seconds(self, micro_batches: Sequence[float]) -> float:
        return sum(max(flops / self.training_flops, self.sending_seconds(2)) for flops in micro_batches)

    @property
    def training_flops(self) -> float:
        return self.card.flops * self.plan.training_utilisation

    def sending_seconds(self, bytes_a_parameter: float) -> float:
        """Time for each rank to receive the others' parts over the slowest link between them, at its assumed share."""
        link = self.card.link if self.ranks <= self.plan.gpus_per_node else 1e9 * self.plan.network_gigabytes_per_second
        share = (self.ranks - 1) / self.ranks
        return share * bytes_a_parameter * self.config.parameter_count() / (link * self.plan.bandwidth_utilisation)


def block_weights(config: LlamaConfig) -> int:
    """Weights of a block's products."""
    return config.hidden_size * (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)


def generation_flops(config: LlamaConfig, step: StepWork) -> float:
    """Operations of a step: 2 a weight and token (in the head: a token drawn), 4 head_dim a head, query and key."""
    products = 2 * config.num_hidden_layers * block_weights(config) * step.tokens
    head = 2 * config.vocab_size * config.hidden_size * step.drawn
    return products + head + 4 * config.num_hidden_layers * config.q_size * step.keys_seen


def generation_bytes(config: LlamaConfig, step: StepWork) -> float:
    """Bytes that a step reads and writes, in bf16: all weights once, keys and values."""
    weights = config.num_hidden_layers * block_weights(config) + config.vocab_size * config.hidden_size
    return 2 * weights + key_bytes(config) * (step.keys_read + step.tokens)
