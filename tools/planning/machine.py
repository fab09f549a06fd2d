"""A plan's machine: GPUs that are not here (`tools.planning.roofline`), or this CPU (`tools.bench.calibration`)."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from model.config import LlamaConfig
from tools.simulation import StepWork


class Machine(Protocol):
    """Seconds that each kind of work takes."""

    def of(self, config: LlamaConfig) -> "Machine":
        """The machine with another model on it; itself where that model's speed is unknown."""

    def stated(self) -> dict[str, Any]:
        """The figures that times come from, for readers."""

    @property
    def start_seconds(self) -> float:
        """From a stage's start until its processes load weights; on GPUs with the hashing of inputs."""

    @property
    def load_seconds(self) -> float:
        """Loading a model's weights from the disk to where they are used."""

    def generation_seconds(self, steps: Iterable[StepWork]) -> float:
        """Steps of generation on one rank."""

    def update_seconds(self, micro_batches: Sequence[float]) -> float:
        """A step of training; each micro-batch is given as the operations of a forward pass on the busiest rank."""

    def forward_seconds(self, micro_batches: Sequence[float]) -> float:
        """Forward passes over such micro-batches."""

    def disk_seconds(self, size: float) -> float:
        """Reading or writing `size` bytes."""
