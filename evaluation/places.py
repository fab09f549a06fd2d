"""Where a run keeps what was measured of each of its models."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """The folders of one model's measurements, each a stage's."""

    folder: Path
    when: str = ""
    """Before or after SFT, in whose folder the seed and M_0 share."""

    @classmethod
    def of(cls, run: Path, t: int) -> "Place":
        """Of M_t; with t = -1 of the seed, where SFT makes M_0 another model."""
        if t <= 0:
            return cls(run / "sft", "after" if t == 0 else "before")
        return cls(run / f"iter{t}")

    @property
    def agreement(self) -> Path:
        """As a judge, with labelled responses."""
        return self.folder / (self.when or "agreement")

    @property
    def meta_agreement(self) -> Path:
        """As a meta-judge, with labelled judgments."""
        return self.folder / f"meta-{self.when or 'agreement'}"

    @property
    def held_out(self) -> Path:
        """As an actor: its answers to held-out prompts."""
        return self.folder / ("-".join(filter(None, ("held-out", self.when))))

    @property
    def answers(self) -> Path:
        """These answers: reports may be equal where texts are not."""
        return self.held_out / "answers"

    @property
    def duel(self) -> Path:
        """These answers compared with the seed's."""
        return self.folder / ("-".join(filter(None, ("duel", self.when))))
