"""Where a run keeps what was measured of each of its models."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """The folder of one model's measurements, and what is in it."""

    folder: Path

    @classmethod
    def of(cls, run: Path, t: int) -> "Place":
        """Of M_t; with t = -1 of the seed, where SFT makes M_0 another model."""
        return cls(run / "evaluation" / ("seed" if t < 0 else f"M{t}"))

    @property
    def agreement(self) -> Path:
        """As a judge, with labelled responses."""
        return self.folder / "judge"

    @property
    def meta_agreement(self) -> Path:
        """As a meta-judge, with labelled judgments."""
        return self.folder / "metajudge"

    @property
    def held_out(self) -> Path:
        """As an actor: its answers to held-out prompts."""
        return self.folder / "actor"

    @property
    def answers(self) -> Path:
        """These answers: reports may be equal where texts are not."""
        return self.held_out / "answers"

    @property
    def duel(self) -> Path:
        """These answers compared with the seed's."""
        return self.folder / "wins"
