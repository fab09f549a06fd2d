"""Training examples: reading, the held-out share, and the order of batches."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.rows import NUMBER, Kind, rows_by_id, token_ids

Objective = Literal["sft", "dpo"]

COMPLETIONS = {"sft": ("completion_ids",), "dpo": ("chosen_ids", "rejected_ids")}  # keys in a record


@dataclass(frozen=True)
class Example:  # token ids of a prompt and of its completions: (chosen, rejected), or one for SFT
    id: str
    prompt: list[int]
    completions: tuple[list[int], ...]
    token_weights: list[float] | None = None  # SFT: of each completion token in the loss

    def tokens(self, shared: int = 0) -> int:
        """Tokens that the model reads, the first `shared` once. A completion's last token is only predicted."""
        return shared + sum(len(self.prompt) - shared + len(completion) - 1 for completion in self.completions)

    @property
    def weight(self) -> float:
        """Share in the denominator of the mean loss: 1 for a pair, the sum of the token weights for SFT."""
        return 1.0 if self.token_weights is None else sum(self.token_weights)


def read_examples(paths: Iterable[Path], objective: Objective, vocab_size: int) -> list[Example]:
    """The examples of JSON-lines files, in order. SFT examples may have `token_weights`; the default is 1.

    `UserError`, with file and line, for bad token ids, bad weights and repeated ids.
    """
    kinds = dict.fromkeys(("prompt_ids", *COMPLETIONS[objective]), token_ids(vocab_size))
    examples = []
    for name, row in rows_by_id(*paths, **kinds).items():
        prompt, *completions = (row.content[key] for key in kinds)
        weights = [1.0] * len(completions[0]) if objective == "sft" else None
        if weights and row.content.get("token_weights") is not None:
            weights = [*map(float, row.value("token_weights", kind=_weights(len(weights))))]
        examples.append(Example(name, prompt, tuple(completions), weights))
    return examples


def _weights(count: int) -> Kind:  # the loss is divided by their sum
    def fits(value: Any) -> bool:
        return type(value) is list and len(value) == count and all(NUMBER.fits(w) and w >= 0 for w in value)

    return Kind(f"{count} weights of at least 0, and not all 0", lambda value: fits(value) and any(value))


def split(examples: Sequence[Example], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training examples and of the held-out share; a hash of (seed, id) chooses."""
    draws = [hashlib.sha256(f"{seed}/{example.id}".encode()).digest() for example in examples]
    drawn, count = sorted(range(len(examples)), key=draws.__getitem__), round(held_out * len(examples))
    return sorted(drawn[count:]), sorted(drawn[:count])


def epoch_batches(indices: Sequence[int], size: int, seed: int, epoch: int, ordered: bool = False) -> list[list[int]]:
    """Global batches of an epoch, shuffled by (seed, epoch), or in the given order. The last may be short."""
    order = list(indices)
    if not ordered:
        random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + size] for start in range(0, len(order), size)]
