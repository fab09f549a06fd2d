"""kernels/logprob.py against autograd of the plain formula in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.logprob import linear_logprob


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def case(tokens: int, size: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, size, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, torch.randn(tokens, generator=generator)


def run(function, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor, **arguments) -> list[Tensor]:
    """Value and both gradients, in fp64."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = function(hidden, weight, targets, **arguments)
    (value * upstream.to(value.dtype)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return [tensor.double() for tensor in (value.detach(), hidden.grad, weight.grad)]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 19), size=st.integers(1, 17), vocabulary=st.integers(1, 131), tile_rows=st.integers(1, 140)
)
def test_value_and_gradients_match_fp64(tokens, size, vocabulary, tile_rows):
    hidden, weight, targets, upstream = case(tokens, size, vocabulary, torch.float32)
    expected = run(plain, hidden.double(), weight.double(), targets, upstream)
    for ours, theirs in zip(
        run(linear_logprob, hidden, weight, targets, upstream, tile_rows=tile_rows), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_bf16_is_as_close_to_fp64_as_the_eager_formula():
    hidden, weight, targets, upstream = case(64, 96, 4999, torch.bfloat16)
    weight *= 0.2
    expected = run(plain, hidden.double(), weight.double(), targets, upstream)
    eager = run(lambda h, w, t: plain(h, w, t).float(), hidden, weight, targets, upstream)
    ours = run(linear_logprob, hidden, weight, targets, upstream, tile_rows=512)
    for mine, theirs, true in zip(ours, eager, expected, strict=True):
        assert (mine - true).norm() <= 1.2 * (theirs - true).norm()


def test_dtypes_and_empty_token_list():
    hidden, weight, targets, upstream = case(0, 8, 31, torch.bfloat16)
    hidden.requires_grad_()
    weight.requires_grad_()
    value = linear_logprob(hidden, weight, targets)
    assert value.shape == (0,) and value.dtype == torch.float32
    (value * upstream).sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16 and not weight.grad.any()


def test_confident_and_hopeless_tokens_stay_finite():
    weight = torch.eye(3) * 200
    hidden = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    value = linear_logprob(hidden, weight, torch.tensor([0, 2]), 2)
    torch.testing.assert_close(value, torch.tensor([0.0, -200.0]))


def test_logits_of_all_tokens_and_vocabulary_never_exist():
    hidden, weight, targets, _ = case(64, 8, 5000, torch.float32)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor))
            return out

    with Watch():
        linear_logprob(hidden.requires_grad_(), weight.requires_grad_(), targets, 100).sum().backward()
    assert max(sizes) <= max(64 * 100, weight.numel())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_matches_fp64(dtype):
    hidden, weight, targets, upstream = (x.cuda() for x in case(300, 256, 12345, dtype))
    weight *= 0.1
    expected = run(plain, hidden.double(), weight.double(), targets, upstream)
    ours = run(linear_logprob, hidden, weight, targets, upstream)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for mine, true in zip(ours, expected, strict=True):
        assert (mine - true).norm() <= tolerance * true.norm()
