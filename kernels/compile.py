"""Compile the kernels for GPUs that are not present, and report on the machine code: `make kernels`.

The public functions run on tensors without storage (device `meta`), at the shipped settings of each target. Their
launches are recorded, specialised by Triton's own rules and compiled to machine code. So the check covers exactly what
a GPU would run.
"""

import argparse
import contextlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import kernels.launch
from kernels import attention_triton, logprob_triton, paged_triton, topp
from kernels.segments import Segments
from kernels.tiles import NARROW_ROWS, TileSizes
from stages.files import command

TARGETS = (80, 90, 100)
DTYPES = (torch.bfloat16, torch.float16)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Largest shared memory of a program."""
CONSUMER_SHARED_BYTES = 99 * 1024
"""Of the smaller cards (8.6, 8.9, 12.0), which run with the settings of 80."""
INSTRUCTIONS = {"mma": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma\b"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Recorded:
    """A recorded launch, which did not run."""

    kernel: JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def compile(self, target: int) -> Any:
        """The compiled kernel for compute capability `target` / 10."""
        gpu = GPUTarget("cuda", target, 32)
        backend = make_backend(gpu)
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, rest = binder(*self.arguments, **self.options)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, dict(self.options), bound, specialization, rest
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=gpu, options=options.__dict__)

    @property
    def name(self) -> str:
        """For example `attention.forward`."""
        module = self.kernel.__module__.removeprefix("kernels.").removesuffix("_triton")
        return f"{module}.{self.kernel.__name__.strip('_').removesuffix('_kernel')}"

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a program's tile."""
        rows, columns = (
            next(self.options[name] for name in names if name in self.options)
            for names in (("BLOCK_M", "BLOCK_T", "BLOCK_HEADS", "BLOCK_G", "M"), ("BLOCK_N", "BLOCK_V", "BLOCK_D", "N"))
        )
        return rows, columns


@contextlib.contextmanager
def recording(target: int, keep: bool = True) -> Iterator[list[Recorded]]:
    """Record the kernels launched inside, with the settings of `target`, instead of running them. A record keeps its
    tensors alive; without `keep` nothing is recorded."""
    launches: list[Recorded] = []

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if keep:
            launches.append(Recorded(kernel, arguments, options))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(kernels.launch, "target", lambda device: target),
        mock.patch.object(kernels.launch, "use_triton", lambda attention, tensor: attention == "triton"),
    ):
        yield launches


@dataclass(frozen=True)
class Shape:
    """The sizes of a model on which its kernels depend."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocabulary: int


SHAPES = {
    "SmolLM2-135M": Shape(9, 3, 64, 576, 49_152),
    "Llama-3-8B": Shape(32, 8, 128, 4096, 128_256),
}


def run_attention(shape: Shape, dtype: torch.dtype) -> None:
    """Forward and backward over 8 segments of 4096 tokens in all; queries and keys are views of one tensor.

    The prefixes are data in tensors, so every batch has these kernels.
    """
    qk = _empty(dtype, 4096, shape.heads + shape.kv_heads, shape.head_dim)
    v = _empty(dtype, 4096, shape.kv_heads, shape.head_dim)
    segments = Segments(list(range(0, 4097, 512)), [-1] + [0] * 7, _empty(torch.int32, 9), _empty(torch.int32, 3, 8))
    q, k = qk.split((shape.heads, shape.kv_heads), 1)
    out, lse = attention_triton.forward(q, k, v, segments)
    attention_triton.backward(_empty(dtype, *out.shape), q, k, v, segments, out, lse)


def run_paged(shape: Shape, dtype: torch.dtype) -> None:
    """A decoding step of 64 sequences, as a graph captures it."""
    sizes = TileSizes(tokens=64, tables=64, blocks=128, narrow=256, wide=256, entries=256)
    tiles = paged_triton.DeviceTiles.view(_empty(torch.int32, sum(sizes.parts)), sizes, merges=True)
    cache = _empty(dtype, 1, 2, 512, shape.kv_heads, 16, shape.head_dim)
    qk, v = (_empty(dtype, 64, n, shape.head_dim) for n in (shape.heads + shape.kv_heads, shape.kv_heads))
    rope = (_empty(torch.float32, 64, 1, shape.head_dim), _empty(torch.float32, 64, 1, shape.head_dim))
    paged_triton.TritonPagedAttention(cache, tiles)(0, qk, v, rope)


def run_logprob(shape: Shape, dtype: torch.dtype) -> None:
    """Values of 4096 tokens, and the gradient of one vocabulary tile's logits."""
    hidden, weight = _empty(dtype, 4096, shape.hidden_size), _empty(dtype, shape.vocabulary, shape.hidden_size)
    targets, grad, rows = _empty(torch.int64, 4096), _empty(torch.float32, 4096), logprob_triton.TILE_ROWS
    _, logsumexp = logprob_triton.forward(hidden, weight, targets)
    logprob_triton.slope(hidden, weight[:rows], targets, logsumexp, grad, 0, _empty(dtype, 4096, rows))


def run_topp(shape: Shape, dtype: torch.dtype) -> None:
    """A token for each of 64 sequences."""
    number, integer = _empty(torch.float32, 64), _empty(torch.int64, 64)
    topp.sample(_empty(dtype, 64, shape.vocabulary), number, number, integer, integer)


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


CASES: dict[str, Callable[[Shape, torch.dtype], None]] = {
    "attention": run_attention,
    "paged": run_paged,
    "logprob": run_logprob,
    "topp": run_topp,
}


def compile_case(case: str, model: str, dtype: torch.dtype, target: int) -> list[dict[str, Any]]:
    """A row for each kernel that the case launches."""
    with recording(target) as launches:
        CASES[case](SHAPES[model], dtype)
    return [describe(launch, model, dtype, target) for launch in launches]


def describe(launch: Recorded, model: str, dtype: torch.dtype, target: int) -> dict[str, Any]:
    """A row of the table: the compiled launch's resources and instructions."""
    compiled = launch.compile(target)
    counts = Counter({name: len(re.findall(pattern, compiled.asm["ptx"])) for name, pattern in INSTRUCTIONS.items()})
    registers, stack, spills = _resources(compiled.asm["cubin"])
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    return {
        "kernel": launch.name,
        "target": f"sm_{target}",
        "dtype": str(dtype).removeprefix("torch."),
        "model": model,
        "registers": registers,
        "spills": spills,
        "stack": stack,
        "shared_bytes": shared,
        "matrix_instructions": {name: count for name, count in counts.items() if count},
        "dots": len(re.findall(r"\btt\.dot\b", compiled.asm["ttir"])),
        "scalar_dots": len(re.findall(r"\btt\.dot\b.*-> tensor<[^>]*#blocked", compiled.asm["ttgir"])),
        "tile": "x".join(map(str, launch.tile)),
        "warps": warps,
        "stages": compiled.metadata.num_stages,
        "blocks_per_multiprocessor": blocks_per_multiprocessor(target, registers, shared, warps),
    }


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack and local memory, and number of spill instructions in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    most = {name: max(map(int, re.findall(rf"{name}:(\d+)", usage))) for name in ("REG", "STACK", "LOCAL")}
    return most["REG"], most["STACK"] + most["LOCAL"], len(re.findall(r"\b(?:LDL|STL)\b", code))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], check=True, capture_output=True, text=True).stdout


def blocks_per_multiprocessor(target: int, registers: int, shared: int, warps: int) -> int:
    """Programs that fit a multiprocessor (65,536 registers, 64 warps, 32 programs) at the same time."""
    by_registers = 65_536 // (warps * -(-registers * 32 // 256) * 256)
    by_shared = (SHARED_BYTES[target] + 1024) // (shared + 1024)  # the system reserves 1 KiB a program
    return min(by_registers, by_shared, 64 // warps, 32)


def faults(row: dict[str, Any]) -> list[str]:
    """The requirements that a row does not meet."""
    rows, columns = map(int, row["tile"].split("x"))
    target = int(row["target"].removeprefix("sm_"))
    wide = row["dots"] > 0 and not (row["kernel"] == "paged.read" and rows == NARROW_ROWS)
    best = {80: "mma", 90: "wgmma", 100: "tcgen05"}[target]
    requirements = {
        "spills registers": row["spills"] == 0 and row["stack"] == 0,
        "has too much shared memory": row["shared_bytes"] <= SHARED_BYTES[target],
        "has too much shared memory for smaller cards": target != 80 or row["shared_bytes"] <= CONSUMER_SHARED_BYTES,
        "has a product without matrix instructions": row["scalar_dots"] == 0
        and bool(row["matrix_instructions"]) == (row["dots"] > 0),
        "has a tile below 64x64": not wide or (rows >= 64 and columns >= 64),
        f"does not use {best}": not wide or best in row["matrix_instructions"],
        "does not fit": row["blocks_per_multiprocessor"] >= 1,
    }
    return [name for name, met in requirements.items() if not met]


def compile_all(processes: int) -> list[dict[str, Any]]:
    """The rows of all cases, models, dtypes and targets."""
    jobs = list(product(CASES, SHAPES, DTYPES, TARGETS))
    context = multiprocessing.get_context("spawn")  # a fork would lose the compiler's threads
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return [row for rows in pool.map(compile_case, *zip(*jobs, strict=True)) for row in rows]


COLUMNS = ["kernel", "target", "dtype", "model", "tile", "warps", "stages", "registers", "spills", "stack"]
COLUMNS += ["shared_bytes", "matrix_instructions", "blocks_per_multiprocessor"]


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """These columns of the rows, as aligned text."""

    def text(value: Any) -> str:
        return " ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, dict) else str(value)

    lines = [columns, *([text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("kernels.json"), help="JSON file for the rows")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    rows = compile_all(arguments.processes)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, COLUMNS))
    bad = [f"{row['kernel']}, {row['target']}, {row['dtype']}: {fault}" for row in rows for fault in faults(row)]
    print("\n".join(bad) or f"{len(rows)} kernels: none spills, all products are matrix instructions", file=sys.stderr)
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    command(main)
