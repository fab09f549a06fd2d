"""Training examples: reading, the held-out share, and the order of batches."""

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.files import UserError, read_jsonl

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

    `UserError`, with file and id, for bad token ids, bad weights and repeated ids.
    """
    keys, examples = COMPLETIONS[objective], dict[str, Example]()
    for path in paths:
        for row in read_jsonl(path, ("id", "prompt_ids", *keys)):
            where = f"{path}, id {row['id']!r}"
            if row["id"] in examples:
                raise UserError(f"{where}: this id came before; give each example its own id")
            for key in ("prompt_ids", *keys):
                if not isinstance(ids := row[key], list) or not all(type(token) is int for token in ids):
                    raise UserError(f"{where}: {key} is not a list of token ids; write the examples again")
                if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                    advice = "it was made for another model"
                    raise UserError(f"{where}: {key} has an id outside the vocabulary of {vocab_size}; {advice}")
            completions = tuple(row[key] for key in keys)
            weights = _weights(row.get("token_weights"), len(completions[0]), where) if objective == "sft" else None
            examples[row["id"]] = Example(row["id"], row["prompt_ids"], completions, weights)
    return list(examples.values())


def _weights(value: Any, length: int, where: str) -> list[float]:
    """Weights are finite, not negative and not all zero, since the loss is divided by their sum; 1 if not given."""
    weights = [1.0] * length if value is None else value
    usable = isinstance(weights, list) and all(type(w) in (int, float) and 0 <= w < math.inf for w in weights)
    if not usable or len(weights) != length:
        raise UserError(f"{where}: token_weights {value!r} are not {length} weights of at least 0; correct them")
    if length and not any(weights):
        raise UserError(f"{where}: token_weights are all 0, so there is nothing to learn; remove the example")
    return [float(weight) for weight in weights]


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
