"""The kernels' speed on a GPU: `python -m tools.bench.kernels` prints a table, then a JSON line for each row.

Each row compares a kernel at a size of Llama-3-8B with PyTorch: attention with `F.scaled_dot_product_attention` (on
contiguous keys and values, where the kernel reads through a block table), the rest with the eager version. `share` is
the GPU's shortest possible time over the time taken: the longer of the operations at the speed of one large product
and the bytes at that of one large copy, both measured first.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import attention_triton, logprob, logprob_triton, paged_triton, rope, rope_triton, topp
from kernels.compile import table
from kernels.metadata import AttentionMetadata, build_metadata
from kernels.segments import Segments
from sampling import sampler
from stages.files import UserError, command

Computation = Callable[[], Any]


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of what is measured; the defaults are Llama-3-8B's."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    hidden_size: int = 4096
    vocabulary: int = 128_256
    sequences: int = 8
    length: int = 2048
    """Tokens of each sequence in training, and of each context."""
    batch: int = 64
    """Sequences that decode together."""
    block_size: int = 16


@dataclass(frozen=True)
class KernelCase:
    """One row: the kernel's computation, PyTorch's in its place, and the work in it."""

    name: str
    ours: Computation
    theirs: Computation | None
    operations: float
    bytes: float


def cases(sizes: BenchSizes, device: torch.device, dtype: torch.dtype) -> Iterable[KernelCase]:
    """All rows, their tensors made one row at a time."""
    yield from attention_cases(sizes, device, dtype)
    yield from paged_cases(sizes, device, dtype)
    yield from head_cases(sizes, device, dtype)


def attention_cases(sizes: BenchSizes, device: torch.device, dtype: torch.dtype) -> Iterable[KernelCase]:
    h, k, d, count, length = sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.sequences, sizes.length
    tokens = count * length
    q, key, v, grad = (torch.randn(tokens, n, d, device=device, dtype=dtype) for n in (h, k, k, h))
    segments = Segments.make([length] * count, device=device)
    rows = [x.view(count, length, -1, d).transpose(1, 2).detach().requires_grad_() for x in (q, key, v)]

    def sdpa() -> Tensor:
        out = F.scaled_dot_product_attention(rows[0], rows[1], rows[2], is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    out, lse = attention_triton.forward(q, key, v, segments)
    reference = sdpa()
    products = 2 * count * h * d * length**2 / 2  # operations of one causal product
    sides = (q.numel() + key.numel() + v.numel() + out.numel()) * q.element_size()
    yield KernelCase("attention", lambda: attention_triton.forward(q, key, v, segments)[0], sdpa, 2 * products, sides)
    yield KernelCase(
        "attention, backward",
        lambda: attention_triton.backward(grad, q, key, v, segments, out, lse),
        lambda: [
            x.transpose(1, 2).flatten(0, 1) for x in torch.autograd.grad(reference, rows, grad, retain_graph=True)
        ],
        5 * products,
        2 * sides,
    )


def paged_cases(sizes: BenchSizes, device: torch.device, dtype: torch.dtype) -> Iterable[KernelCase]:
    """Decoding with separate contexts and with a shared one, decoding of one sequence, and a chunk of a prompt."""
    h, k, d, size, length = sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.block_size, sizes.length
    blocks = length // size
    order = torch.randperm(sizes.batch * blocks + sizes.batch).tolist()  # as in a cache that has been in use
    own = [order[i * blocks : (i + 1) * blocks] for i in range(sizes.batch)]
    last = order[sizes.batch * blocks :]
    apart = [(length - 1, length, table) for table in own]
    together = [(length - 1, length, [*own[0][:-1], block]) for block in last]
    chunk = [(length // 2, length, own[0])]
    cache = torch.randn(1, 2, len(order), k, size, d, device=device, dtype=dtype)
    for name, decode, prefill in (
        ("decoding", apart, []),
        ("decoding, prefix shared", together, []),
        ("decoding, one", apart[:1], []),
        ("prefill of a chunk", [], chunk),
    ):
        yield _read_case(name, build_metadata(decode, prefill, size), cache, h)
    yield _rotate_case(sizes, cache)


def _read_case(name: str, metadata: AttentionMetadata, cache: Tensor, heads: int) -> KernelCase:
    k, d = cache.shape[3], cache.shape[5]
    spans, tokens = metadata.spans, len(metadata.positions)
    q = torch.randn(tokens, heads, d, device=cache.device, dtype=cache.dtype)
    tiles = paged_triton.TritonPagedAttention.build(cache, metadata, heads).tiles
    tables = torch.tensor([span.blocks for span in spans], device=cache.device)
    keys, values = (
        side[tables].transpose(1, 2).flatten(2, 3)[:, :, : spans[0].end].contiguous() for side in cache[0].unbind()
    )
    queries = q.view(len(spans), -1, heads, d).transpose(1, 2)
    positions = torch.tensor([span.positions for span in spans], device=cache.device)
    mask = torch.arange(spans[0].end, device=cache.device) <= positions[:, None, :, None]
    options: dict[str, Any] = {"enable_gqa": True} | ({} if queries.shape[2] == 1 else {"attn_mask": mask})
    seen = sum(position + 1 for position in metadata.positions)
    distinct = len({block for span in spans for block in span.blocks}) * cache.shape[4]
    return KernelCase(
        name,
        lambda: paged_triton.paged_attention(q, cache[0], tiles),
        lambda: F.scaled_dot_product_attention(queries, keys, values, **options).transpose(1, 2).flatten(0, 1),
        4 * seen * heads * d,
        (2 * distinct * k * d + 2 * q.numel()) * q.element_size(),
    )


def _rotate_case(sizes: BenchSizes, cache: Tensor) -> KernelCase:
    h, k, d, tokens = sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.length
    device, dtype = cache.device, cache.dtype
    qk = torch.randn(tokens, h + k, d, device=device, dtype=dtype)
    v = torch.randn(tokens, k, d, device=device).to(dtype)
    angles = torch.randn(d // 2, device=device)
    tables = rope.rope_tables(torch.arange(tokens, device=device), angles)
    slots = torch.randperm(cache[0, 0].numel() // d, device=device)[: tokens * k].view(tokens, k)
    given = (qk, v, tables, cache[0], slots)
    moved = 2 * (qk.numel() + v.numel()) * qk.element_size()
    ours, theirs = rope_triton.rotate_and_store, rope.rotate_and_store
    return KernelCase("rotation and store", lambda: ours(*given), lambda: theirs(*given), 0, moved)


def head_cases(sizes: BenchSizes, device: torch.device, dtype: torch.dtype) -> Iterable[KernelCase]:
    d, vocabulary, tokens = sizes.hidden_size, sizes.vocabulary, sizes.length
    hidden = torch.randn(tokens, d, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocabulary, d, device=device) * d**-0.5).to(dtype).requires_grad_()
    targets, grad = torch.randint(vocabulary, (tokens,), device=device), torch.randn(tokens, device=device)
    product, sides = 2 * tokens * d * vocabulary, (hidden.numel() + weight.numel()) * hidden.element_size()

    def step(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(hidden, weight, targets), (hidden, weight), grad)

    yield KernelCase(
        "log-probability",
        lambda: logprob_triton.linear_logprob(hidden, weight, targets).detach(),
        lambda: logprob.linear_logprob(hidden, weight, targets).detach(),
        product,
        sides,
    )
    yield KernelCase(
        "log-probability and gradient",
        lambda: step(logprob_triton.linear_logprob),
        lambda: step(logprob.linear_logprob),
        4 * product,
        3 * sides,
    )
    logits = 3 * torch.randn(sizes.batch, vocabulary, device=device).to(dtype)
    temperature, top_p = (torch.full((sizes.batch,), value, device=device) for value in (0.8, 0.95))
    seeds = torch.arange(sizes.batch, device=device)
    given = (logits, temperature, top_p, seeds, seeds)
    moved = logits.numel() * logits.element_size()
    yield KernelCase("top-p", lambda: topp.sample(*given)[0], lambda: sampler.sample(*given)[0], 0, moved)


def measure(case: KernelCase, limits: tuple[float, float], seconds: Callable[[Computation], float]) -> dict[str, Any]:
    """A row of the table. `limits` are operations and bytes a second; `seconds` times a function."""
    ours, theirs = seconds(case.ours), seconds(case.theirs) if case.theirs else None
    least = max(case.operations / limits[0], case.bytes / limits[1])
    return {
        "kernel": case.name,
        "milliseconds": round(1e3 * ours, 4),
        "gigabytes_per_second": round(case.bytes / ours / 1e9, 1),
        "teraflops": round(case.operations / ours / 1e12, 1),
        "share": round(least / ours, 3),
        "torch_milliseconds": None if theirs is None else round(1e3 * theirs, 4),
        "times_as_fast": None if theirs is None else round(theirs / ours, 2),
    }


def card_limits(
    device: torch.device, dtype: torch.dtype, seconds: Callable[[Computation], float]
) -> tuple[float, float]:
    """Operations a second in a large product, and bytes a second, read and written, in a large copy."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
    source, target = (torch.empty(2**29, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b), 2 * 2**29 / seconds(lambda: target.copy_(source))


def gpu_seconds(run: Computation) -> float:
    """The median run's seconds, with the GPU's caches flushed before each run."""
    from triton.testing import do_bench

    return do_bench(run, warmup=20, rep=100, return_mode="median") / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("no CUDA device: speed is measured on a GPU; `make kernels` compiles without one")
    device, dtype = torch.device("cuda"), getattr(torch, arguments.dtype)
    limits = card_limits(device, dtype, gpu_seconds)
    rows = [measure(case, limits, gpu_seconds) for case in cases(BenchSizes(), device, dtype)]
    name = torch.cuda.get_device_name(device)
    speeds = f"{limits[0] / 1e12:.0f} TFLOP/s in a product, {limits[1] / 1e9:.0f} GB/s in a copy"
    print(f"{name}, {arguments.dtype}: {speeds}")
    print(table(rows, list(rows[0])))
    for row in rows:
        print(json.dumps({"device": name, "dtype": arguments.dtype} | row))


if __name__ == "__main__":
    command(main)
