"""Log-probabilities, eager and in Triton, against autograd of the plain formula in fp64.

In the interpreter the process must be started with TRITON_INTERPRET=1; on CUDA the eager version still runs on the CPU.
"""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import logprob, logprob_triton
from kernels.launch import interpreted
from kernels.logprob_triton import linear_logprob

kernels = pytest.mark.kernels


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def case(tokens: int, size: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Hidden states, a head whose logits have a standard deviation of 3, targets and an incoming gradient."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator).to(dtype)
    weight = (torch.randn(vocabulary, size, generator=generator) * 3 / size**0.5).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, torch.randn(tokens, generator=generator)


def run(function, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> list[Tensor]:
    """Value and both gradients, in fp64 on the CPU."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    value = function(hidden, weight, targets)
    (value * upstream.to(value.dtype)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return [tensor.cpu().double() for tensor in (value.detach(), hidden.grad, weight.grad)]


@settings(max_examples=20)
@given(
    tokens=st.integers(0, 19), size=st.integers(1, 17), vocabulary=st.integers(1, 131), tile_rows=st.integers(1, 140)
)
def test_eager_value_and_gradients_match_fp64(tokens, size, vocabulary, tile_rows):
    hidden, weight, *others = case(tokens, size, vocabulary, torch.float32)
    expected = run(plain, hidden.double(), weight.double(), *others)
    result = run(partial(logprob.linear_logprob, tile_rows=tile_rows), hidden, weight, *others)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_eager_bf16_is_as_close_to_fp64_as_the_plain_formula():
    hidden, weight, *others = case(64, 96, 1999, torch.bfloat16)
    expected = run(plain, hidden.double(), weight.double(), *others)
    theirs = run(lambda h, w, t: plain(h, w, t).float(), hidden, weight, *others)
    ours = run(partial(logprob.linear_logprob, tile_rows=512), hidden, weight, *others)
    for mine, other, true in zip(ours, theirs, expected, strict=True):
        assert (mine - true).norm() <= 1.2 * (other - true).norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_cuda_matches_fp64(dtype):
    hidden, weight, *others = (x.cuda() for x in case(300, 256, 12345, dtype))
    expected = run(plain, hidden.double(), weight.double(), *others)
    ours = run(logprob.linear_logprob, hidden, weight, *others)
    for mine, true in zip(ours, expected, strict=True):
        assert (mine - true).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * true.norm()


def test_eager_confident_and_hopeless_tokens_and_no_tokens():
    weight, hidden = torch.eye(3) * 200, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    value = logprob.linear_logprob(hidden, weight, torch.tensor([0, 2]), 2)
    torch.testing.assert_close(value, torch.tensor([0.0, -200.0]))
    empty = logprob.linear_logprob(hidden[:0].bfloat16(), weight.bfloat16(), torch.tensor([], dtype=torch.int64))
    assert empty.shape == (0,) and empty.dtype == torch.float32


class Small(TorchDispatchMode):
    """No operation makes a tensor larger than 64 x 96 numbers in fp32."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            assert not isinstance(x, Tensor) or x.nbytes <= 64 * 96 * 4
        return out


@pytest.mark.parametrize("function", [logprob.linear_logprob, pytest.param(linear_logprob, marks=kernels)])
def test_logits_of_all_tokens_and_vocabulary_never_exist(function):
    place = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
    dtype = torch.float32 if place == "cpu" else torch.bfloat16
    hidden, weight, targets, _ = (x.to(place) for x in case(64, 8, 700, dtype))
    with Small():
        function(hidden.requires_grad_(), weight.requires_grad_(), targets, 96).sum().backward()


def check(device: torch.device, cases: list[tuple[Tensor, ...]], tile_rows: int) -> None:
    """Triton's errors are at most twice the eager version's, over all cases together: in one that has a single token,
    the eager version's may be small by chance."""
    ours, eager, sizes = torch.zeros(3, 3, dtype=torch.float64)
    for hidden, weight, targets, upstream in cases:
        expected = run(plain, hidden.double(), weight.double(), targets, upstream)
        moved = (x.to(device) for x in (hidden, weight, targets, upstream))
        result = run(partial(linear_logprob, tile_rows=tile_rows), *moved)
        theirs = run(partial(logprob.linear_logprob, tile_rows=tile_rows), hidden, weight, targets, upstream)
        for errors, values in ((ours, result), (eager, theirs), (sizes, [2 * x for x in expected])):
            errors += torch.stack([(x - true).square().sum() for x, true in zip(values, expected, strict=True)])
        # A value is a difference of two logits' size, and is 0 where the vocabulary has one row.
        sizes[0] += (hidden.double() * weight[targets].double()).sum(1).square().sum()
        # The eager version rounds the logits of a low dtype on a CPU, so its error would hide a row left out.
        torch.testing.assert_close(result[0], expected[0], atol=1e-4, rtol=1e-5)
    floor = torch.where(eager == 0, 4 * torch.finfo(torch.float32).eps * sizes.sqrt(), 0)
    assert (ours.sqrt() <= 2 * eager.sqrt() + floor).all(), (ours.sqrt(), eager.sqrt())


@pytest.fixture
def single(device) -> torch.dtype:
    """What the kernels take there that is most exact."""
    return torch.float32 if device.type == "cpu" else torch.float16


@kernels
@pytest.mark.parametrize(
    ("tokens", "size", "vocabulary", "tile_rows", "dtype"),
    [
        (0, 16, 131, 50, torch.bfloat16),
        (1, 16, 1, 4096, torch.float16),
        (2, 100, 131, 100, torch.bfloat16),
        (31, 48, 2, 1, torch.float16),
        (31, 576, 131, 130, torch.bfloat16),
        (129, 100, 300, 64, torch.float16),
        (129, 48, 257, 131, torch.bfloat16),
    ],
)
def test_value_and_gradients_are_as_close_to_fp64_as_the_eager_version(
    tokens, size, vocabulary, tile_rows, device, dtype
):
    check(device, [case(tokens, size, vocabulary, dtype, seed) for seed in range(8 if tokens == 2 else 1)], tile_rows)


@kernels
def test_more_blocks_of_tokens_than_a_group_has(device, single):
    check(device, [case(17 * 128 + 5, 16, 140, single)], 170)


@kernels
@pytest.mark.parametrize("programs", [1, 5])
def test_slices_of_several_steps(programs, device, monkeypatch):
    """The last one shorter, and all of them in one program."""
    monkeypatch.setattr(logprob_triton, "PROGRAMS", programs)
    check(device, [case(130, 48, 600, torch.bfloat16)], 4096)


@kernels
def test_targets_at_the_borders_of_blocks_and_tiles(device, single):
    hidden, weight, _, upstream = case(14, 48, 1000, single)
    targets = torch.tensor([0, 1, 63, 64, 127, 128, 255, 256, 299, 300, 599, 600, 998, 999])
    check(device, [(hidden, weight, targets, upstream)], 300)


@kernels
def test_what_is_no_token_has_the_value_of_the_eager_version(device):
    hidden, weight, _, _ = case(4, 48, 131, torch.float16)
    targets = torch.tensor([-100, 131, 2**31 + 5, 3])
    result = linear_logprob(*(x.to(device) for x in (hidden, weight, targets)))
    expected = logprob.linear_logprob(hidden.float(), weight.float(), targets)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=1e-5)


@kernels
def test_what_new_memory_holds_does_not_matter(device):
    """Deterministic algorithms fill new memory with NaN. oneDNN's bf16 product reads behind the end of strided rows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        check(device, [case(129, 48, 300, torch.bfloat16)], 131)
    finally:
        torch.use_deterministic_algorithms(False)


@kernels
def test_large_logits_stay_finite_and_confident_and_hopeless_tokens_are_exact(device):
    hidden, weight, targets, upstream = case(31, 48, 300, torch.bfloat16)
    check(device, [(hidden * 30, weight, targets, upstream)], 300)
    weight = (torch.eye(16, device=device) * 200).bfloat16()
    value = linear_logprob(weight[:2] / 200, weight, torch.tensor([0, 0], device=device), 2)
    assert value.tolist() == [0.0, -200.0]


@kernels
@pytest.mark.parametrize("layout", ["wide", "every other row", "transposed"])
def test_strided_inputs_and_targets_and_one_gradient_for_all(layout, device, single):
    def lay_out(x: Tensor) -> Tensor:
        if layout == "transposed":
            return x.t().contiguous().t()
        shape = (len(x), x.shape[1] + 7) if layout == "wide" else (2 * len(x), x.shape[1])
        room = x.new_full(shape, torch.nan)
        view = room[:, : x.shape[1]] if layout == "wide" else room[::2]
        return view.copy_(x)

    hidden, weight, targets, _ = (x.to(device) for x in case(31, 48, 131, single))
    expected = run(partial(linear_logprob, tile_rows=50), hidden, weight, targets, torch.ones(31, device=device))
    spread = torch.stack([targets, torch.zeros_like(targets)], 1)[:, 0]
    leaves = lay_out(hidden).requires_grad_(), lay_out(weight).requires_grad_()
    value = linear_logprob(*leaves, spread, tile_rows=50)
    value.sum().backward()
    assert torch.equal(value.detach().cpu().double(), expected[0])
    for leaf, true in zip(leaves, expected[1:], strict=True):
        assert leaf.grad is not None and leaf.grad.dtype == single
        error = (leaf.grad.cpu().double() - true).norm()  # another layout is another product of the library's
        assert error <= 4 * torch.finfo(single).eps * true.norm()


@kernels
def test_offsets_beyond_31_bits(device):
    """Rows so far apart that the last one's offset has 32 bits, in memory of which only the rows are ever touched."""
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    hidden, weight, targets, upstream = (x.to(device) for x in case(4, 48, 4, torch.bfloat16))

    def far(x: Tensor) -> Tensor:
        memory = torch.empty(3 * 720_000_000 + 48, dtype=x.dtype, device=device)
        return memory.as_strided(x.shape, (720_000_000, 1)).copy_(x)

    value, logsumexp = logprob_triton.forward(hidden, weight, targets)
    for inputs in ((far(hidden), weight), (hidden, far(weight))):
        assert torch.equal(logprob_triton.forward(*inputs, targets)[0], value)
    near = torch.empty(4, 4, dtype=torch.bfloat16, device=device)
    away = far(near)
    for out in (near, away):
        logprob_triton.slope(hidden, weight, targets, logsumexp, upstream, 0, out)
    assert torch.equal(near, away)
