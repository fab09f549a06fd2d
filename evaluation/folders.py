"""Where a run keeps its stages' records, and what was measured of each of its models."""

from dataclasses import dataclass
from pathlib import Path

from judging.trace import STAGES

STAGE_FOLDERS = STAGES | {"pairs": "pairs", "train": "checkpoint"}
"""The folder of each stage within an iteration's folder."""


@dataclass(frozen=True)
class ModelMeasurements:
    """The folder of one model's measurements; the properties are the folders in it."""

    folder: Path

    @classmethod
    def of(cls, run: Path, t: int) -> "ModelMeasurements":
        """The folder of M_t; t = -1 is the seed, where SFT makes M_0 another model."""
        return cls(run / "evaluation" / ("seed" if t < 0 else f"M{t}"))

    @property
    def agreement(self) -> Path:
        """The model as a judge of labelled responses."""
        return self.folder / "judge"

    @property
    def meta_agreement(self) -> Path:
        """The model as a meta-judge of labelled judgments."""
        return self.folder / "metajudge"

    @property
    def held_out(self) -> Path:
        """The model as an actor: its answers to held-out prompts, and the report on them."""
        return self.folder / "actor"

    @property
    def answers(self) -> Path:
        """The answers alone: two models' reports may be equal where their answers differ."""
        return self.held_out / "answers"

    @property
    def duel(self) -> Path:
        """The model's answers compared with the seed's."""
        return self.folder / "wins"
