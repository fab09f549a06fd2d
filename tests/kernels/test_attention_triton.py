"""Triton's attention over packed segments against the formula in fp64, and against the eager version's error."""

from functools import cache, partial
from unittest import mock

import pytest
import torch
from accuracy import assert_as_close
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import attention, launch
from kernels.launch import Launch
from kernels.segments import Segments

pytestmark = pytest.mark.kernels

LENGTHS = [1, 2, 0, 31, 129, 257, 0]

# Lengths and prefixes of segments, by what is special about them.
TREES = {
    "mixed": ([37, 64, 129, 5, 0, 70, 1, 300, 2, 3], [-1, 0, 0, -1, 3, 3, -1, 6, -1, 8]),
    "whole tiles": ([64, 64, 1, 128, 65, 128, 256, 3, 192], [-1, 0, 0, -1, 3, 3, -1, 6, 6]),
    "around tiles": ([63, 2, 65, 127, 1, 129, 130], [-1, 0, -1, 2, 2, -1, 5]),
    "many readers": ([70, *range(12, 0, -1), 9], [-1] + [0] * 12 + [-1]),
    "empty": ([0, 7, 66, 0, 0, 64, 0, 5, 0, 0], [-1, 0, 0, -1, 3, -1, 5, 5, 5, -1]),
}


@cache
def visibility(lengths: tuple[int, ...], prefixes: tuple[int, ...]) -> torch.Tensor:
    """Whether token i sees token j, bool [t, t]: tokens up to i in its segment, and all tokens of the prefix."""
    segment = [s for s, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor(
        [[b == prefixes[a] or (b == a and j <= i) for j, b in enumerate(segment)] for i, a in enumerate(segment)],
        dtype=torch.bool,
    ).view(len(segment), len(segment))


def plain(seen, q, k, v):
    """softmax(q k^T / sqrt(d)) v over the keys that are seen."""
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1)) / q.shape[2] ** 0.5
    weights = scores.masked_fill(~seen.to(q.device), float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v.repeat_interleave(group, 1))


def run(function, q, k, v, upstream):
    """Value and gradients."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def check(lengths, prefixes, d, group, dtype, device):
    """Value and gradients are as close to fp64 as the eager version's."""
    from kernels.attention_triton import varlen_attention

    kv_heads = 2 if group == 3 else 1
    generator = torch.Generator().manual_seed(d + group)
    heads = kv_heads * group
    q, k, v, upstream = (
        torch.randn(sum(lengths), n, d, generator=generator).to(device, dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    segments = Segments.make(lengths, prefixes, device)
    exact = run(partial(plain, visibility(tuple(lengths), tuple(prefixes))), *(x.double() for x in (q, k, v)), upstream)
    eager = run(partial(attention.varlen_attention, segments=segments), q, k, v, upstream)
    assert_as_close(run(partial(varlen_attention, segments=segments), q, k, v, upstream), eager, exact)


@pytest.mark.parametrize(("d", "group"), [(64, 1), (64, 3), (128, 4), (128, 8), (64, 8), (80, 3), (8, 3)])
def test_value_and_gradients_are_as_close_to_fp64_as_the_eager_version(d, group, dtype, device):
    check(LENGTHS, [-1] * len(LENGTHS), d, group, dtype, device)


@pytest.mark.parametrize(("tree", "d", "group"), [*((tree, 64, 2) for tree in TREES), ("mixed", 128, 3)])
def test_so_they_are_with_prefixes(tree, d, group, dtype, device):
    check(*TREES[tree], d, group, dtype, device)


@st.composite
def trees(draw):
    """Lengths and prefixes of some segments and their continuations."""
    lengths, prefixes = [], []
    size = st.integers(0, 36)
    for length, continuations in draw(st.lists(st.tuples(size, st.lists(size, max_size=3)), min_size=1, max_size=2)):
        prefixes += [-1] + [len(lengths)] * len(continuations)
        lengths += [length, *continuations]
    return lengths, prefixes


@settings(max_examples=25, deadline=None)
@given(tree=trees(), m=st.sampled_from([16, 32]), n=st.sampled_from([16, 32]), seed=st.integers(0, 99))
def test_any_tree_in_small_tiles(device, tree, m, n, seed):
    """Tiles so small, of either shape, that short segments have several."""
    from kernels import attention_triton

    if device.type == "cuda":
        pytest.skip("tiles are chosen by the card")
    lengths, prefixes = tree
    generator = torch.Generator().manual_seed(seed)
    q, k, v, upstream = (torch.randn(sum(lengths), h, 16, generator=generator) for h in (2, 1, 1, 2))
    exact = run(partial(plain, visibility(tuple(lengths), tuple(prefixes))), *(x.double() for x in (q, k, v)), upstream)
    attend = partial(attention_triton.varlen_attention, segments=Segments.make(lengths, prefixes))
    with mock.patch.object(launch, "choose", lambda table, device, head_dim: Launch(m, n, 4, 2)):
        result = run(attend, q, k, v, upstream)
    for mine, true in zip(result, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("tree", ["mixed", "empty"])
def test_segments_are_the_sequences_that_repeat_their_prefix(tree, device):
    """The same results, and the gradients of a prefix are the sums of its copies'."""
    from kernels.attention_triton import varlen_attention

    lengths, prefixes = TREES[tree]
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(sum(lengths), n, 64, generator=generator).to(device, dtype) for n in (2, 1, 1, 2))
    attend = partial(varlen_attention, segments=Segments.make(lengths, prefixes, device))
    result = run(attend, q, k, v, upstream)

    tokens = torch.arange(sum(lengths), device=device).split(lengths)
    sequences = [(tokens[i][:0] if p < 0 else tokens[p], tokens[i]) for i, p in enumerate(prefixes)]
    which = torch.cat([x for pair in sequences for x in pair])
    own = torch.cat([torch.full((len(x),), x is pair[1], device=device) for pair in sequences for x in pair])
    attend = partial(varlen_attention, segments=Segments.make([len(a) + len(b) for a, b in sequences], device=device))
    copies = run(attend, *(x[which] for x in (q, k, v)), upstream[which] * own[:, None, None])

    assert copies[1][~own].count_nonzero() == 0
    sums = [torch.zeros_like(x).index_add_(0, which, y) for x, y in zip(result[1:], copies[1:], strict=True)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, several in zip(result, [copies[0][own], *sums], strict=True):
        torch.testing.assert_close(one, several, atol=tolerance, rtol=tolerance)


def test_log_sum_exp(device):
    from kernels.attention_triton import forward

    dtype, lengths, prefixes = torch.float32 if device.type == "cpu" else torch.float16, (3, 67, 5), (-1, -1, 1)
    q, k, v = (torch.randn(75, n, 64).to(device, dtype) for n in (2, 1, 1))
    _, lse = forward(q, k, v, Segments.make(lengths, prefixes, device))
    scores = torch.einsum("ihd,jd->hij", q.double(), k[:, 0].double()) / 8
    true = scores.masked_fill(~visibility(lengths, prefixes).to(device), float("-inf")).logsumexp(-1)
    torch.testing.assert_close(lse.double(), true, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("prefix", [-1, 0])
def test_segments_beside_each_other_do_not_see_each_other_and_strides_are_respected(prefix, device):
    """Queries and keys are views of one tensor, as in the model, and its neighbours are infinite."""
    from kernels.attention_triton import varlen_attention

    dtype = torch.float16
    packed = torch.randn(40, 8, 64).to(device, dtype)
    packed[:, 6:] = float("inf")
    packed[20:30] = float("inf")  # a segment of its own
    q, k, v = packed.split((4, 2, 2), 1)[0], packed[:, 4:6], torch.randn(40, 4, 64).to(device, dtype)[:, ::2]
    v[20:30] = float("inf")
    result = varlen_attention(q, k, v, Segments.make([20, 10, 10], [-1, prefix, prefix], device))
    others = [*range(20), *range(30, 40)]
    alone = varlen_attention(*(x[others] for x in (q, k, v)), Segments.make([20, 10], [-1, prefix], device))
    assert torch.equal(result[others], alone) and alone.isfinite().all()


def test_offsets_past_2_31_elements(device):
    """Tokens so far apart that the last one's offset does not fit 32 bits; most pages are never touched."""
    from kernels.attention_triton import backward, forward

    lengths, stride = [127] * 18, 2**20
    segments = Segments.make(lengths, [-1] * 17 + [16], device)
    tokens = sum(lengths)
    assert sum(lengths[:17]) * stride > 2**31
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    huge = torch.empty(tokens * stride, dtype=torch.float16, device=device)
    far = [huge.as_strided((tokens, 1, 64), (stride, 64, 1), 64 * i) for i in range(4)]
    near = [torch.randn(tokens, 1, 64).to(device, torch.float16) for _ in range(4)]
    for away, values in zip(far, near, strict=True):
        away.copy_(values)
    result = []
    for q, k, v, upstream in (far, near):
        out, lse = forward(q, k, v, segments)
        result.append([out, lse, *backward(upstream, q, k, v, segments, out, lse)])
    assert all(torch.equal(a, b) for a, b in zip(*result, strict=True))


def test_no_tokens(device):
    from kernels.attention_triton import varlen_attention

    q, k, v = (torch.zeros(0, n, 64, dtype=torch.float16, device=device, requires_grad=True) for n in (2, 1, 1))
    varlen_attention(q, k, v, Segments.make([0], device=device)).sum().backward()
    assert q.grad.shape == (0, 2, 64)


def test_a_head_size_beyond_the_tables_is_an_error(device):
    from kernels.attention_triton import varlen_attention
    from stages.files import UserError

    q = torch.zeros(1, 1, 256, dtype=torch.float16, device=device)
    with pytest.raises(UserError, match=r'256.*128.*attention = "sdpa"'):
        varlen_attention(q, q, q, Segments.make([1], device=device))
