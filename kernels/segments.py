"""Which tokens of a packed training batch see one another. Shapes: t tokens of all segments, s segments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kernels.launch import CPU, to_device


@dataclass(frozen=True)
class Segments:
    """The segments of a packed batch. Each token sees the tokens before it in its segment, and all of its prefix: a
    segment without a prefix itself, directly before the segments that continue it, such as a pair's prompt."""

    borders: list[int]  # [s + 1], from 0 to t: segment i is the tokens [borders[i], borders[i + 1])
    prefixes: list[int]  # [s]: index of each segment's prefix, or -1
    cu_seqlens: Tensor  # `borders` on the device, int32
    reach_3s: Tensor  # int32: first token and length of the segment's prefix; the token behind the last that sees it

    @classmethod
    def make(cls, lengths: Sequence[int], prefixes: Sequence[int] = (), device: torch.device = CPU) -> "Segments":
        prefixes, borders = list(prefixes or [-1] * len(lengths)), [0, *accumulate(lengths)]
        ends = borders[1:]
        for i, prefix in enumerate(prefixes):
            if prefix >= 0:
                assert prefixes[prefix] < 0 and all(p == prefix for p in prefixes[prefix + 1 : i]), "not in preorder"
                ends[prefix] = borders[i + 1]
        starts, counts = ([values[p] if p >= 0 else 0 for p in prefixes] for values in (borders, lengths))
        table = to_device(borders + starts + counts + ends, torch.int32, device)
        return cls(borders, prefixes, table[: len(borders)], table[len(borders) :].view(3, -1))

    def ranges(self) -> Iterator[tuple[int, int, range]]:
        """Of each segment that has tokens: first token, token behind the last, and the prefix's tokens."""
        for (start, end), prefix in zip(pairwise(self.borders), self.prefixes, strict=True):
            if start < end:
                yield start, end, range(self.borders[prefix], self.borders[prefix + 1]) if prefix >= 0 else range(0)
