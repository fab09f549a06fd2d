"""The kernels' speed: the part of `make bench-gpu` that needs no model.

Each row compares a kernel at a size of Llama-3-8B with PyTorch: attention with `F.scaled_dot_product_attention` (on
contiguous keys and values), the rest with the eager version. `share` is the shortest possible time over the time taken:
the longer of the operations at the speed of one large product and the bytes at that of one large copy.
"""

import timeit
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from kernels import attention_triton, logprob, logprob_triton, paged_triton, rope, rope_triton, topp
from kernels.compile import SHAPES, Shape
from kernels.metadata import Query, build_metadata
from kernels.segments import Segments
from sampling import sampler

DTYPE = torch.bfloat16
BLOCK = 16
Computation = Callable[[], Any]


class KernelCase(NamedTuple):  # one row: the kernel's computation, PyTorch's in its place, and the work in it
    name: str
    ours: Computation
    theirs: Computation
    operations: float
    bytes: float


def cases(shape: Shape, length: int, sequences: int, batch: int, dtype: torch.dtype = DTYPE) -> Iterator[KernelCase]:
    """All rows, on the default device: training on `sequences` of `length` tokens, `batch` contexts of that length."""
    yield from attention_cases(shape, length, sequences, dtype)
    blocks = length // BLOCK
    order = torch.randperm(batch * blocks + batch, device="cpu").tolist()  # as in a cache that has been in use
    cache = torch.randn(1, 2, len(order), shape.kv_heads, BLOCK, shape.head_dim, dtype=dtype)
    own, last = [order[i * blocks : (i + 1) * blocks] for i in range(batch)], order[batch * blocks :]
    apart = [(length - 1, length, table) for table in own]
    together = [(length - 1, length, [*own[0][:-1], block]) for block in last]
    yield paged_case("decoding", apart, [], cache, shape.heads)
    yield paged_case("decoding, prefix shared", together, [], cache, shape.heads)
    yield paged_case("decoding, one", apart[:1], [], cache, shape.heads)
    yield paged_case("prefill of a chunk", [], [(length // 2, length, own[0])], cache, shape.heads)

    qk, v = (torch.randn(length, n, shape.head_dim).to(dtype) for n in (shape.heads + shape.kv_heads, shape.kv_heads))
    tables = rope.rope_tables(torch.arange(length), torch.randn(shape.head_dim // 2))
    slots = torch.randperm(cache[0, 0].numel() // shape.head_dim)[: length * shape.kv_heads].view(length, -1)
    ours, theirs = (partial(module.rotate_and_store, qk, v, tables, cache[0], slots) for module in (rope_triton, rope))
    yield KernelCase("rotation and store", ours, theirs, 0, 2 * (qk.numel() + v.numel()) * qk.element_size())
    yield from elementwise_cases(shape, length, dtype)
    yield from head_cases(shape, length, batch, dtype)


def flat_sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """PyTorch's attention of [sequences, heads, tokens, head_dim]; [tokens of all, heads, head_dim]."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2).flatten(0, 1)


def attention_cases(shape: Shape, length: int, count: int, dtype: torch.dtype) -> Iterator[KernelCase]:
    h, k, d = shape.heads, shape.kv_heads, shape.head_dim
    q, key, v, grad = (torch.randn(count * length, n, d, dtype=dtype) for n in (h, k, k, h))
    segments = Segments.make([length] * count, device=q.device)
    rows = [x.view(count, length, -1, d).transpose(1, 2).detach().requires_grad_() for x in (q, key, v)]
    (out, lse), reference = attention_triton.forward(q, key, v, segments), flat_sdpa(*rows, is_causal=True)
    product, moved = count * h * d * length**2, 2 * (q.numel() + key.numel()) * q.element_size()

    def gradients() -> list[Tensor]:
        return [x.transpose(1, 2).flatten(0, 1) for x in torch.autograd.grad(reference, rows, grad, retain_graph=True)]

    sdpa = partial(flat_sdpa, *rows, is_causal=True)
    yield KernelCase("attention", lambda: attention_triton.forward(q, key, v, segments)[0], sdpa, 2 * product, moved)
    ours = partial(attention_triton.backward, grad, q, key, v, segments, out, lse)
    yield KernelCase("attention, backward", ours, gradients, 5 * product, 2 * moved)


def paged_case(name: str, decode: list[Query], prefill: list[Query], cache: Tensor, heads: int) -> KernelCase:
    """Decoding, or a chunk of a prompt; all spans end at the same position."""
    metadata = build_metadata(decode, prefill, BLOCK)
    spans, k, d = metadata.spans, cache.shape[3], cache.shape[5]
    q = torch.randn(len(metadata.positions), heads, d, dtype=cache.dtype)
    tiles = paged_triton.TritonPagedAttention.build(cache, metadata, heads).tiles
    tables = torch.tensor([span.blocks for span in spans])
    keys, values = (side[tables].transpose(1, 2).flatten(2, 3).contiguous() for side in cache[0].unbind())
    queries, positions = q.view(len(spans), -1, heads, d).transpose(1, 2), torch.tensor(metadata.positions)
    mask = (torch.arange(spans[0].end) <= positions[:, None]) if prefill else None
    distinct = len({block for span in spans for block in span.blocks}) * BLOCK
    seen = sum(position + 1 for position in metadata.positions)
    moved = (2 * distinct * k * d + 2 * q.numel()) * q.element_size()
    ours, theirs = partial(paged_triton.paged_attention, q, cache[0], tiles), partial(flat_sdpa, queries, keys, values)
    return KernelCase(name, ours, partial(theirs, attn_mask=mask), 4 * seen * heads * d, moved)


def elementwise_cases(shape: Shape, tokens: int, dtype: torch.dtype) -> Iterator[KernelCase]:
    d, i, eps = shape.hidden_size, shape.intermediate_size, 1e-5
    x, update, grad, gate_up, hidden = (torch.randn(tokens, n).to(dtype) for n in (d, d, d, 2 * i, i))
    qk, weight = torch.randn(tokens, shape.heads + shape.kv_heads, shape.head_dim).to(dtype), torch.ones(d, dtype=dtype)
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    table: list[tuple[str, str, str, Any]] = [
        ("residual and norm", "norm", "forward", (x, update, weight, eps)),
        ("norm, backward", "norm", "backward", (update, grad, x, weight, scale)),
        ("SwiGLU", "swiglu", "forward", (gate_up,)),
        ("SwiGLU, backward", "swiglu", "backward", (hidden, gate_up)),
        ("rotation", "rope", "rotate", (qk, *rope.rope_tables(torch.arange(tokens), torch.ones(shape.head_dim // 2)))),
    ]
    for name, module, function, given in table:
        ours, theirs = (getattr(import_module(f"kernels.{module}{side}"), function) for side in ("_triton", ""))
        # SwiGLU's backward passes overwrite what they are given.
        own, other, third = (tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given) for _ in range(3))
        moved = sum(x.nbytes for x in tree_leaves((given, theirs(*third))) if isinstance(x, Tensor))
        yield KernelCase(name, partial(ours, *own), partial(theirs, *other), 0, moved)


def head_cases(shape: Shape, tokens: int, batch: int, dtype: torch.dtype) -> Iterator[KernelCase]:
    d, vocabulary = shape.hidden_size, shape.vocabulary
    hidden = torch.randn(tokens, d, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocabulary, d) * d**-0.5).to(dtype).requires_grad_()
    targets, grad = torch.randint(vocabulary, (tokens,)), torch.randn(tokens)
    product, sides = 2 * tokens * d * vocabulary, (hidden.numel() + weight.numel()) * hidden.element_size()

    def value(module: Any) -> Tensor:
        return module.linear_logprob(hidden, weight, targets).detach()

    def gradient(module: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module.linear_logprob(hidden, weight, targets), (hidden, weight), grad)

    yield KernelCase("log-probability", partial(value, logprob_triton), partial(value, logprob), product, sides)
    ours, theirs = partial(gradient, logprob_triton), partial(gradient, logprob)
    yield KernelCase("log-probability and gradient", ours, theirs, 4 * product, 3 * sides)
    logits = (3 * torch.randn(batch, vocabulary)).to(dtype)
    given = (logits, torch.full((batch,), 0.8), torch.full((batch,), 0.95), torch.arange(batch), torch.arange(batch))
    drawn, expected = (lambda: topp.sample(*given)[0]), (lambda: sampler.sample(*given)[0])
    yield KernelCase("top-p", drawn, expected, 0, logits.numel() * logits.element_size())


def measure(case: KernelCase, limits: tuple[float, float], seconds: Callable[[Computation], float]) -> dict[str, Any]:
    """A row of the table. `limits` are operations and bytes a second; `seconds` times a function."""
    ours, theirs = seconds(case.ours), seconds(case.theirs)
    row: dict[str, Any] = {"kernel": case.name, "milliseconds": round(1e3 * ours, 4)}
    row |= {"gigabytes_per_second": round(case.bytes / ours / 1e9, 1)}
    row |= {"teraflops": round(case.operations / ours / 1e12, 1)}
    row |= {"share": round(max(case.operations / limits[0], case.bytes / limits[1]) / ours, 3)}
    return row | {"torch_milliseconds": round(1e3 * theirs, 4), "times_as_fast": round(theirs / ours, 2)}


def gpu_seconds(run: Computation) -> float:
    """The median run's seconds, with the GPU's caches flushed before each run."""
    from triton.testing import do_bench

    return do_bench(run, warmup=20, rep=100, return_mode="median") / 1e3


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """The machine's limits, then a row for each kernel, on the default device; of a CPU one run's time."""
    cuda, size, length = torch.get_default_device().type == "cuda", 8192 >> 6 * tiny, 2**29 >> 9 * tiny
    seconds = gpu_seconds if cuda else partial(timeit.timeit, number=1)
    a, source = torch.randn(size, size, dtype=DTYPE), torch.zeros(length, dtype=torch.uint8)
    limits = 2 * size**3 / seconds(lambda: a @ a), 2 * length / seconds(source.clone)
    yield {"kernel": "limits", "teraflops": round(limits[0] / 1e12, 1), "gigabytes_per_second": round(limits[1] / 1e9)}
    small = cases(Shape(4, 2, 64, 48, 40, 500), 64, 2, 3, torch.float16)
    for case in small if tiny else cases(SHAPES["Llama-3-8B"], 2048, 8, 64):
        yield measure(case, limits, seconds)
