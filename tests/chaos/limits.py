"""Limits of the machine: sizes of files and memory, full and read-only disks, streams that fail, names with spaces.

A limit has to end with one line and exit code 2, and the same command without it with the undisturbed run's bytes.
"""

import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import ROOT

from tests.chaos.place import CONFIG, RUN, Ended, Step, contents, copied, differences, finish, run, start, steps

Case = Callable[[Path, Path], list[str]]

LIMITS = [("RLIMIT_FSIZE", size) for size in (3000, 20_000, 100_000, 300_000, 1_000_000)]  # stderr fits
LIMITS += [("RLIMIT_NOFILE", count) for count in (8, 16)] + [("RLIMIT_AS", size << 20) for size in (20, 100)]


def cases(base: Path, count: int, seed: int) -> Iterator[tuple[str, Case]]:
    draw, known = random.Random(f"{seed}/limits"), steps(base)
    others = [*_ends(), *_disks(base)]
    for number in range(count):
        if number % 3 == 2 and others:
            yield others[number // 3 % len(others)]
            continue
        (name, limit), step = LIMITS[(number - number // 3) % len(LIMITS)], draw.choice(known[2:])
        yield f"{number}: {name} {limit} in {step.name}", _limited({name: limit}, step)


def _limited(limits: dict[str, int], step: Step) -> Case:
    def case(base: Path, place: Path) -> list[str]:
        copied(base, place)
        step.undo(place)
        faults = _told(run(place, limits=limits)) + _again(base, place)
        # Where MKL finds no room for its buffers it does not fail, but multiplies in another way: docs/stages.md.
        return [fault for fault in faults if "RLIMIT_AS" not in limits or not fault.startswith("other bytes")]

    return case


def _told(ended: Ended) -> list[str]:
    """A limit that was met is one line and exit code 2; with a limit on file sizes nobody may be able to say it."""
    faults = list(ended.faults)
    if ended.code not in (0, 2):
        faults.append(f"exit code {ended.code}: {ended.last_line}")
    elif ended.code == 2 and len([line for line in ended.err.splitlines() if line.startswith("error: ")]) != 1:
        faults.append(f"not one line: {ended.last_line}")
    return faults


def _again(base: Path, place: Path) -> list[str]:
    ended = run(place)
    if ended.code != 0:
        return [*ended.faults, f"exit code {ended.code} without the limit: {ended.last_line}"]
    return ended.faults + differences(place, contents(base))


def _ends() -> Iterator[tuple[str, Case]]:
    """Streams that fail or cannot write a bar, a lock that is a link, spaces in every name, two commands at once."""
    for words in (("", ">/dev/full"), ("", ">&- 2>&-"), ("PYTHONIOENCODING=ascii", "")):
        yield f"streams: {' '.join(words).strip()}", _streams(*words)
    yield "a lock that is a dangling link", _link
    yield "spaces in the folder, the config and the run", _spaces
    yield "two commands at once", _two


def _streams(before: str, after: str) -> Case:
    def case(base: Path, place: Path) -> list[str]:
        copied(base, place)
        shutil.rmtree(place / RUN / "iter2" / "pairs")
        done = _shell(place, before, after)
        traceback = ["traceback: " + done.stderr.strip().splitlines()[-1]] if "Traceback" in done.stderr else []
        code = [f"exit code {done.returncode}"] if done.returncode else []
        return traceback + code + differences(place, contents(base))

    return case


def _link(base: Path, place: Path) -> list[str]:
    copied(base, place)
    (place / RUN / "lock").symlink_to("nowhere")
    ended = run(place, timeout=30)
    (place / RUN / "lock").unlink(missing_ok=True)
    return _told(ended) + _again(base, place)


def _spaces(base: Path, place: Path) -> list[str]:
    inner = copied(base, place / "a folder")
    (inner / CONFIG).rename(inner / "a config.toml")
    (inner / RUN).rename(inner / "runs/a run")
    shutil.rmtree(inner / "runs/a run/iter2/pairs")
    ended = finish(inner, start(inner, "--config", "a config.toml", "--run", "a run"))
    code = [] if ended.code == 0 else [f"exit code {ended.code}: {ended.last_line}"]
    pairs = [folder / "iter2/pairs/actor.jsonl" for folder in (base / RUN, inner / "runs/a run")]
    same = pairs[1].is_file() and pairs[0].read_bytes() == pairs[1].read_bytes()
    return ended.faults + code + ([] if same else ["other pairs"])


def _two(base: Path, place: Path) -> list[str]:
    """Of two first runs at once each makes, or waits for, what both share."""
    copied(base, place)
    for folder in ("models", "runs"):
        shutil.rmtree(place / folder)
    commands = {name: start(place, "--config", CONFIG, "--run", name, err=f"{name}.txt") for name in ("tiny", "other")}
    ended = [finish(place, command, err=f"{name}.txt") for name, command in commands.items()]
    faults = [fault for one in ended for fault in one.faults]
    faults += [f"exit code {one.code}: {one.last_line}" for one in ended if one.code]
    shutil.rmtree(place / "runs/other", ignore_errors=True)
    return faults + differences(place, contents(base), ".jsonl", ".safetensors")  # manifests name either run's folder


def _disks(base: Path) -> Iterator[tuple[str, Case]]:
    """On a small file system of its own, where this user may mount one."""
    size = sum(path.stat().st_size for folder in ("runs", "models") for path in (base / folder).rglob("*"))
    if _mount(base.parent / "disk", "64k"):
        _unmount(base.parent / "disk")
        for room in (20_000, 60_000, 400_000):
            yield f"a disk with {room} bytes free", _full(size, room)
        yield "a read-only disk", _read_only


def _mount(folder: Path, size: str) -> bool:
    folder.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(folder)]
    return os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)
    folder.rmdir()


def _on_disk(base: Path, place: Path, size: str, work: Callable[[Path], list[str]]) -> list[str]:
    shutil.rmtree(place, ignore_errors=True)
    assert _mount(place, size)
    try:
        shutil.copytree(base, place, symlinks=True, dirs_exist_ok=True)
        return work(place)
    finally:
        _unmount(place)


def _full(size: int, room: int) -> Case:
    def case(base: Path, place: Path) -> list[str]:
        def work(place: Path) -> list[str]:
            shutil.rmtree(place / RUN / "iter2")
            filler = place / "filler"
            with filler.open("wb") as file:
                file.write(bytes(max(shutil.disk_usage(place).free - room, 0)))
            faults = _told(run(place))
            filler.unlink()
            return faults + _again(base, place)

        return _on_disk(base, place, f"{size * 2 + (16 << 20)}", work)

    return case


def _read_only(base: Path, place: Path) -> list[str]:
    def work(place: Path) -> list[str]:
        shutil.rmtree(place / RUN / "iter2" / "pairs")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        done = _shell(place)
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        return _told(Ended(done.returncode, done.stderr, 0.0)) + _again(base, place)

    return _on_disk(base, place, "64m", work)


def _shell(place: Path, before: str = "", after: str = "") -> subprocess.CompletedProcess:
    """The command in a shell, with words before and after it."""
    words = f"{before} {shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'iterate.py'))} --config {CONFIG} {after}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, shell=True, cwd=place, env=environment, capture_output=True, text=True, timeout=3000)
