"""What `tools.doctor` tries in processes of their own: torch and its devices, models, ranks, kernels, a folder.

A crash or a hang there does no harm, and the doctor itself need not import torch.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.files import UserError

ROOT = Path(__file__).parents[1]
LIMIT = 60.0
"""Seconds that a process may take."""
SLOW_LIMIT = 180.0
"""Seconds for many processes that import torch, perhaps from a network folder, or that compile many kernels."""
SPEED_BYTES = 256 * 2**20
"""Bytes written to measure a folder's speed."""


@dataclass(frozen=True)
class DeviceReport:
    """What torch sees of the machine, from `report_devices`."""

    torch: str
    cuda: str | None
    """The CUDA version that torch was built for."""
    fault: str
    """Why torch can use no GPU; empty where it can."""
    gpus: list[dict[str, Any]]
    """Of each GPU: name, bytes, free bytes, capability, and a fault where our kernels do not run on it."""
    dtype: str
    """The type in which products run."""
    native: bool
    """Whether the machine multiplies bfloat16 natively."""
    error: float
    """Largest error of a product in bfloat16 as a share of its largest value; rounding makes 0.2%."""
    speed: float
    """Speed of bfloat16 products as a multiple of float32's."""


def run_isolated(call: str, *prefix: str, limit: float = LIMIT) -> dict[str, Any]:
    """The result of a call of this module's function in a new process. `prefix` stands before the process's command.

    Raises `UserError` with the reason where the process fails, is killed, or takes longer than `limit` seconds.
    """
    # One write, since ranks share a pipe; then an exit without finalisation (`dpo.parallel.end_process`).
    code = "import json, os; from tools import trials; "
    code += f"os.write(1, json.dumps(trials.{call}).encode() + b'\\n'); os._exit(0)"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "0"}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun needs a moment to end its ranks
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
        raise UserError(f"no answer within {limit:g} s") from None
    if process.returncode:
        raise UserError(failure_reason(err, process.returncode))
    return json.loads(out.splitlines()[-1])


def failure_reason(err: str, code: int) -> str:
    """Why a process failed: the first error on standard error, the signal that killed the process, or the last line."""
    error = r"(?:\[rank\d+\]: ?)?((?:[\w.]+(?:Error|Exception)|error): .+)"
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    for line in lines:
        if (match := re.match(error, line)) and "ChildFailedError" not in line:
            return re.sub(r"^(stages\.files\.UserError|error): ", "", match[1])
    if killed := re.search(r"Signal \d+ \((\w+)\) received", err):  # torchrun's line about a rank
        return f"killed by {killed[1]}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return lines[-1] if lines else f"exit code {code}, no message"


def report_devices(dtype: str, attention: str) -> dict[str, Any]:
    """The fields of `DeviceReport`, for [model]'s settings of these names."""
    import torch

    from kernels.launch import target
    from model.dtype import generation_dtype, training_dtype

    fault, gpus = "", []
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        fault = str(error).strip().partition("\n")[0]
    devices = [torch.device("cuda", i) for i in range(0 if fault else torch.cuda.device_count())]
    for device in devices:
        properties, kernels = torch.cuda.get_device_properties(device), ""
        try:
            target(device)
        except UserError as error:
            kernels = str(error) if attention == "triton" else ""
        capability = f"{properties.major}.{properties.minor}"
        free, total = torch.cuda.mem_get_info(device)
        facts = {"name": properties.name, "bytes": total, "free": free, "capability": capability}
        gpus.append(facts | {"fault": kernels})
    used = devices or [torch.device("cpu")]
    measured = [measure_bfloat16(device) for device in used]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "fault": fault,
        "gpus": gpus,
        "dtype": str(generation_dtype(dtype, used[0])).removeprefix("torch."),
        "native": training_dtype("auto", used[0]) == torch.bfloat16,
        "error": max(error for error, _ in measured),
        "speed": min(speed for _, speed in measured),
    }


def open_model(folder: str) -> dict[str, int]:
    """How many tensors a Hugging Face directory has, and the token that ends a turn; the weights are not read.

    Raises `UserError` where a file is missing or damaged, and where the chat template is missing or unknown.
    """
    from model.chat import load_chat
    from model.weights import Checkpoint

    return {"tensors": len(Checkpoint(folder).slices), "end": load_chat(folder).end}


def measure_bfloat16(device: Any) -> tuple[float, float]:
    """A bfloat16 product's largest error as a share of its largest value, and its speed as a multiple of float32's."""
    import torch

    a, b = (torch.randn(768, 768, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    exact, seconds = a.double() @ b.double(), {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = a.to(device, dtype), b.to(device, dtype)
        product = (left @ right).double().cpu()  # not timed: the first product is slower
        began = time.monotonic()
        for _ in range(3):
            timed = left @ right
        timed.cpu()
        seconds[dtype] = time.monotonic() - began
    error = (product - exact).abs().max() / exact.abs().max()
    return error.item(), seconds[torch.float32] / seconds[torch.bfloat16]


def sum_over_ranks() -> dict[str, float]:
    """On each rank: seconds until all ranks are there, and the seconds of a sum over them with each backend."""
    import torch
    import torch.distributed as dist

    from dpo.parallel import distributed

    began, seconds = time.monotonic(), {}
    with distributed(threads=1) as world:
        dist.barrier()
        seconds["together after"] = time.monotonic() - began
        for name, device in {"gloo": torch.device("cpu"), "nccl": world.device}.items():
            if name == "nccl" and device.type == "cpu":
                continue
            began = time.monotonic()
            sums = world.sum(torch.full((2**20,), world.rank + 1.0, device=device)).unique().tolist()
            seconds[name] = time.monotonic() - began
            if sums != [world.size * (world.size + 1) / 2]:
                raise RuntimeError(f"{name}: a sum over {world.size} ranks is wrong: {sums}")
        dist.barrier()
    return seconds


def compile_kernel(cache: str) -> dict[str, Any]:
    """Compile a kernel for a GPU of capability 9.0, present or not; gives the kernel's name and the seconds."""
    os.environ["TRITON_CACHE_DIR"] = cache
    import torch

    from kernels.compile import SHAPES, recording, run_logprob

    with recording(90) as launches:
        run_logprob(SHAPES["SmolLM2-135M"], torch.bfloat16)
    began = time.monotonic()
    if not launches[0].compile(90).asm["cubin"]:
        raise RuntimeError(f"{launches[0].name}: Triton made no machine code")
    return {"name": launches[0].name, "seconds": time.monotonic() - began}


def launch_kernels(cache: str, device: str = "cuda", dtype: str = "bfloat16") -> dict[str, float]:
    """Largest differences of kernels from their eager references, as shares of the largest value.

    Compared are log-probabilities; training's attention with its gradients, over a prompt that two answers continue;
    and paged attention for a token and for a prompt.
    """
    os.environ["TRITON_CACHE_DIR"] = cache
    import torch

    from kernels import attention, attention_triton, logprob, logprob_triton
    from kernels.metadata import build_metadata
    from kernels.paged import PagedAttention
    from kernels.paged_triton import TritonPagedAttention
    from kernels.rope import rope_tables
    from kernels.segments import Segments

    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(getattr(torch, dtype))

    hidden, weight, targets = random(64, 128), random(1000, 128) / 128**0.5, torch.arange(64, device=device)
    segments = Segments.make([40, 30, 30], [-1, 0, 0], torch.device(device))
    inputs, upstream = [random(100, heads, 64).requires_grad_() for heads in (4, 2, 2)], random(100, 4, 64)
    metadata = build_metadata([(36, 37, [0, 1, 2])], [(0, 40, [3, 4, 5])], 16)
    blocks, qk, v = random(1, 2, 6, 2, 16, 64), random(41, 6, 64), random(41, 2, 64)
    rope = rope_tables(torch.arange(41, device=device), torch.logspace(0, -4, 32, device=device))

    def attend(module: Any) -> torch.Tensor:
        out = module.varlen_attention(*inputs, segments)
        return torch.cat([out, *torch.autograd.grad(out, inputs, upstream)], dim=1)

    results = {
        "logprob": [module.linear_logprob(hidden, weight, targets) for module in (logprob_triton, logprob)],
        "attention": [attend(module) for module in (attention_triton, attention)],
        "paged": [
            make(blocks.clone(), metadata, 4)(0, qk, v, rope) for make in (TritonPagedAttention.build, PagedAttention)
        ],
    }
    return {name: ((x - y).abs().max() / y.abs().max()).item() for name, (x, y) in results.items()}


def try_folder(folder: str) -> dict[str, float]:
    """Bytes a second written to the disk and read back from it, and bytes free.

    Raises `OSError` where the folder is not writable, `UserError` where files do not behave as the stages need.
    """
    free = shutil.disk_usage(folder).free
    if free < 2 * SPEED_BYTES:
        raise UserError(f"{free / 1e6:.0f} MB are free")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as temporary:
        try_names(Path(temporary))
        block = os.urandom(4 * 2**20)
        with open(Path(temporary) / "speed", "w+b") as file:
            Path(file.name).unlink()  # the file goes even if this process is killed
            began = time.monotonic()
            for _ in range(SPEED_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = time.monotonic() - began
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read from the disk, not from memory
            file.seek(0)
            began = time.monotonic()
            if any(file.read(len(block)) != block for _ in range(SPEED_BYTES // len(block))):
                raise UserError("the bytes read differ from those written")
            return {"write": SPEED_BYTES / written, "read": SPEED_BYTES / (time.monotonic() - began), "free": free}


def try_names(folder: Path) -> None:
    """Try that replacing a file is atomic, and that a file can be created only once. Raises `UserError` otherwise."""
    target, new = folder / "target", folder / "new"
    target.write_bytes(bytes(4096))

    def replace() -> None:
        for i in range(100):
            new.write_bytes(bytes([i]) * 4096)
            new.replace(target)

    with ThreadPoolExecutor() as pool:
        replacing = pool.submit(replace)
        while not replacing.done():
            content = target.read_bytes()
            if len(content) != 4096 or len(set(content)) != 1:
                raise UserError("a file being replaced is seen in part")
        replacing.result()
    try:
        target.open("x").close()
    except FileExistsError:
        return
    raise UserError("a file can be created twice: locks do not work here")
