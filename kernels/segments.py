"""Which tokens of a packed training batch see one another.

Shapes: t tokens of all segments, s segments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.transfer import to_device


@dataclass(frozen=True)
class Segments:
    """The segments of a packed batch.

    A segment is a run of tokens. Each token sees the tokens before it in the segment and, if the segment continues
    another one (its prefix), all of the prefix. So a shared beginning of several sequences is computed once: prompt,
    chosen and rejected are three segments, of which the latter two continue the first. Segments that continue another
    one stand directly behind it, and a prefix has no prefix itself. A plain sequence is one segment.
    """

    borders: list[int]
    """[s + 1], from 0 to t; segment i is the tokens [borders[i], borders[i + 1])."""
    prefixes: list[int]
    """[s]; index of each segment's prefix, or -1."""
    cu_seqlens: Tensor
    """`borders` on the device, int32."""
    reach_3s: Tensor
    """int32 [3, s] on the device: first token and length of each segment's prefix, and the token behind the last one
    that sees the segment."""

    @classmethod
    def make(
        cls, lengths: Sequence[int], prefixes: Sequence[int] | None = None, device: torch.device | None = None
    ) -> "Segments":
        """Segments of these lengths; `prefixes` as above, none by default."""
        prefixes = [-1] * len(lengths) if prefixes is None else list(prefixes)
        borders = [0]
        for count in lengths:
            borders.append(borders[-1] + count)
        ends = borders[1:]
        for i, prefix in enumerate(prefixes):
            if prefix >= 0:
                assert prefixes[prefix] < 0 and all(p == prefix for p in prefixes[prefix + 1 : i]), "not in preorder"
                ends[prefix] = borders[i + 1]
        starts = [borders[prefix] if prefix >= 0 else 0 for prefix in prefixes]
        shared = [lengths[prefix] if prefix >= 0 else 0 for prefix in prefixes]
        table = to_device(borders + starts + shared + ends, torch.int32, device or torch.device("cpu"))
        return cls(borders, prefixes, table[: len(borders)], table[len(borders) :].view(3, -1))

    def ranges(self) -> Iterator[tuple[int, int, range]]:
        """Of each segment that has tokens: first token, token behind the last, and the prefix's tokens."""
        for i, prefix in enumerate(self.prefixes):
            if self.borders[i] < self.borders[i + 1]:
                seen = range(self.borders[prefix], self.borders[prefix + 1]) if prefix >= 0 else range(0)
                yield self.borders[i], self.borders[i + 1], seen
