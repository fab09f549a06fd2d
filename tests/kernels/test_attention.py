"""kernels/attention.py: the plain attention equals PyTorch's fused kernel."""

import pytest
import torch

from kernels.attention import _fused, _plain


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_plain_attention_is_the_fused_one(diagonal):
    generator = torch.Generator().manual_seed(0)
    queries, keys = 37, 37 if diagonal else 21
    q = torch.randn(queries, 6, 16, generator=generator)
    k, v = (torch.randn(keys, 2, 16, generator=generator) for _ in range(2))
    for result, expected in zip(_plain(q, k, v, diagonal), _fused(q, k, v, diagonal), strict=True):
        torch.testing.assert_close(result, expected)
