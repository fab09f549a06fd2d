"""What goes into the engine and what comes out."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "too_long"]
"""A stop token was sampled; `max_new_tokens` or the context was reached; the prompt does not fit."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 is greedy; top_p 1 is the whole distribution."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Request:
    """One completion wanted: `ids` is the whole prompt; every draw is a function of (`seed`, position)."""

    id: str
    ids: list[int]
    sampling: Sampling
    seed: int
    named: tuple[int, ...] = ()
    """Tokens whose probabilities the completion reports, at its first position."""


@dataclass(frozen=True)
class Completion:
    """The sampled `ids`, the stop token included where there is one.

    `logprob` sums the log-probabilities of the sampled ids at the sampling temperature (at 1 where greedy), before
    top-p.
    """

    id: str
    ids: list[int]
    finish_reason: FinishReason
    logprob: float
    probabilities: tuple[float, ...] = ()
    """Of the request's `named` tokens at the first new position: softmax of the logits, at temperature 1."""
