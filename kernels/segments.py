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
    """Which packed tokens see one another.

    A segment is a run of tokens, each of which sees those before it in the segment and, if the segment continues
    another one (its prefix), all of that one. So the tokens that several sequences begin with are computed once:
    prompt, chosen, rejected are three segments, of which the latter two continue the first. Those that continue a
    segment stand right behind it, and a prefix has no prefix itself. A plain sequence is a segment by itself.
    """

    borders: list[int]
    """[s + 1], from 0 to t; segment i has the tokens borders[i] to borders[i + 1] - 1."""
    prefixes: list[int]
    """[s]; the segment that each one continues, or -1."""
    cu_seqlens: Tensor
    """`borders` on the device, int32."""
    reach_3s: Tensor
    """int32 [3, s] on the device: first token and length of each one's prefix, and the token behind the last one that
    sees it, in it or in a segment that continues it."""

    @classmethod
    def make(
        cls, lengths: Sequence[int], prefixes: Sequence[int] | None = None, device: torch.device | None = None
    ) -> "Segments":
        """Segments of these lengths; `prefixes` as above, by default none."""
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
        """Of each segment that has tokens: the first one, the one behind the last, and the prefix's."""
        for i, prefix in enumerate(self.prefixes):
            if self.borders[i] < self.borders[i + 1]:
                seen = range(self.borders[prefix], self.borders[prefix + 1]) if prefix >= 0 else range(0)
                yield self.borders[i], self.borders[i + 1], seen
