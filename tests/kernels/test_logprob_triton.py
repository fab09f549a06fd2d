"""kernels/logprob_triton.py against the formula in fp64: no farther from it than twice the eager version, logprob.py.

In the interpreter the process must be started with TRITON_INTERPRET=1; on CUDA the eager version still runs on the CPU.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.logprob
from kernels import logprob_triton
from kernels.logprob_triton import linear_logprob

pytestmark = pytest.mark.kernels


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def case(tokens: int, size: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Hidden states, a head whose logits have a standard deviation of 3, targets and an incoming gradient."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator).to(dtype)
    weight = (torch.randn(vocabulary, size, generator=generator) * 3 / size**0.5).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, torch.randn(tokens, generator=generator)


def run(function, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor, **arguments) -> list[Tensor]:
    """Value and both gradients, in fp64 on the CPU."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    value = function(hidden, weight, targets, **arguments)
    (value * upstream.to(value.dtype)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return [tensor.cpu().double() for tensor in (value.detach(), hidden.grad, weight.grad)]


def check(device: torch.device, cases: list[tuple[Tensor, ...]], tile_rows: int) -> None:
    """Errors over all cases together: in one that has a single token, the eager version's may be small by chance."""
    ours, eager = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    sizes = torch.zeros(3, dtype=torch.float64)
    for hidden, weight, targets, upstream in cases:
        expected = run(plain, hidden.double(), weight.double(), targets, upstream)
        result = run(linear_logprob, *(x.to(device) for x in (hidden, weight, targets, upstream)), tile_rows=tile_rows)
        theirs = run(kernels.logprob.linear_logprob, hidden, weight, targets, upstream, tile_rows=tile_rows)
        for i, true in enumerate(expected):
            ours[i] += (result[i] - true).square().sum()
            eager[i] += (theirs[i] - true).square().sum()
            sizes[i] += true.square().sum()
        # A value is a difference of two logits' size, and is 0 where the vocabulary has one row.
        sizes[0] += (hidden.double() * weight[targets].double()).sum(1).square().sum()
        # The eager version rounds the logits of a low dtype on a CPU, so its error would hide a row left out.
        torch.testing.assert_close(result[0], expected[0], atol=1e-4, rtol=1e-5)
    floor = torch.where(eager == 0, 4 * torch.finfo(torch.float32).eps * sizes.sqrt(), 0)
    assert (ours.sqrt() <= 2 * eager.sqrt() + floor).all(), (ours.sqrt(), eager.sqrt())


@pytest.mark.parametrize(
    ("tokens", "size", "vocabulary", "tile_rows"),
    [
        (0, 16, 131, 50),
        (1, 16, 1, 4096),
        (1, 48, 2, 1),
        (1, 576, 4999, 4096),
        (2, 100, 131, 100),
        (2, 576, 1000, 999),
        (31, 16, 2, 4096),
        (31, 48, 1, 1),
        (31, 100, 1000, 300),
        (31, 576, 131, 130),
        (129, 16, 4999, 1111),
        (129, 100, 131, 64),
        (129, 576, 1000, 640),
    ],
)
def test_value_and_gradients_are_as_close_to_fp64_as_the_eager_version(
    tokens, size, vocabulary, tile_rows, device, dtype
):
    seeds = range(8 if tokens <= 2 and vocabulary < 1000 else 1)
    check(device, [case(tokens, size, vocabulary, dtype, seed) for seed in seeds], tile_rows)


def test_more_blocks_of_tokens_than_a_group_has(device, dtype):
    check(device, [case(18 * 128 + 5, 16, 300, dtype)], 170)


@pytest.mark.parametrize("programs", [1, 5])
def test_slices_of_several_steps(programs, device, dtype, monkeypatch):
    """The last one shorter, and all of them in one program."""
    monkeypatch.setattr(logprob_triton, "PROGRAMS", programs)
    check(device, [case(130, 48, 1700, dtype)], 4096)


def test_targets_at_the_borders_of_blocks_and_tiles(device, dtype):
    hidden, weight, _, upstream = case(14, 48, 1000, dtype)
    targets = torch.tensor([0, 1, 63, 64, 127, 128, 255, 256, 299, 300, 599, 600, 998, 999])
    check(device, [(hidden, weight, targets, upstream)], 300)


def test_what_is_no_token_has_the_value_of_the_eager_version(device, dtype):
    hidden, weight, _, _ = case(4, 48, 131, dtype)
    targets = torch.tensor([-100, 131, 2**31 + 5, 3])
    result = linear_logprob(*(x.to(device) for x in (hidden, weight, targets)))
    expected = kernels.logprob.linear_logprob(hidden.float(), weight.float(), targets)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=1e-5)


def test_what_new_memory_holds_does_not_matter(device, dtype):
    """Deterministic algorithms fill new memory with NaN. oneDNN's bf16 product reads behind the end of strided rows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        check(device, [case(129, 48, 1000, dtype)], 131)
    finally:
        torch.use_deterministic_algorithms(False)


def test_large_logits_stay_finite(device, dtype):
    hidden, weight, targets, upstream = case(31, 48, 1000, dtype)
    check(device, [(hidden * 30, weight, targets, upstream)], 300)


def test_confident_and_hopeless_tokens(device, dtype):
    weight = (torch.eye(16, device=device) * 200).to(dtype)
    hidden = weight[:2] / 200
    value = linear_logprob(hidden, weight, torch.tensor([0, 0], device=device), 2)
    assert value.tolist() == [0.0, -200.0]


def test_tokens_with_a_zero_gradient_take_no_part(device, dtype):
    hidden, weight, targets, upstream = (x.to(device) for x in case(31, 48, 131, dtype))
    upstream[::3] = 0
    _, grad_hidden, grad_weight = run(linear_logprob, hidden, weight, targets, upstream, tile_rows=50)
    assert not grad_hidden[::3].any() and grad_hidden[1::3].any(1).all()
    hidden[::3] *= -2
    assert torch.equal(run(linear_logprob, hidden, weight, targets, upstream, tile_rows=50)[2], grad_weight)


def test_no_tokens_give_a_zero_weight_gradient(device, dtype):
    hidden, weight, targets, _ = (x.to(device) for x in case(0, 16, 131, dtype))
    value = linear_logprob(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert value.shape == (0,) and value.dtype == torch.float32
    value.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == dtype and not weight.grad.any()


@pytest.mark.parametrize("layout", ["wide", "every other row", "transposed"])
def test_strided_inputs_and_targets(layout, device, dtype):
    def lay_out(x: Tensor) -> Tensor:
        if layout == "transposed":
            return x.t().contiguous().t()
        shape = (len(x), x.shape[1] + 7) if layout == "wide" else (2 * len(x), x.shape[1])
        room = x.new_full(shape, torch.nan)
        view = room[:, : x.shape[1]] if layout == "wide" else room[::2]
        return view.copy_(x)

    hidden, weight, targets, upstream = (x.to(device) for x in case(31, 48, 131, dtype))
    expected = run(linear_logprob, hidden, weight, targets, upstream, tile_rows=50)
    spread = torch.stack([targets, torch.zeros_like(targets)], 1)[:, 0]
    leaves = lay_out(hidden).requires_grad_(), lay_out(weight).requires_grad_()
    value = linear_logprob(*leaves, spread, tile_rows=50)
    (value * upstream).sum().backward()
    assert torch.equal(value.detach().cpu().double(), expected[0])
    for leaf, true in zip(leaves, expected[1:], strict=True):
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        error = (leaf.grad.cpu().double() - true).norm()  # another layout is another product of the library's
        assert error <= 4 * torch.finfo(dtype).eps * true.norm()


def test_a_gradient_that_is_one_number_for_all_tokens(device, dtype):
    hidden, weight, targets, _ = (x.to(device) for x in case(31, 48, 131, dtype))
    expected = run(linear_logprob, hidden, weight, targets, torch.ones(31, device=device), tile_rows=50)
    hidden.requires_grad_()
    linear_logprob(hidden, weight, targets, 50).sum().backward()
    assert hidden.grad is not None and torch.equal(hidden.grad.cpu().double(), expected[1])


class Watch(TorchDispatchMode):
    """Bytes of all tensors made, and the number of matrix products."""

    def __init__(self):
        super().__init__()
        self.bytes: list[int] = []
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.bytes += [x.nbytes for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return out


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_that_nobody_wants_costs_no_product(which, device, dtype):
    hidden, weight, targets, upstream = (x.to(device) for x in case(31, 48, 131, dtype))
    expected = run(linear_logprob, hidden, weight, targets, upstream, tile_rows=50)
    leaves = [hidden, weight]
    leaves[which].requires_grad_()
    with Watch() as watch:
        (linear_logprob(hidden, weight, targets, 50) * upstream).sum().backward()
    assert watch.products == 3
    assert leaves[1 - which].grad is None
    grad = leaves[which].grad
    assert grad is not None and torch.equal(grad.cpu().double(), expected[1 + which])


def test_logits_of_all_tokens_and_vocabulary_never_exist(device, dtype):
    hidden, weight, targets, _ = (x.to(device) for x in case(64, 8, 5000, dtype))
    with Watch() as watch:
        linear_logprob(hidden.requires_grad_(), weight.requires_grad_(), targets, 100).sum().backward()
    assert max(watch.bytes) <= max(64 * 100 * 4, weight.nbytes)


def test_offsets_beyond_31_bits(device):
    """Rows so far apart that the last one's offset has 32 bits, in memory of which only the rows are ever touched."""
    if device.type == "cuda":
        pytest.skip("cuBLAS, which has the gradients' products, is not known to take such strides")
    stride, dtype = 720_000_000, torch.bfloat16
    hidden, weight, targets, upstream = (x.to(device) for x in case(4, 48, 4, dtype))
    expected = run(linear_logprob, hidden, weight, targets, upstream)
    for far in ({0}, {1}):
        leaves = [
            torch.empty(3 * stride + 48, dtype=dtype, device=device).as_strided((4, 48), (stride, 1)).copy_(x)
            if i in far
            else x.clone()
            for i, x in enumerate((hidden, weight))
        ]
        value = linear_logprob(*(leaf.requires_grad_() for leaf in leaves), targets)
        (value * upstream).sum().backward()
        assert torch.equal(value.detach().cpu().double(), expected[0])
        for leaf, true in zip(leaves, expected[1:], strict=True):
            assert leaf.grad is not None
            assert (leaf.grad.cpu().double() - true).norm() <= 4 * torch.finfo(dtype).eps * true.norm()


def test_forward_and_slope_beyond_31_bits(device):
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    hidden, weight, targets, upstream = (x.to(device) for x in case(4, 48, 4, torch.bfloat16))
    value, logsumexp = logprob_triton.forward(hidden, weight, targets)
    for i in (0, 1):
        inputs = [hidden, weight]
        inputs[i] = torch.empty(3 * 720_000_000 + 48, dtype=hidden.dtype, device=device)
        inputs[i] = inputs[i].as_strided((4, 48), (720_000_000, 1)).copy_((hidden, weight)[i])
        assert torch.equal(logprob_triton.forward(*inputs, targets)[0], value)
    near = torch.empty(4, 4, dtype=torch.bfloat16, device=device)
    far = torch.empty(3 * 720_000_000 + 4, dtype=torch.bfloat16, device=device).as_strided((4, 4), (720_000_000, 1))
    for out in (near, far):
        logprob_triton.slope(hidden, weight, targets, logsumexp, upstream, 0, out)
    assert torch.equal(near, far)


@pytest.mark.parametrize("wrong", ["dtype", "targets", "size", "tokens"])
def test_inputs_that_do_not_go_together(wrong, device):
    hidden, weight, targets, _ = (x.to(device) for x in case(4, 48, 131, torch.bfloat16))
    if wrong == "dtype":
        weight = weight.half()
    if wrong == "targets":
        targets = targets.int()
    if wrong == "size":
        weight = weight[:, :40]
    if wrong == "tokens":
        targets = targets[:3]
    with pytest.raises(ValueError, match="do not go together"):
        linear_logprob(hidden, weight, targets)
