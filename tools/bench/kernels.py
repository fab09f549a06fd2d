"""The kernels' speed on a GPU: `python -m tools.bench.kernels` prints a table.

Each row compares a kernel at a size of Llama-3-8B with PyTorch: attention with `F.scaled_dot_product_attention` (on
contiguous keys and values), the rest with the eager version. `share` is the shortest possible time over the time taken:
the longer of the operations at the speed of one large product and the bytes at that of one large copy.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import attention_triton, logprob, logprob_triton, paged_triton, rope, rope_triton, topp
from kernels.compile import SHAPES, Shape, table
from kernels.metadata import Query, build_metadata
from kernels.segments import Segments
from sampling import sampler
from stages.files import UserError, command

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


def main() -> None:
    if not torch.cuda.is_available():
        raise UserError("no CUDA device: speed is measured on a GPU; `make kernels` compiles without one")
    with torch.device("cuda"):
        a, source = torch.randn(8192, 8192, dtype=DTYPE), torch.empty(2**29, dtype=torch.uint8)
        target = torch.empty_like(source)
        limits = 2 * 8192**3 / gpu_seconds(lambda: a @ a), 2 * 2**29 / gpu_seconds(lambda: target.copy_(source))
        rows = [measure(case, limits, gpu_seconds) for case in cases(SHAPES["Llama-3-8B"], 2048, 8, 64)]
    speeds = f"{limits[0] / 1e12:.0f} TFLOP/s in a product, {limits[1] / 1e9:.0f} GB/s in a copy"
    print(f"{torch.cuda.get_device_name()}: {speeds}", table(rows), sep="\n")


if __name__ == "__main__":
    command(main)
