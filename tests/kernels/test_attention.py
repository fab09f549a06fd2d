"""Attention over packed segments, eager and in Triton, against the formula in fp64."""

from functools import partial

import pytest
import torch
from accuracy import assert_as_close

from kernels import attention, launch
from kernels.launch import Launch
from kernels.rope import apply_rope, rope_tables
from kernels.segments import Segments
from stages.command import UserError

kernels = pytest.mark.kernels

# Lengths and prefixes of segments, by what is special about them.
TREES = {
    "plain": ([1, 2, 0, 31, 129, 0], [-1] * 6),
    "mixed": ([37, 64, 129, 5, 0, 70, 3], [-1, 0, 0, -1, 3, 3, -1]),
    "whole tiles": ([64, 64, 128, 65], [-1, 0, -1, 2]),
    "around tiles": ([63, 2, 65, 127, 1], [-1, 0, -1, 2, 2]),
    "empty": ([0, 7, 0, 64, 0, 5, 0], [-1, 0, -1, 2, -1, 4, 4]),
}


def plain(lengths, prefixes, q, k, v):
    """softmax(q k^T / sqrt(d)) v over the tokens up to i in its segment, and all tokens of the prefix."""
    segment_t = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    own = (segment_t[:, None] == segment_t).tril()
    seen = (own | (torch.tensor(prefixes)[segment_t][:, None] == segment_t)).to(q.device)
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1)) / q.shape[2] ** 0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v.repeat_interleave(group, 1))


ours = partial(attention.varlen_attention, triton=True)


def run(function, *given):
    """Value and gradients for some inputs and an incoming gradient."""
    *inputs, upstream = (x.clone().requires_grad_() for x in given)
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def assert_exact(tree, inputs, function):
    """Value and gradients are those of the formula in fp64."""
    exact = run(partial(plain, *tree), *(x.double() for x in inputs))
    result = run(partial(function, segments=Segments.make(*tree)), *inputs)
    for mine, true in zip(result, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, atol=2e-5, rtol=2e-5)


def tensors(tokens, heads, kv_heads, d, dtype, device, seed=0):
    """Queries, keys, values and an incoming gradient."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(tokens, n, d, generator=generator).to(device, dtype) for n in sizes]


def test_rotation_and_its_gradient_are_those_of_complex_numbers():
    x, _, _, upstream = tensors(5, 3, 1, 16, torch.float32, "cpu")
    frequencies = torch.rand(8, generator=torch.Generator().manual_seed(1))
    turn = torch.polar(torch.ones(5, 1, 8), torch.arange(5.0)[:, None, None] * frequencies)
    ours = run(lambda x: apply_rope(x, rope_tables(torch.arange(5), frequencies)), x, upstream)
    theirs = run(lambda x: torch.complex(*x.chunk(2, -1)) * turn, x, torch.complex(*upstream.chunk(2, -1)))
    torch.testing.assert_close(ours, [torch.cat((theirs[0].real, theirs[0].imag), -1), theirs[1]])


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("rows", "attend"), [(16, "_plain"), (256, "_fused")])
def test_eager_value_and_gradients_match_fp64(tree, rows, attend, monkeypatch):
    monkeypatch.setattr(attention, "ROWS", rows)
    monkeypatch.setattr(attention, "_fused", getattr(attention, attend))  # `_plain` is for other devices
    assert_exact(TREES[tree], tensors(sum(TREES[tree][0]), 4, 2, 16, torch.float32, "cpu"), attention.varlen_attention)


@kernels
@pytest.mark.parametrize(
    ("tree", "heads", "kv_heads", "d", "dtype"),
    [
        ("plain", 4, 2, 64, torch.bfloat16),
        ("plain", 3, 1, 128, torch.float16),
        ("plain", 2, 1, 80, torch.bfloat16),
        ("plain", 2, 1, 8, torch.float32),
        ("mixed", 2, 1, 64, torch.float32),
        ("mixed", 2, 2, 128, torch.bfloat16),
        ("whole tiles", 1, 1, 64, torch.bfloat16),
        ("around tiles", 1, 1, 64, torch.float32),
        ("empty", 2, 1, 64, torch.float16),
        ("plain", 2, 1, 256, torch.bfloat16),
    ],
)
def test_value_and_gradients_are_as_close_to_fp64_as_the_eager_version(tree, heads, kv_heads, d, dtype, device):
    if device.type == "cuda" and dtype == torch.float32:
        dtype = torch.float16  # fp32 runs in the interpreter alone
    (lengths, prefixes), segments = TREES[tree], Segments.make(*TREES[tree], device)
    inputs = tensors(sum(lengths), heads, kv_heads, d, dtype, device)
    exact = run(partial(plain, lengths, prefixes), *(x.double() for x in inputs))
    eager = run(partial(attention.varlen_attention, segments=segments), *inputs)
    assert_as_close(run(partial(ours, segments=segments), *inputs), eager, exact)


@kernels
@pytest.mark.parametrize(("m", "n"), [(16, 32), (32, 16)])
def test_small_tiles_of_either_shape(m, n, device, monkeypatch):
    if device.type == "cuda":
        pytest.skip("tiles are chosen by the card")
    monkeypatch.setattr(launch, "choose", lambda table, device, head_dim: Launch(m, n, 4, 2))
    assert_exact(
        ([15, 33, 0, 17, 16, 36, 1], [-1, 0, 0, 0, -1, 4, 4]), tensors(118, 2, 1, 16, torch.float32, device), ours
    )


@kernels
@pytest.mark.filterwarnings("ignore:invalid value")
def test_segments_beside_each_other_do_not_see_each_other_and_strides_are_respected(device):
    """Queries and keys are views of one tensor, as in the model, and its neighbours are infinite."""
    dtype = torch.float16
    packed = torch.randn(40, 8, 64).to(device, dtype)
    packed[:, 6:] = float("inf")
    packed[20:30] = float("inf")  # a segment of its own
    q, k, v = packed[:, :2], packed[:, 5:6], torch.randn(40, 2, 64).to(device, dtype)[:, ::2]
    v[20:30] = float("inf")
    result = ours(q, k, v, Segments.make([20, 10, 10], [-1, 0, 0], device))
    others = [*range(20), *range(30, 40)]
    alone = ours(*(x[others] for x in (q, k, v)), Segments.make([20, 10], [-1, 0], device))
    assert torch.equal(result[others], alone) and alone.isfinite().all()


@kernels
def test_offsets_past_2_31_elements(device):
    """Tokens so far apart that the last segment's offsets do not fit 32 bits; most pages are never touched."""
    from kernels.attention_triton import backward, forward

    lengths, stride = [127, 127, 10, 3], 2**23
    segments, tokens = Segments.make(lengths, [-1, -1, -1, 2], device), sum(lengths)
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    huge = torch.empty(tokens * stride, dtype=torch.float16, device=device)
    far = [huge.as_strided((tokens, 1, 64), (stride, 64, 1), 64 * i) for i in range(4)]
    near = tensors(tokens, 1, 1, 64, torch.float16, device)
    for away, values in zip(far, near, strict=True):
        away.copy_(values)
    result = []
    for q, k, v, upstream in (far, near):
        out, lse = forward(q, k, v, segments)
        result.append([out, lse, *backward(upstream, q, k, v, segments, out, lse)])
    assert all(torch.equal(a, b) for a, b in zip(*result, strict=True))


@kernels
def test_no_tokens_and_a_head_size_beyond_the_tables(device):
    q, k, v, _ = (x.requires_grad_() for x in tensors(0, 2, 1, 64, torch.float16, device))
    ours(q, k, v, Segments.make([0], device=device)).sum().backward()
    assert q.grad is not None and q.grad.shape == (0, 2, 64)
    q, k, v, _ = tensors(1, 1, 1, 257, torch.float16, device)
    with pytest.raises(UserError, match=r'257.*256.*attention = "sdpa"'):
        ours(q, k, v, Segments.make([1], device=device))
