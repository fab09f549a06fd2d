"""A plan's machine: GPUs that are not here (`tools.planning.roofline`), or this CPU (`tools.bench.calibration`)."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from model.config import LlamaConfig
from tools.simulation import StepWork


class Machine(Protocol):
    """Seconds that things take."""

    def of(self, config: LlamaConfig) -> "Machine":
        """The machine with another model on it; itself where it does not know how fast that is."""

    def stated(self) -> dict[str, Any]:
        """The figures that times come from, for readers."""

    @property
    def start_seconds(self) -> float:
        """A stage's processes, until they load weights; of a GPU's stage the hashing of its inputs, too."""

    @property
    def load_seconds(self) -> float:
        """A model's weights, from the disk to where they are used."""

    def generation_seconds(self, steps: Iterable[StepWork]) -> float:
        """Steps of generation, on one rank."""

    def update_seconds(self, micro_batches: Sequence[float]) -> float:
        """A step of training; of each micro-batch the operations of a forward pass on the busiest rank."""

    def forward_seconds(self, micro_batches: Sequence[float]) -> float:
        """The same micro-batches without backward."""

    def disk_seconds(self, size: float) -> float:
        """Reading or writing bytes."""
