"""Compile the kernels for GPUs that are not present, and report on the machine code: `make kernels`.

The public functions run on tensors of device `meta`; their launches are recorded, and compiled as on a GPU.
"""

import contextlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import kernels.launch
from kernels import attention_triton, logprob_triton, norm_triton, paged_triton, rope_triton, swiglu_triton, topp
from kernels.metadata import NARROW_ROWS, TileSizes
from kernels.segments import Segments
from stages.command import command
from stages.files import write_json

DTYPES = (torch.bfloat16, torch.float16)
INSTRUCTIONS = {"mma": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma\b"}
TARGETS = {80: ("mma", 99 * 1024), 90: ("wgmma", 227 * 1024), 100: ("tcgen05", 227 * 1024)}
"""Best matrix instruction and largest shared memory of a program; for 80 on the smaller cards (8.6, 8.9, 12.0)."""
ROWS = ("BLOCK_M", "BLOCK_T", "BLOCK_HEADS", "BLOCK_G", "M")
COLUMNS = ("BLOCK_N", "BLOCK_V", "BLOCK_HALF", "BLOCK_D", "BLOCK_I", "N")
"""The options that may hold the rows, or else 1, and the columns of a program's tile."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Recorded(NamedTuple):  # a recorded launch, which did not run
    name: str  # for example attention.forward
    kernel: JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@contextlib.contextmanager
def recording(target: int, keep: bool = True) -> Iterator[list[Recorded]]:
    """Record the kernels launched inside, with the settings of `target`, instead of running them; without `keep`, which
    keeps their tensors alive, nothing is recorded."""
    launches: list[Recorded] = []

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if keep:
            module, name = kernel.__module__.removeprefix("kernels."), kernel.__name__.strip("_")
            name = f"{module.removesuffix('_triton')}.{name.removesuffix('_kernel')}"
            launches.append(Recorded(name, kernel, arguments, options))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(kernels.launch, "target", lambda device: target),
        mock.patch.object(kernels.launch, "use_triton", lambda attention, tensor: attention == "triton"),
    ):
        yield launches


Shape = namedtuple("Shape", "heads kv_heads head_dim hidden_size intermediate_size vocabulary")  # of a model
SHAPES = {"SmolLM2-135M": Shape(9, 3, 64, 576, 1536, 49_152), "Llama-3-8B": Shape(32, 8, 128, 4096, 14_336, 128_256)}


def launch_all(shape: Shape, dtype: torch.dtype) -> None:
    """Of training on 8 segments of 4096 tokens attention, norms and SwiGLU; a decoding step of 64 sequences, as a graph
    captures it; log-probabilities of 4096 tokens, and the gradient of one vocabulary tile's logits; a token for 64
    sequences."""
    empty, width = partial(torch.empty, dtype=dtype, device="meta"), logprob_triton.TILE_ROWS
    heads, kv_heads, dim, hidden_size, intermediate_size, vocabulary = shape
    int32, int64, float32 = torch.int32, torch.int64, torch.float32
    segments = Segments(list(range(0, 4097, 512)), [-1] + [0] * 7, empty(9, dtype=int32), empty(3, 8, dtype=int32))
    q, k = empty(4096, heads + kv_heads, dim).split((heads, kv_heads), 1)  # views of one tensor, as in the model
    v = empty(4096, kv_heads, dim)
    out, lse = attention_triton.forward(q, k, v, segments)
    attention_triton.backward(empty(*out.shape), q, k, v, segments, out, lse)
    x, gate_up = empty(4096, hidden_size), empty(4096, 2 * intermediate_size)
    for y, update, scale in ((x, x, empty(hidden_size)), (q, None, empty(heads, dim))):
        y, _, deviation = norm_triton.forward(y, update, scale, 1e-5)
        norm_triton.backward(update, empty(*y.shape), y, scale, deviation)
    swiglu_triton.backward(swiglu_triton.forward(gate_up), gate_up)

    sizes = TileSizes(tokens=64, blocks=8192, narrow=256, wide=256, entries=256)
    tiles = paged_triton.DeviceTiles(empty(sum(sizes.parts), dtype=int32), sizes, merges=True)
    attend = paged_triton.TritonPagedAttention(empty(1, 2, 512, kv_heads, 16, dim), tiles)
    rope = (empty(64, 1, dim, dtype=float32), empty(64, 1, dim, dtype=float32))
    qk, v = empty(64, heads + kv_heads, dim), empty(64, kv_heads, dim)
    attend(0, qk, v, rope)
    norm = nn.RMSNorm(2 * dim, 1e-6, device="meta", dtype=dtype)
    rope_triton.rotate_and_store(qk, v, rope, attend.cache[0], attend.slots_tk, norm)
    rope_triton.rotate(qk, *rope)

    hidden, weight = empty(4096, hidden_size), empty(vocabulary, hidden_size)
    targets, grad = empty(4096, dtype=int64), empty(4096, dtype=float32)
    _, logsumexp = logprob_triton.forward(hidden, weight, targets)
    logprob_triton.slope(hidden, weight[:width], targets, logsumexp, grad, 0, empty(4096, width))

    number, integer = empty(64, dtype=float32), empty(64, dtype=int64)
    topp.sample(empty(64, vocabulary), number, number, integer, integer)


def compile_kernels(model: str, dtype: torch.dtype, target: int, only: str = "") -> list[dict[str, Any]]:
    """What each kernel of a model, or the one with a name, compiles to on compute capability `target` / 10: spills in
    bytes; products as the source has them, and those that are computed without matrix instructions."""
    with recording(target) as launches:
        launch_all(SHAPES[model], dtype)
    gpu, rows = mock.Mock(), []
    gpu.get_current_device.return_value = target  # Triton keeps compiled kernels by the device
    gpu.get_current_target.return_value = GPUTarget("cuda", target, 32)
    for launch in (launch for launch in launches if only in ("", launch.name)):
        with mock.patch.object(driver, "_active", gpu):
            compiled = launch.kernel.run(*launch.arguments, grid=None, warmup=True, **launch.options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(compiled.asm["cubin"])
            usage = subprocess.check_output([CUOBJDUMP, "--dump-resource-usage", file.name], text=True)
        most = {name: max(map(int, re.findall(rf"{name}:(\d+)", usage))) for name in ("REG", "STACK", "LOCAL")}
        counts = {name: len(re.findall(pattern, compiled.asm["ptx"])) for name, pattern in INSTRUCTIONS.items()}
        tile = (
            next((str(launch.options[name]) for name in side if name in launch.options), "1")
            for side in (ROWS, COLUMNS)
        )
        scalar = re.findall(r"\btt\.dot\b.*-> tensor<[^>]*#blocked", compiled.asm["ttgir"])
        row: dict[str, Any] = {"kernel": launch.name, "target": f"sm_{target}"}
        row |= {"dtype": str(dtype).removeprefix("torch."), "model": model}
        row |= {"tile": "x".join(tile), "warps": compiled.metadata.num_warps}
        row |= {"stages": compiled.metadata.num_stages, "registers": most["REG"]}
        row |= {"spills": most["STACK"] + most["LOCAL"], "shared_bytes": compiled.metadata.shared}
        row |= {"matrix_instructions": {name: count for name, count in counts.items() if count}}
        row |= {"products": len(re.findall(r"\btt\.dot\b", compiled.asm["ttir"])), "scalar_products": len(scalar)}
        rows.append(row)
    return rows


def faults(row: dict[str, Any]) -> list[str]:
    """The requirements that a row does not meet."""
    best, shared_bytes = TARGETS[int(row["target"].removeprefix("sm_"))]
    narrow = row["kernel"] == "paged.read" and row["tile"].startswith(f"{NARROW_ROWS}x")
    checks = {"spills registers": row["spills"], "has too much shared memory": row["shared_bytes"] > shared_bytes}
    checks["has a product without matrix instructions"] = row["scalar_products"]
    checks[f"does not use {best}"] = row["products"] and not narrow and best not in row["matrix_instructions"]
    return [fault for fault, there in checks.items() if there]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [list(rows[0]), *([json.dumps(value).replace('"', "") for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    jobs, spawn = list(product(SHAPES, DTYPES, TARGETS)), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn) as pool:  # a fork would lose the compiler's threads
        rows = [row for rows in pool.map(compile_kernels, *zip(*jobs, strict=True)) for row in rows]
    write_json("kernels.json", rows)
    print(table(rows))
    bad = [f"{row['kernel']}, {row['target']}, {row['dtype']}: {fault}" for row in rows for fault in faults(row)]
    print("\n".join(bad) or f"{len(rows)} kernels: none spills, all products are matrix instructions", file=sys.stderr)
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    command(main)
