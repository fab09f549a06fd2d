"""Accuracy of a kernel: its error against fp64 is at most twice that of the eager version in the same dtype."""

from collections.abc import Iterable

import torch
from torch import Tensor


def assert_as_close(ours: Iterable[Tensor], eager: Iterable[Tensor], true: Iterable[Tensor]) -> None:
    for mine, theirs, exact in zip(ours, eager, true, strict=True):
        assert exact.dtype == torch.float64 and mine.dtype == theirs.dtype
        mine, theirs, exact = mine.cpu().double(), theirs.cpu().double(), exact.cpu()
        assert (mine - exact).norm() <= 2 * (theirs - exact).norm()
        assert (mine - exact).abs().max() <= 3 * (theirs - exact).abs().max()
