"""Triton's attention over packed sequences against the formula in fp64, and against the eager version's error."""

import pytest
import torch
from accuracy import assert_as_close

from kernels import attention

pytestmark = pytest.mark.kernels

LENGTHS = [1, 2, 0, 31, 129, 257, 0]


def borders(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def plain(q, k, v, cu_seqlens):
    """softmax(q k^T / sqrt(d)) v, causal, written out."""
    group, outputs = q.shape[1] // k.shape[1], []
    for x, y, z in zip(*(a.split(cu_seqlens.diff().tolist()) for a in (q, k, v)), strict=True):
        scores = torch.einsum("ihd,jhd->hij", x, y.repeat_interleave(group, 1)) / x.shape[2] ** 0.5
        unseen = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(unseen, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, z.repeat_interleave(group, 1)))
    return torch.cat(outputs)


def run(function, q, k, v, upstream, cu_seqlens):
    """Value and gradients."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = function(*inputs, cu_seqlens)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


@pytest.mark.parametrize(("d", "group"), [(64, 1), (64, 3), (128, 4), (128, 8), (64, 8), (80, 3), (8, 3)])
def test_value_and_gradients_are_as_close_to_fp64_as_the_eager_version(d, group, dtype, device):
    from kernels.attention_triton import varlen_attention

    kv_heads = 2 if group == 3 else 1
    generator = torch.Generator().manual_seed(d + group)
    heads = kv_heads * group
    q, k, v, upstream = (
        torch.randn(sum(LENGTHS), n, d, generator=generator).to(device, dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    cu_seqlens = borders(LENGTHS, device)
    exact = run(plain, *(x.double() for x in (q, k, v)), upstream, cu_seqlens)
    eager = run(attention.varlen_attention, q, k, v, upstream, cu_seqlens)
    assert_as_close(run(varlen_attention, q, k, v, upstream, cu_seqlens), eager, exact)


def test_log_sum_exp(device):
    from kernels.attention_triton import forward

    dtype = torch.float32 if device.type == "cpu" else torch.float16
    q, k, v = (torch.randn(70, n, 64).to(device, dtype) for n in (2, 1, 1))
    _, lse = forward(q, k, v, borders([3, 67], device))
    scores = torch.einsum("ihd,jd->hij", q.double(), k[:, 0].double()) / 8
    for start, end in ((0, 3), (3, 70)):
        for i in range(start, end):
            torch.testing.assert_close(
                lse[:, i].double(), scores[:, i, start : i + 1].logsumexp(-1), atol=1e-5, rtol=1e-5
            )


@pytest.mark.filterwarnings("ignore:invalid value")
def test_sequences_do_not_see_each_other_and_strides_are_respected(device):
    """Queries and keys are views of one tensor, as in the model, and its neighbours are infinite."""
    from kernels.attention_triton import varlen_attention

    dtype = torch.float16
    packed = torch.randn(40, 8, 64).to(device, dtype)
    packed[:, 6:] = float("inf")
    packed[20:30] = float("inf")  # a sequence of its own
    q, k, v = packed.split((4, 2, 2), 1)[0], packed[:, 4:6], torch.randn(40, 4, 64).to(device, dtype)[:, ::2]
    found = varlen_attention(q, k, v, borders([20, 10, 10], device))
    for rows in (slice(0, 20), slice(30, 40)):
        alone = varlen_attention(*(x[rows].contiguous() for x in (q, k, v)), borders([len(q[rows])], device))
        assert torch.equal(found[rows], alone) and alone.isfinite().all()


def test_offsets_past_2_31_elements(device):
    """Tokens so far apart that the last one's offset does not fit 32 bits; most pages are never touched."""
    from kernels.attention_triton import backward, forward

    lengths, stride = [127] * 17, 2**20
    tokens = sum(lengths)
    assert tokens * stride > 2**31
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    huge = torch.empty(tokens * stride, dtype=torch.float16, device=device)
    far = [huge.as_strided((tokens, 1, 64), (stride, 64, 1), 64 * i) for i in range(4)]
    near = [torch.randn(tokens, 1, 64).to(device, torch.float16) for _ in range(4)]
    for away, values in zip(far, near, strict=True):
        away.copy_(values)
    cu_seqlens, found = borders(lengths, device), []
    for q, k, v, upstream in (far, near):
        out, lse = forward(q, k, v, cu_seqlens)
        found.append([out, lse, *backward(upstream, q, k, v, cu_seqlens, out, lse)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_tokens(device):
    from kernels.attention_triton import varlen_attention

    q, k, v = (torch.zeros(0, n, 64, dtype=torch.float16, device=device, requires_grad=True) for n in (2, 1, 1))
    varlen_attention(q, k, v, borders([0], device)).sum().backward()
    assert q.grad.shape == (0, 2, 64)


def test_a_head_size_beyond_the_tables_is_an_error(device):
    from files import UserError
    from kernels.attention_triton import varlen_attention

    q = torch.zeros(1, 1, 256, dtype=torch.float16, device=device)
    with pytest.raises(UserError, match=r'256.*128.*attention = "sdpa"'):
        varlen_attention(q, q, q, borders([1], device))
