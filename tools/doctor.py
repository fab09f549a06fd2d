"""Will a config run here? Each check prints a few lines; exit code 1, with the reasons, where a run would fail.

Checks import what they need, so that a broken installation is a line as well.
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
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.config import no_config
from stages.command import UserError, arguments, command
from stages.settings import Settings, load_settings

LIMIT = 180  # seconds that the ranks have to meet: torch may come from a network folder
DRIVER = Path("/proc/driver/nvidia/version")


def named_files(settings: Settings) -> list[tuple[str, str]]:
    """Setting and name of each file that the user provides and the run reads."""
    sft, prompts, evaluation, runs = settings.sft, settings.prompts, settings.evaluation, bool(settings.iteration)
    measured = {key: getattr(evaluation, key) for key in ("judge_cases", "comparisons", "instructions", "prompts")}
    table: list[tuple[Any, str, list[str]]] = [  # the first says whether the run reads the files
        (sft.enabled, "sft.examples", sft.examples),
        (sft.enabled, "sft.after", sft.after),
        (sft.enabled, "eft.sources", settings.eft.sources),
        (sft.enabled and sft.sft_delta, "sft.sft_delta", [sft.sft_delta]),
        (runs and prompts.seeds, "prompts.seeds", [prompts.seeds]),
        (runs and prompts.seeds, "prompts.evaluation", prompts.evaluation),
        (runs and not prompts.seeds, "respond.prompts", settings.respond.prompts),
        *((name and "{run}" not in name, f"evaluation.{key}", [name]) for key, name in measured.items()),
    ]
    return [(key, name) for read, key, names in table if read for name in names]


def named_models(settings: Settings) -> dict[str, str]:
    """Setting and folder of the seed, and of each further model that the run uses."""
    prompts, iterations, models = settings.prompts, settings.iteration, {"model.path": settings.model.path}
    models |= {"prompts.model": prompts.model} if iterations and prompts.seeds and prompts.model else {}
    models |= {"metajudge.model": settings.metajudge.model} if any(rule.judge_pairs for rule in iterations) else {}
    models |= {"evaluation.judge": settings.evaluation.judge} if settings.evaluation.prompts else {}
    return {key: name for key, name in models.items() if name not in ("current", "initial")}


def missing_inputs(settings: Settings) -> Iterator[str]:
    """Setting, fault and what to do, of each file and model that is neither there nor made by the run."""
    for key, name in named_files(settings):
        if not Path(name).is_file():
            advice = "make sft makes it" if key == "sft.sft_delta" else f"put the file there or change {key}"
            yield f"{key}: {name or 'empty'}: no such file; {advice}"
    for key, name in named_models(settings).items():
        made = key == "model.path" and settings.model.prepare
        if not made and not (Path(name) / "config.json").is_file():
            yield f"{key}: {no_config(Path(name))}".replace("point model.path", f"point {key}")


def check_versions(settings: Settings) -> Iterator[str]:
    """The versions that are installed, and those that differ from the tested ones."""
    constraints = Path(__file__).parents[1] / "constraints.txt"
    tested = dict(re.findall(r"^([\w-]+)==(\S+)", constraints.read_text(encoding="utf-8"), re.M))
    versions = {package.name: package.version for package in metadata.distributions() if package.name in tested}
    shown = [f"{name} {versions[name]}" for name in ("torch", "triton", "tokenizers", "numpy") if name in versions]
    yield ", ".join([f"Python {platform.python_version()}", *shown])
    if other := [f"{name} {v} ({tested[name]})" for name, v in versions.items() if v.split("+")[0] != tested[name]]:
        yield f"other versions than constraints.txt's, which are tested: {', '.join(other)}"


def check_inputs(settings: Settings) -> Iterator[str]:
    """Whether the files and models that the config names are there, and the models whole."""
    from model.chat import load_chat
    from model.weights import Checkpoint

    for key, name in named_models(settings).items():
        if (Path(name) / "config.json").is_file():
            load_chat(name)
            yield f"{name}: {len(Checkpoint(name).slices)} tensors and a chat template"
        elif key == "model.path" and settings.model.prepare:
            yield f"{name}: made by the run"
    if missing := list(missing_inputs(settings)):
        raise UserError("; ".join(missing))


def check_devices(settings: Settings) -> Iterator[str]:
    """Whether there is a GPU with kernels for each rank, or the CPU is meant."""
    import torch

    from kernels.launch import target
    from model.dtype import generation_dtype

    triton, count, ranks = settings.model.attention == "triton", torch.cuda.device_count(), settings.nproc_per_node
    dtype = generation_dtype(settings.model.dtype, torch.device("cuda" if count else "cpu"))
    yield f"{len(os.sched_getaffinity(0))} cores, {count} GPUs; generation multiplies in {dtype}"
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        yield f"{torch.cuda.get_device_name(number)}: {free / 1e9:.0f} of {total / 1e9:.0f} GB are free"
        if triton:
            target(torch.device("cuda", number))  # raises for a GPU without kernels
    if count and triton and dtype == torch.float32:
        raise UserError('float32 on CUDA has no kernels; set [model] dtype = "bfloat16" or attention = "sdpa"')
    if 0 < count < ranks:
        raise UserError(f"nproc_per_node is {ranks}, but torch sees {count} GPUs; lower it")
    if not count and DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        advice = 'update the driver or install torch\'s CUDA build; CUDA_VISIBLE_DEVICES="" if the CPU is meant'
        raise UserError(f"an NVIDIA driver is here, but torch {torch.__version__} can't use it; {advice}")


def check_ranks(settings: Settings) -> Iterator[str]:
    """Whether ranks under torchrun, as in a run, find each other and sum over all."""
    ranks = settings.nproc_per_node if DRIVER.exists() else max(settings.nproc_per_node, 2)
    launch = f"--standalone --nproc-per-node {ranks} --shutdown-timeout 5 -m tools.doctor --rank".split()
    words = ["timeout", "--kill-after=10", str(LIMIT), sys.executable, "-m", "torch.distributed.run", *launch]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reasons = [f"no answer within {LIMIT} s"] if done.returncode == 124 else []
        reasons += re.findall(r"^(?:\[rank\d+\]: ?)?((?:[\w.]+Error|error): ?\S.*)$", done.stderr, re.M)
        names = "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, if set, name an interface that exists"
        needs = f"the host name must resolve (/etc/hosts), {names}, and a firewall let local connections through"
        raise UserError(f"{[*reasons, f'exit code {done.returncode}'][0]}; {needs}")
    yield done.stdout.strip()


def meet() -> None:
    """A rank's part in `check_ranks`."""
    import torch

    from dpo.parallel import distributed

    began = time.monotonic()
    with distributed(threads=1) as world:
        for device in dict.fromkeys([torch.device("cpu"), world.device]):  # gloo, then NCCL
            sums = world.sum(torch.full((2**20,), world.rank + 1.0, device=device)).unique().tolist()
            assert sums == [world.size * (world.size + 1) / 2], f"{device.type}: a wrong sum over ranks: {sums}"
        if world.first:
            print(f"{world.size} ranks under torchrun add up after {time.monotonic() - began:.2f} s", flush=True)
    os._exit(0)  # without finalisation, in which CUDA and NCCL may hang


def check_kernels(settings: Settings) -> Iterator[str]:
    """Whether Triton compiles a kernel, which takes gcc and Python's development package; a GPU is not needed."""
    if find_spec("triton") is None:
        yield "triton is not installed: torch's build for CUDA brings it, a CPU needs none"
        return
    import torch

    from kernels.compile import compile_kernels

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # Triton's own may hold the kernel from an earlier time
        compile_kernels("SmolLM2-135M", torch.bfloat16, 90, only="logprob.forward")
    yield f"logprob.forward compiled for sm_90 in {time.monotonic() - began:.1f} s"


def check_disk(settings: Settings) -> Iterator[str]:
    """Whether the folder for runs is writable and has room."""
    from model.config import LlamaConfig
    from tools.planned import Planned, disk_needed

    folder, shape, needed = Path("runs" if Path("runs").is_dir() else "."), settings.model.shape, 0.0
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(2**20))
    if (Path(shape) / "config.json").is_file():
        needed = disk_needed(Planned(settings).stages(), settings, LlamaConfig.load(shape))
    text = f"{(free := shutil.disk_usage(folder).free) / 1e9:,.1f} GB are free, a run takes {needed / 1e9:,.1f}"
    if needed > free:
        raise UserError(text)
    yield text


CHECKS = (check_versions, check_inputs, check_devices, check_ranks, check_kernels, check_disk)


def main() -> None:
    config: Any = {"type": Path, "default": Path("configs/smollm2-135m.toml")}
    given = arguments(__doc__, config=config, rank={"action": "store_true", "help": argparse.SUPPRESS})
    if given.rank:
        return meet()
    settings, reasons = load_settings(given.config), []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            for line in check(settings):
                print(f"ok    {name:10}{line[:94]}", flush=True)
        except Exception as error:  # whatever a check meets would stop a run as well
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            reasons.append(f"{name}: {reason}")
            print(f"FAIL  {name:10}{reason[:94]}", flush=True)
    if reasons:
        print(f"\n{given.config} will not run here:", *reasons, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)
    print(f"Nothing stands in the way of {given.config}.")


if __name__ == "__main__":
    command(main)
