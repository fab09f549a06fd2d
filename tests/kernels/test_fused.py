"""The fused elementwise kernels, eager and in Triton, against the formulas in fp64."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_close

from kernels.norm import add_norm
from kernels.rope import apply_rope, rope_tables
from model.layers import HeadNorm, SwiGLU

pytestmark = pytest.mark.kernels
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def normal(dtype, device, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def run(function, inputs, upstream):
    """Values and gradients; None stands for an input that is not given, or a value that nothing uses."""
    given = [x if x is None else x.clone().requires_grad_() for x in inputs]
    values = function(*given)
    used = [(y, grad.to(y)) for y, grad in zip(values, upstream, strict=True) if grad is not None]
    outputs, grads = zip(*used, strict=True)
    return [*(y.detach() for y in values), *torch.autograd.grad(outputs, [x for x in given if x is not None], grads)]


def assert_close(ours, exact, inputs, upstream):
    """`ours` takes the inputs, and whether to use Triton."""
    triton, eager = (run(lambda *given, on=on: ours(*given, on), inputs, upstream) for on in (True, False))
    assert_as_close(triton, eager, run(exact, [x if x is None else x.double() for x in inputs], upstream))


def exact_norm(x, update, weight):
    y = x if update is None else x + update
    return y.clone(), weight * y / (y.square().mean(-1, keepdim=True) + 1e-3).sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_residual_and_norm(added, used, dtype, device, monkeypatch):
    """More tokens than programs, a width that is no power of two; y may be unused, as behind the last layer."""
    from kernels import norm_triton

    monkeypatch.setattr(norm_triton, "PROGRAMS", 3)
    x, update, weight, grad_y, grad = normal(dtype, device, (8, 72), (8, 72), 72, (8, 72), (8, 72))
    inputs, upstream = [x, update if added else None, 1 + weight], [grad_y if used else None, grad]
    assert_close(lambda *given: add_norm(*given[:3], 1e-3, given[3]), exact_norm, inputs, upstream)


def swiglu(x, gate_up, down, triton):
    weights = {"gate_up_proj.weight": gate_up, "down_proj.weight": down}
    return torch.func.functional_call(SwiGLU(*down.shape), weights, (x, triton))


def exact_swiglu(x, gate_up, down):
    gate, up = (x @ gate_up.t()).chunk(2, -1)
    return [(F.silu(gate) * up) @ down.t()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu(dtype, device, monkeypatch):
    """A width that fills no block of columns, and one block that it does."""
    from kernels import swiglu_triton

    monkeypatch.setattr(swiglu_triton, "BLOCK_I", 32)
    *inputs, grad = normal(dtype, device, (5, 16), (2 * 48, 16), (16, 48), (5, 16))
    assert_close(lambda *given: [swiglu(*given)], exact_swiglu, inputs, [grad])


ROPE = rope_tables(torch.arange(5), torch.tensor([1.0, 0.5, 0.25, 0.125, 0.1, 0.01]))


def exact_rotation(qkv, weight=None):
    """Of 3 query heads and 2 key heads; 2 heads of values remain."""
    qk = qkv[:, :5]
    if weight is not None:
        qk = exact_norm(qk, None, weight.view(2, 12)[[0, 0, 0, 1, 1]])[1]
    x1, x2 = qk.chunk(2, -1)
    cos, sin = (table[..., 6:].to(qk) for table in ROPE)
    return [torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)]


def head_norm(weight):
    norm = HeadNorm(3, 2, 12, eps=1e-3)
    del norm.weight
    norm.weight = weight
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", [True, False])
def test_rotation(normed, dtype, device, monkeypatch):
    """Of a view that neighbours values, as in the model; more tokens than programs."""
    from kernels import norm_triton

    monkeypatch.setattr(norm_triton, "PROGRAMS", 3)

    def ours(qkv, *others):
        *weights, triton = others
        norm = head_norm(*weights) if weights else None
        return [apply_rope(qkv[:, :5], [table.to(device) for table in ROPE], norm, triton)]

    qkv, weight, grad = normal(dtype, device, (5, 7, 12), 24, (5, 5, 12))
    assert_close(ours, exact_rotation, [qkv, *([1 + weight] if normed else [])], [grad])


def test_no_tokens(device):
    x, weight, up, down, rotated = (
        torch.ones(shape, device=device) for shape in ((0, 8), 8, (32, 8), (8, 16), (0, 5, 12))
    )
    given = [tensor.requires_grad_() for tensor in (x, weight, up, down, rotated)]
    _, normal = add_norm(x, x, weight, 1e-3, triton=True)
    out = swiglu(normal, up, down, triton=True)
    turned = apply_rope(rotated, [table[:0].to(device) for table in ROPE], triton=True)
    grads = torch.autograd.grad(out.sum() + turned.sum(), given)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in given] and not any(map(torch.any, grads))
