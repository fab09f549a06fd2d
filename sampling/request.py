"""The engine's input and output."""

from dataclasses import dataclass
from typing import Literal

# A stop token was drawn; `max_new_tokens` or the context's end was reached; the prompt leaves no room.
FinishReason = Literal["stop", "length", "too_long"]


@dataclass(frozen=True)
class Sampling:
    temperature: float  # 0 is greedy
    top_p: float  # 1 is the whole distribution
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    min_new_tokens: int = 0  # none of the stop tokens is drawn before so many others


@dataclass(frozen=True)
class Request:
    id: str
    ids: list[int]  # the whole prompt
    sampling: Sampling
    seed: int  # every draw is a function of seed and position
    named: tuple[int, ...] = ()  # tokens whose probabilities at the completion's first position are returned


@dataclass(frozen=True)
class Completion:
    id: str
    ids: list[int]  # the sampled ones, a stop token at the end included
    finish_reason: FinishReason
    logprob: float  # sum over the ids at the sampling temperature (at 1 where greedy), before top-p
    probabilities: tuple[float, ...] = ()  # of the `named` tokens: softmax of the logits, at temperature 1
