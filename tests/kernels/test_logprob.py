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
FP16, BF16 = torch.float16, torch.bfloat16
BORDERS = torch.tensor([0, 1, 63, 64, 127, 128, 255, 256, 299, 300, 599, 600, 998, 999])  # of blocks and tiles


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def case(tokens: int, size: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Hidden states, a head whose logits have a standard deviation of 3, targets and an incoming gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, size, generator=generator).to(dtype)
    weight = (torch.randn(vocabulary, size, generator=generator) * 3 / size**0.5).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, torch.randn(tokens, generator=generator)


def run(function, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> list[Tensor]:
    """Value and both gradients, in fp64 on the CPU."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
    value = function(*leaves, targets)
    gradients = torch.autograd.grad(value, leaves, upstream.to(value.dtype))
    return [tensor.detach().cpu().double() for tensor in (value, *gradients)]


@settings(max_examples=20)
@given(st.integers(0, 19), st.integers(1, 17), st.integers(1, 131), st.integers(1, 140))
def test_eager_value_and_gradients_match_fp64(tokens, size, vocabulary, tile_rows):
    hidden, weight, *others = case(tokens, size, vocabulary, torch.float32)
    expected = run(plain, hidden.double(), weight.double(), *others)
    result = run(partial(logprob.linear_logprob, tile_rows=tile_rows), hidden, weight, *others)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_eager_is_as_close_to_fp64_as_the_plain_formula(place):
    hidden, weight, *others = (x.to(place) for x in case(64, 96, 1999, BF16))
    true = run(plain, hidden.double(), weight.double(), *others)
    theirs = run(lambda h, w, t: plain(h, w, t).float(), hidden, weight, *others)
    ours = run(partial(logprob.linear_logprob, tile_rows=512), hidden, weight, *others)
    for mine, other, exact in zip(ours, theirs, true, strict=True):
        assert (mine - exact).norm() <= 1.2 * (other - exact).norm()


@pytest.mark.parametrize("function", [logprob.linear_logprob, pytest.param(linear_logprob, marks=kernels)])
def test_confident_and_hopeless_tokens_are_exact(function):
    place = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
    weight = (torch.eye(16, device=place) * 200).bfloat16()
    assert function(weight[:2] / 200, weight, torch.tensor([0, 0], device=place), 2).tolist() == [0.0, -200.0]


@pytest.mark.parametrize("function", [logprob.linear_logprob, pytest.param(linear_logprob, marks=kernels)])
def test_a_frozen_head_leaves_the_hidden_states_their_gradient(function):
    place = "cuda" if torch.cuda.is_available() and not interpreted() else "cpu"
    hidden, weight, targets, upstream = (x.to(place) for x in case(16, 32, 99, BF16))
    _, expected, _ = run(function, hidden, weight, targets, upstream)
    function(hidden.requires_grad_(), weight, targets).backward(upstream)
    assert torch.equal(hidden.grad.cpu().double(), expected) and weight.grad is None


class Small(TorchDispatchMode):
    """No operation makes a tensor larger than 64 x 96 numbers in fp32."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            assert not isinstance(x, Tensor) or x.nbytes <= 64 * 96 * 4
        return out


@pytest.mark.parametrize("function", [logprob.linear_logprob, pytest.param(linear_logprob, marks=kernels)])
def test_logits_of_all_tokens_and_vocabulary_never_exist(function):
    place, dtype = ("cuda", BF16) if torch.cuda.is_available() and not interpreted() else ("cpu", torch.float32)
    hidden, weight, targets, _ = (x.to(place) for x in case(64, 8, 700, dtype))
    with Small():
        function(hidden.requires_grad_(), weight.requires_grad_(), targets, 96).sum().backward()


@pytest.fixture
def unfilled():
    """New memory holds NaN, so what is read before it is written shows: by oneDNN, too, behind strided rows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@kernels
@pytest.mark.parametrize(
    ("tokens", "size", "vocabulary", "tile_rows", "dtype", "change"),
    [
        (0, 16, 131, 50, BF16, {}),
        (1, 16, 1, 4096, FP16, {}),
        (2, 100, 131, 100, BF16, {}),
        (31, 576, 131, 130, BF16, {}),
        (31, 48, 300, 300, BF16, {"scale": 30}),  # large logits
        (129, 100, 300, 64, FP16, {}),
        (17 * 128 + 5, 16, 140, 170, FP16, {}),  # more blocks of tokens than a group has
        (130, 48, 600, 4096, BF16, {"programs": 1}),  # one slice
        (130, 48, 600, 4096, BF16, {"programs": 5}),  # slices of several steps, the last one shorter
        (len(BORDERS), 48, 1000, 300, FP16, {"targets": BORDERS}),
    ],
)
def test_as_close_to_fp64_as_the_eager_version(
    tokens, size, vocabulary, tile_rows, dtype, change, device, monkeypatch, unfilled
):
    monkeypatch.setattr(logprob_triton, "PROGRAMS", change.get("programs", logprob_triton.PROGRAMS))
    hidden, weight, targets, upstream = case(tokens, size, vocabulary, dtype)
    hidden, targets = hidden * change.get("scale", 1), change.get("targets", targets)
    true = run(plain, hidden.double(), weight.double(), targets, upstream)
    ours, eager = (partial(f, tile_rows=tile_rows) for f in (linear_logprob, logprob.linear_logprob))
    result = run(ours, *(x.to(device) for x in (hidden, weight, targets, upstream)))
    for mine, other, exact in zip(result, run(eager, hidden, weight, targets, upstream), true, strict=True):
        # The eager version's error may be small by chance, or 0: where the vocabulary has one row.
        floor = (2.0**-9 if tokens <= 2 else 0) * exact.norm() + 1e-6 * hidden.double().norm()
        assert (mine - exact).norm() <= 2 * (other - exact).norm() + floor
    # The eager version rounds the logits of a low dtype on a CPU, so its error would hide a row left out.
    torch.testing.assert_close(result[0], true[0], atol=1e-4, rtol=1e-5)


@kernels
@pytest.mark.parametrize("layout", ["wide", "every other row", "transposed"])
def test_strided_inputs_and_targets_and_one_gradient_for_all(layout, device):
    def lay_out(x: Tensor) -> Tensor:
        room = x.new_full((2 * len(x), x.shape[1] + 7), torch.nan)
        views = {"wide": room[: len(x), : x.shape[1]], "every other row": room[::2, : x.shape[1]]}
        return x.t().contiguous().t() if layout == "transposed" else views[layout].copy_(x)

    hidden, weight, targets, _ = (x.to(device) for x in case(31, 48, 131, FP16))
    function, ones = partial(linear_logprob, tile_rows=50), torch.ones(31, device=device)
    expected = run(function, hidden, weight, targets, ones)
    leaves = [lay_out(x).requires_grad_() for x in (hidden, weight)]
    value = function(*leaves, torch.stack([targets, torch.zeros_like(targets)], 1)[:, 0])
    value.sum().backward()  # of one number, expanded
    assert torch.equal(value.detach().cpu().double(), expected[0])
    for leaf, true in zip(leaves, expected[1:], strict=True):
        assert leaf.grad is not None and leaf.grad.dtype == FP16
        error = (leaf.grad.cpu().double() - true).norm()  # another layout is another product of the library's
        assert error <= 4 * torch.finfo(FP16).eps * true.norm()


@kernels
def test_offsets_beyond_31_bits(device):
    """Rows so far apart that the last one's offset has 32 bits, in memory of which only the rows are ever touched."""
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    hidden, weight, targets, upstream = (x.to(device) for x in case(4, 48, 4, BF16))

    def far(x: Tensor) -> Tensor:
        memory = torch.empty(3 * 720_000_000 + 48, dtype=x.dtype, device=device)
        return memory.as_strided(x.shape, (720_000_000, 1)).copy_(x)

    value, logsumexp = logprob_triton.forward(hidden, weight, targets)
    for inputs in ((far(hidden), weight), (hidden, far(weight))):
        assert torch.equal(logprob_triton.forward(*inputs, targets)[0], value)
    near = torch.empty(4, 4, dtype=BF16, device=device)
    away = far(near)
    for out in (near, away):
        logprob_triton.slope(hidden, weight, targets, logsumexp, upstream, 0, out)
    assert torch.equal(near, away)


@kernels
def test_inputs_that_do_not_go_together(device):
    hidden, weight, targets, _ = (x.to(device) for x in case(4, 48, 131, BF16))
    with pytest.raises(ValueError, match="do not go together"):
        linear_logprob(hidden, weight[:, :40], targets)
