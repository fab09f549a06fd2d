"""Training examples, and how they are packed: flat micro-batches under a token budget, the same number on every rank.

An example is a prompt with its completions: chosen and rejected for DPO, one for SFT. A completion with its prompt is a
sequence; the sequences of an example stand next to each other in one micro-batch.

Shapes: t tokens of all sequences, s sequences, n targets (the completions' tokens), e examples, c completions each.
"""

import hashlib
import heapq
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from files import UserError, read_jsonl

Stage = Literal["sft", "dpo"]

COMPLETIONS = {"sft": ("completion_ids",), "dpo": ("chosen_ids", "rejected_ids")}
"""The keys of a record that hold its completions."""


@dataclass(frozen=True)
class Example:
    """A prompt's ids and its completions' ids: (chosen, rejected), or one for SFT."""

    id: str
    prompt: list[int]
    completions: tuple[list[int], ...]
    token_weights: list[float] | None = None
    """SFT: each completion token's weight in the loss."""

    @property
    def tokens(self) -> int:
        """Tokens that its sequences take in a micro-batch: a completion's last token is predicted, not read."""
        return sum(len(self.prompt) + len(completion) - 1 for completion in self.completions)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt) + max(map(len, self.completions))

    @property
    def weight(self) -> float:
        """What it adds to the loss's denominator: 1 for a pair, its tokens' weights for SFT."""
        return 1.0 if self.token_weights is None else sum(self.token_weights)


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, and where in them the completions' tokens are predicted. No padding."""

    examples: list[int]
    """Each example's index among those that training was given."""
    real: bool
    """False for the stand-in that a rank without work computes, so that collectives match; its loss is left out."""
    ids_t: Tensor
    """int64; what the model reads."""
    positions_t: Tensor
    """int64; counted from each sequence's start."""
    cu_seqlens: Tensor
    """int32 [s + 1]; the sequences' borders in t."""
    sources_n: Tensor
    """int64; which of t predicts the target."""
    targets_n: Tensor
    """int64; the completions' tokens."""
    sequences_n: Tensor
    """int64; which of s the target belongs to."""
    weights_n: Tensor
    """fp32; the target's weight in SFT's loss."""

    def to(self, device: torch.device) -> "MicroBatch":
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved)

    def sums(self, values_n: Tensor) -> Tensor:
        """Sums of the targets' values over each sequence, fp32 [e, c]."""
        total_s = values_n.new_zeros(len(self.cu_seqlens) - 1).index_add(0, self.sequences_n, values_n)
        return total_s.view(len(self.examples), -1)


def read_examples(paths: Iterable[Path], stage: Stage, vocab_size: int) -> list[Example]:
    """The examples of JSON-lines files, in order: pairs for "dpo", SFT examples for "sft".

    An SFT example may have `token_weights`, one for each completion token; without them each weighs 1. Raises
    `UserError` naming file and id for ids that are no token ids, bad weights, and an id that comes twice.
    """
    keys, examples, seen = COMPLETIONS[stage], [], set()
    for path in paths:
        for row in read_jsonl(path, ("id", "prompt_ids", *keys)):
            where = f"{path}, id {row['id']!r}"
            if row["id"] in seen:
                raise UserError(f"{where}: this id came before; give each example its own")
            seen.add(row["id"])
            prompt, *completions = (
                _token_ids(row[key], vocab_size, f"{where}: {key}") for key in ("prompt_ids", *keys)
            )
            weights = None
            if stage == "sft":
                weights = _weights(row.get("token_weights", [1.0] * len(completions[0])), len(completions[0]), where)
            examples.append(Example(row["id"], prompt, tuple(completions), weights))
    return examples


def _token_ids(value: Any, vocab_size: int, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise UserError(f"{where} is not a list of token ids; write the examples again")
    if value and not 0 <= min(value) <= max(value) < vocab_size:
        raise UserError(f"{where} has an id outside the vocabulary of {vocab_size}; it was made for another model")
    return value


def _weights(value: Any, length: int, where: str) -> list[float]:
    """Finite, not negative, and not all zero: a loss is divided by their sum."""
    numbers = isinstance(value, list) and all(type(weight) in (int, float) for weight in value)
    if not numbers or len(value) != length or not all(0 <= weight < math.inf for weight in value):
        raise UserError(
            f"{where}: token_weights {value!r} are not {length} weights of at least 0, one a token; mend them"
        )
    if length and not any(value):
        raise UserError(f"{where}: token_weights are all 0, so nothing is to be learnt; remove the example")
    return [float(weight) for weight in value]


def keep_usable(examples: Iterable[Example], token_budget: int, context: int) -> tuple[list[Example], dict[str, int]]:
    """The examples that can be trained on, and how many were dropped, by reason. Nothing is truncated."""
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    for example in examples:
        if not example.prompt or not all(example.completions):
            dropped["dropped.empty"] += 1
        elif len(example.completions) == 2 and example.completions[0] == example.completions[1]:
            dropped["dropped.identical"] += 1
        elif example.longest > context:
            dropped["dropped.over_context"] += 1
        elif example.tokens > token_budget:
            dropped["dropped.over_token_budget"] += 1
        else:
            kept.append(example)
    return kept, dict(dropped)


def content_digest(examples: Iterable[Example]) -> str:
    """SHA-256 of ids and tokens, in order."""
    total = hashlib.sha256()
    for example in examples:
        total.update(json.dumps([example.id, example.prompt, example.completions]).encode())
    return total.hexdigest()


def split(examples: Sequence[Example], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training examples and of the held-out share, chosen by a hash of (seed, id)."""

    def draw(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{examples[index].id}".encode()).digest()

    held = set(sorted(range(len(examples)), key=draw)[: round(held_out * len(examples))])
    return [i for i in range(len(examples)) if i not in held], sorted(held)


def epoch_batches(
    indices: Sequence[int], batch_size: int, seed: int, epoch: int, in_order: bool = False
) -> list[list[int]]:
    """An epoch's global batches, the order a function of (seed, epoch), or as given; the last may be short."""
    order = list(indices)
    if not in_order:
        random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pack(costs: Sequence[int], ranks: int, budget: int) -> list[list[int]]:
    """Indices of `costs` in ranks * m bins of at most `budget`, m as small as greedy packing finds.

    Longest first, each into the bin with the least in it, so that bins are even, and with them the ranks. No cost may
    exceed the budget.
    """
    assert max(costs, default=0) <= budget
    count = ranks * max(1, -(-sum(costs) // (budget * ranks)))
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, i) for i in range(count)]
        for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
            load, least = loads[0]
            if load + costs[index] > budget:
                break
            heapq.heapreplace(loads, (load + costs[index], least))
            bins[least].append(index)
        else:
            return bins
        count += ranks


def micro_batches(
    examples: Sequence[Example], indices: Sequence[int], rank: int, ranks: int, budget: int
) -> list[MicroBatch]:
    """This rank's micro-batches of the global batch `indices`; every rank has the same number of them.

    Where there are fewer examples than bins, a rank gets the batch's shortest example as a stand-in.
    """
    bins = pack([examples[i].tokens for i in indices], ranks, budget)
    shortest = min(indices, key=lambda i: examples[i].tokens)
    own = ([indices[i] for i in chosen] for chosen in bins[rank::ranks])
    return [lay_out(examples, chosen or [shortest], real=bool(chosen)) for chosen in own]


def lay_out(examples: Sequence[Example], indices: Sequence[int], real: bool = True) -> MicroBatch:
    """Pack the sequences of the examples at `indices` one after another.

    This is the one place that knows how an example's sequences lie in memory.
    """
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    sequences: list[int] = []
    weights: list[float] = []
    borders = [0]
    for example in (examples[i] for i in indices):
        for completion in example.completions:
            read = example.prompt + completion[:-1]
            first = len(ids) + len(example.prompt) - 1  # the prompt's last token predicts the completion's first
            sources += range(first, first + len(completion))
            targets += completion
            sequences += [len(borders) - 1] * len(completion)
            weights += example.token_weights or [1.0] * len(completion)
            ids += read
            positions += range(len(read))
            borders.append(len(ids))
    return MicroBatch(
        examples=list(indices),
        real=real,
        ids_t=torch.tensor(ids),
        positions_t=torch.tensor(positions),
        cu_seqlens=torch.tensor(borders, dtype=torch.int32),
        sources_n=torch.tensor(sources),
        targets_n=torch.tensor(targets),
        sequences_n=torch.tensor(sequences),
        weights_n=torch.tensor(weights, dtype=torch.float32),
    )
