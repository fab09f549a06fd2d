"""Compile the kernels for GPUs that are not there, and say what the compiler made of them.

The public functions run on tensors without storage (device `meta`), at the shipped settings of each target; what they
would launch is recorded, specialised by Triton's own rules and compiled to machine code. So what is checked is what a
GPU would run.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import kernels.launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Recorded:
    """A launch that did not happen."""

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


@contextlib.contextmanager
def recording(target: int) -> Iterator[list[Recorded]]:
    """Kernels launched inside are recorded, with the settings of `target`, and not run."""
    launches: list[Recorded] = []

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Recorded(kernel, arguments, options))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(kernels.launch, "target", lambda device: target),
        mock.patch.object(kernels.launch, "use_triton", lambda attention, tensor: attention == "triton"),
    ):
        yield launches


def resources(compiled: Any) -> dict[str, int]:
    """Registers, bytes of stack and spilled loads and stores, as the assembler counts them, and shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        arch = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
        tool = TOOLS / ("ptxas-blackwell" if int(re.search(r"\d+", arch)[0]) >= 100 else "ptxas")
        command = [str(tool), "-v", f"--gpu-name={arch}", str(ptx), "-o", str(Path(folder) / "kernel.cubin")]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = {
        name: int(re.search(pattern, log)[1])
        for name, pattern in {
            "registers": r"Used (\d+) registers",
            "stack": r"(\d+) bytes stack frame",
            "spill_stores": r"(\d+) bytes spill stores",
            "spill_loads": r"(\d+) bytes spill loads",
        }.items()
    }
    return found | {"shared_bytes": compiled.metadata.shared}


def try_compile(run: Callable[[], Any]) -> None:
    """For development: compile what `run` launches for every target and print it."""
    for target in (80, 90, 100):
        with recording(target) as launches:
            run()
        for launch in launches:
            compiled = launch.compile(target)
            ptx = compiled.asm["ptx"]
            counts = {
                name: len(re.findall(name + r"[. ]", ptx)) for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
            }
            print(launch.kernel.__name__, target, launch.options, resources(compiled), counts, flush=True)
