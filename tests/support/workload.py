"""A small model and the requests that engines are tested with."""

from collections.abc import Sequence
from pathlib import Path

import torch

from kernels.attention import VarlenAttention
from kernels.segments import Segments
from model.llama import Llama, logits_head
from sampling.request import Request, Sampling

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama3"
GREEDY = Sampling(0.0, 1.0, 24)


def mixed_requests(count: int, sampling: Sampling = GREEDY) -> list[Request]:
    """Prompts of mixed lengths; families of three share prefixes that end within a block."""
    generator = torch.Generator().manual_seed(5)
    requests = []
    for i in range(count):
        length = int(torch.randint(1, 70, (1,), generator=generator))
        ids = torch.randint(3, 131, (length,), generator=generator).tolist()
        if i % 3:
            ids = requests[-1].ids[: 5 + 7 * (i % 3)] + ids[: length // 2]
        requests.append(Request(str(i), ids, sampling, seed=i))
    return requests


def greedy_by_full_forwards(model: Llama, ids: list[int], count: int, forbidden: Sequence[int] = ()) -> list[int]:
    """The oracle: no cache, one whole forward a token, which is none of the `forbidden` ones."""
    tokens = list(ids)
    for _ in range(count):
        attend = VarlenAttention(Segments.make([len(tokens)]))
        logits = model(torch.tensor(tokens), torch.arange(len(tokens)), attend, logits_head)
        logits[-1, list(forbidden)] = -torch.inf
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(ids) :]
