"""Will a config run here? Each check prints a few lines; exit code 1, with the reasons, where a run would fail.

Each check is a process of its own with a time limit, and this process does not import torch, so that a broken
installation, a faulty driver and a dead network are a line each.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from stages.files import UserError, command
from stages.settings import Settings, load_settings
from tools.inputs import missing_inputs, named_models

LIMIT = 180
"""Seconds that a check may take: torch may come from a network folder."""
DRIVER = Path("/proc/driver/nvidia/version")
ADVICE = {
    "ranks": "; the host name must resolve (/etc/hosts), GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, if set, name an "
    "interface that exists, and a firewall let local connections through",
    "kernels": "; Triton needs gcc and Python's development package",
}

Lines = Iterator[tuple[str, str]]
"""Levels ("ok", "note" or "FAIL") and texts."""


def check_versions(settings: Settings) -> Lines:
    """Whether the packages meet the requirements of pyproject.toml and of torch."""
    constraints = Path(__file__).parents[1] / "constraints.txt"
    tested = dict(re.findall(r"^([\w-]+)==(\S+)", constraints.read_text(encoding="utf-8"), re.M))
    versions = {package.name: package.version for package in metadata.distributions() if package.name in tested}
    names = [name for name in ("torch", "triton", "tokenizers", "numpy") if name in versions]
    yield "ok", ", ".join([f"Python {platform.python_version()}", *(f"{name} {versions[name]}" for name in names)])
    if other := [f"{name} {v} ({tested[name]})" for name, v in versions.items() if v.split("+")[0] != tested[name]]:
        yield "note", f"other versions than constraints.txt's, which are tested: {', '.join(other)}"
    pip = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    faults = [line for line in pip.stdout.splitlines() if line.startswith(("meta-rewarding ", "torch "))]
    yield from (("FAIL", f"{line.rstrip('.')}: make setup") for line in faults)


def check_inputs(settings: Settings) -> Lines:
    """Whether the files and models that the config names are there; of models, whether they are whole."""
    from model.chat import load_chat
    from model.weights import Checkpoint

    yield from (("FAIL", text) for text in missing_inputs(settings))
    for key, name in named_models(settings).items():
        if (Path(name) / "config.json").is_file():
            try:
                load_chat(name)
                yield "ok", f"{name}: {len(Checkpoint(name).slices)} tensors and a known chat format"
            except UserError as error:
                yield "FAIL", f"{key}: {error}"
        elif key == "model.path" and settings.model.prepare:
            yield "ok", f"{name}: made by the run"


def check_devices(settings: Settings) -> Lines:
    """Whether there is a GPU with kernels for each rank, or the CPU is meant."""
    import torch

    from kernels.launch import target
    from model.dtype import generation_dtype

    triton, count, ranks = settings.model.attention == "triton", torch.cuda.device_count(), settings.nproc_per_node
    dtype = generation_dtype(settings.model.dtype, torch.device("cuda" if count else "cpu"))
    yield "ok", f"{len(os.sched_getaffinity(0))} cores, {count} GPUs; generation multiplies in {dtype}"
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        text = f"{torch.cuda.get_device_name(number)}: {free / 1e9:.0f} of {total / 1e9:.0f} GB are free"
        yield "note" if free < 0.9 * total else "ok", text
        if triton:
            target(torch.device("cuda", number))  # raises for a GPU without kernels
    if count and triton and dtype == torch.float32:
        yield "FAIL", 'float32 on CUDA has no kernels; set [model] dtype = "bfloat16" or attention = "sdpa"'
    if 0 < count < ranks:
        yield "FAIL", f"nproc_per_node is {ranks}, but torch sees {count} GPUs; lower it"
    if not count and DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        advice = 'update the driver or install torch\'s CUDA build; CUDA_VISIBLE_DEVICES="" if the CPU is meant'
        yield "FAIL", f"an NVIDIA driver is here, but torch {torch.__version__} can't use it; {advice}"


def check_ranks(settings: Settings) -> Lines:
    """A rank's part in the check that ranks under torchrun, as in a run, find each other and sum over all."""
    import torch

    from dpo.parallel import distributed

    began = time.monotonic()
    with distributed(threads=1) as world:
        for device in dict.fromkeys([torch.device("cpu"), world.device]):  # gloo, then NCCL
            sums = world.sum(torch.full((2**20,), world.rank + 1.0, device=device)).unique().tolist()
            if sums != [world.size * (world.size + 1) / 2]:
                raise RuntimeError(f"{device.type}: a sum over {world.size} ranks is wrong: {sums}")
        if world.first:
            yield "ok", f"{world.size} ranks under torchrun add up after {time.monotonic() - began:.2f} s"


def check_kernels(settings: Settings) -> Lines:
    """Whether Triton compiles, and on a GPU, whether a kernel gives what its eager reference gives."""
    import torch

    if not torch.cuda.is_available() and not any(package.name == "triton" for package in metadata.distributions()):
        yield "note", "triton is not installed: torch's build for CUDA brings it, a CPU needs none"
        return
    from kernels import logprob, logprob_triton
    from kernels.compile import SHAPES, recording, run_logprob

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # Triton's own may hold the kernel from an earlier time
        with recording(90) as launches:
            run_logprob(SHAPES["SmolLM2-135M"], torch.bfloat16)
        began = time.monotonic()
        launches[0].compile(90)
        yield "ok", f"{launches[0].name} compiled for sm_90 in {time.monotonic() - began:.1f} s"
        if torch.cuda.is_available() and settings.model.attention == "triton":
            hidden, weight = (torch.randn(n, 128, device="cuda").bfloat16() for n in (64, 1000))
            targets = torch.arange(64, device="cuda")
            ours, eager = (module.linear_logprob(hidden, weight, targets) for module in (logprob_triton, logprob))
            error = ((ours - eager).abs().max() / eager.abs().max()).item()
            yield "ok" if error < 0.02 else "FAIL", f"on the GPU it differs from the eager version by {error:.1%}"


def check_disk(settings: Settings) -> Lines:
    """Whether the folder for runs is writable and has room."""
    from model.config import LlamaConfig
    from tools.plan import disk_needed
    from tools.planned import Planned

    folder = Path("runs") if Path("runs").is_dir() else Path(".")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(2**20))
        os.fsync(file.fileno())
    free, needed = shutil.disk_usage(folder).free, 0.0
    if (Path(settings.model.shape) / "config.json").is_file():
        needed = disk_needed(Planned(settings).stages(), settings, LlamaConfig.load(settings.model.shape))
    yield "ok" if needed < free else "FAIL", f"{free / 1e9:,.1f} GB are free, a run takes {needed / 1e9:,.1f}"


CHECKS: dict[str, Callable[[Settings], Lines]] = {
    "versions": check_versions,
    "inputs": check_inputs,
    "devices": check_devices,
    "ranks": check_ranks,
    "kernels": check_kernels,
    "disk": check_disk,
}


def run_check(name: str, config: Path, ranks: int, limit: int = LIMIT) -> list[str]:
    """The lines of a check in a process of its own, and one more, with the reason, if the process failed."""
    words = ["-m", "tools.doctor", "--config", str(config), "--check", name]
    if name == "ranks":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        words = [*torchrun, "--shutdown-timeout", "5", *words]
    done = subprocess.run(  # torchrun needs some of the 10 seconds to end its ranks
        ["timeout", "--kill-after=10", str(limit), sys.executable, *words],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    reason = f"no answer within {limit} s" if done.returncode == 124 else failure_reason(done.stderr, done.returncode)
    return done.stdout.splitlines() + [f"FAIL  {reason}{ADVICE.get(name, '')}"] * (done.returncode != 0)


def failure_reason(err: str, code: int) -> str:
    """Why a process failed: the first error on standard error, torchrun's line on a killed rank, or the last line."""
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line).strip() for line in err.splitlines()]
    errors = [line for line in lines if re.match(r"([\w.]+(Error|Exception)|error): (?!\s*$)", line)]
    errors += [line for line in lines if re.search(r"Signal \d+ \(\w+\) received", line)]
    last = next((line for line in reversed(lines) if line), "no message")
    return errors[0].removeprefix("error: ") if errors else f"exit code {code}, {last}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Say whether a run will work here, and if not why.")
    parser.add_argument("--config", type=Path, default=Path("configs/smollm2-135m.toml"))
    parser.add_argument("--check", choices=CHECKS, help="one check alone, in this process")
    arguments = parser.parse_args()
    try:
        settings, reasons = load_settings(arguments.config), []
    except UserError as error:
        raise SystemExit(f"{arguments.config} will not run here:\n  {error}") from None
    if arguments.check:
        for level, text in CHECKS[arguments.check](settings):
            print(f"{level:6}{text}", flush=True)
        os._exit(0)  # without finalisation, in which CUDA and NCCL may hang
    ranks = settings.nproc_per_node if DRIVER.exists() else max(settings.nproc_per_node, 2)
    for name in CHECKS:
        lines = run_check(name, arguments.config, ranks)
        reasons += [f"{name}: {line[6:]}" for line in lines if line.startswith("FAIL")]
        for line in lines[:10]:
            print(f"{line[:6]}{name:10}{line[6:100]}", flush=True)
    if reasons:
        print(f"\n{arguments.config} will not run here:", *reasons, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)
    print(f"Nothing stands in the way of {arguments.config}.")


if __name__ == "__main__":
    command(main)
