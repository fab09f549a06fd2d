"""A small finished run, and what a case does with copies of it: undo steps, run the command again, compare bytes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import HELD_OUT, ROOT, SMALL_SFT, fork, short_examples

from stages.files import write_jsonl
from tests.chaos import hook

CONFIG, RUN = "tiny.toml", Path("runs/tiny")
COMMAND = ("--config", CONFIG)
VOLATILE = {"seconds", "tokens_per_second", "mfu", "memory_mib", "metrics", "checksum"}  # keys of what no runs share
UNCOMPARED = re.compile(r"(^|/)(report\.html|logs|secret)($|/)")
TIMEOUT = 300.0
patience = 1.0  # by how much more all may take, on a machine that is busy with other work


@dataclass
class Ended:  # a command
    code: int | None  # None: it hung, and was ended
    err: str
    seconds: float
    left: list[int] = field(default_factory=list)  # its processes that outlived it, which were ended then

    @property
    def faults(self) -> list[str]:
        """What no command may do, whatever happens to it."""
        found = ["hang"] if self.code is None else []
        found += [f"traceback: {self.err.strip().splitlines()[-1][:200]}"] if "Traceback" in self.err else []
        return found + [f"{len(self.left)} processes left"] * bool(self.left)

    @property
    def last_line(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1][:200]


def make(folder: Path) -> Path:
    """A finished run in the folder, unless it is there: short texts, two iterations, several states in a training."""
    if (folder / RUN / "report.html").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "data").symlink_to(ROOT / "data")
    write_jsonl(folder / "sft.jsonl", short_examples())
    before, _, after = (ROOT / "configs" / CONFIG).read_text().partition("[sft]\n")
    text = before + SMALL_SFT + after[after.index("[respond]") :] + "\n[evaluation]\n"
    for old, new in (
        ("[dpo]\nepochs = 1", "[dpo]\nepochs = 2"),
        ("batch_size = 8", "batch_size = 4"),
        ("tokens_per_microbatch = 2048", "tokens_per_microbatch = 2048\nsave_every = 2"),
        ("prompts_per_iteration = 8", "prompts_per_iteration = 6"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    for key, name in HELD_OUT.items():
        lines = (ROOT / "data" / name).read_text().splitlines(keepends=True)
        (folder / f"{key}.jsonl").write_text("".join(lines[:2]))
        text += f'{key} = "{key}.jsonl"\n'
    (folder / CONFIG).write_text(text)
    ended = run(folder, watched=True)
    assert ended.code == 0, ended.err
    return folder


def copied(base: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base, target, symlinks=True)
    (target / hook.LOG).unlink(missing_ok=True)
    return target


def run(
    place: Path,
    *words: str,
    watched: bool = False,
    at: tuple[int, int, str] = (0, signal.SIGKILL, "self"),
    limits: dict[str, int] | None = None,
    during: Callable[[int], None] = lambda process: None,
    timeout: float = TIMEOUT,
) -> Ended:
    """Run iterate.py in a copy of this process. `at`: the file operation at which a signal is sent to whom; `during` is
    called with its process and session while it runs."""
    for name in ("out.txt", "err.txt", hook.LOG):
        (place / name).unlink(missing_ok=True)
    environment = {hook.LIMITS: json.dumps(limits or {})}
    environment[hook.VARIABLE] = ":".join(map(str, (place, *at))) if watched or at[0] else ""
    started = time.monotonic()
    process = fork(place, "tests.chaos.victim", *(words or COMMAND), **environment)
    try:
        during(process)
        code = _wait(lambda: os.waitpid(process, os.WNOHANG), process, timeout)
        return _ended(process, code, (place / "err.txt").read_text(errors="replace"), started)
    finally:
        end(process)


def start(place: Path, *words: str, at: tuple[int, int, str] | None = None, err: str = "err.txt") -> subprocess.Popen:
    """Start iterate.py itself, with processes of its own for the stages, in a new session; stderr goes to a file."""
    path = [str(ROOT), str(Path(__file__).parent / "site")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    environment |= {hook.VARIABLE: ":".join(map(str, (place, *at)))} if at else {}
    command = [sys.executable, str(ROOT / "iterate.py"), *(words or COMMAND)]
    with (place / "out.txt").open("w") as out, (place / err).open("w") as file:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=out, stderr=file, start_new_session=True)


def finish(place: Path, process: subprocess.Popen, timeout: float = TIMEOUT, err: str = "err.txt") -> Ended:
    started = time.monotonic()

    def poll() -> tuple[int, int]:
        code = process.poll()
        return (0, 0) if code is None else (process.pid, code << 8 if code >= 0 else -code)

    try:
        code = _wait(poll, process.pid, timeout)
        return _ended(process.pid, code, (place / err).read_text(errors="replace"), started)
    finally:
        end(process.pid)


def _wait(poll: Callable[[], tuple[int, int]], session: int, timeout: float) -> int | None:
    deadline = time.monotonic() + timeout * patience
    while True:
        ended, status = poll()
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            end(session)
            with suppress(ChildProcessError):
                os.waitpid(session, 0)
            return None
        time.sleep(0.02)


def _ended(session: int, code: int | None, err: str, started: float) -> Ended:
    """Processes may outlive the command by three seconds, since those that it has told to end do so on their own."""
    seconds, deadline = time.monotonic() - started, time.monotonic() + 3 * patience
    while (left := members(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    end(session)
    return Ended(code, err, seconds, left)


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def end(session: int) -> None:
    for process in members(session):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def shared(place: Path) -> Iterator[Path]:
    """Files and folders of runs and models, relative to the place."""
    for folder in hook.FOLDERS:
        yield from (path.relative_to(place) for path in sorted((place / folder).rglob("*")))


def contents(place: Path) -> dict[str, Any]:
    """What is compared, by path: a file's bytes, of JSON the values that no two runs differ in; None: a folder."""
    found: dict[str, Any] = {}
    for path in shared(place):
        if not UNCOMPARED.search(str(path)):
            found[str(path)] = None if (place / path).is_dir() else _content(place / path)
    return found


def _content(path: Path) -> Any:
    if path.is_symlink():
        return os.readlink(path)
    if path.suffix == ".json" or path.name == "metrics.jsonl":
        with suppress(ValueError, RecursionError):
            rows = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            return json.dumps([_steady(json.loads(row)) for row in rows])
    return path.read_bytes()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in VOLATILE}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def differences(place: Path, wanted: dict[str, Any], *kinds: str) -> list[str]:
    """What differs from the undisturbed run, of all files or those of some kinds, such as ".jsonl"; files in the making
    and locks are left over."""
    given = contents(place)
    wanted, given = ({n: own[n] for n in own if not kinds or n.endswith(kinds)} for own in (wanted, given))
    left = sorted(given.keys() - wanted.keys())
    found = [f"left over: {', '.join(left[:3])}"] if left else []
    if missing := sorted(wanted.keys() - given.keys()):
        found.append(f"missing: {', '.join(missing[:3])}")
    changed = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    shown = (f"{name}{_changed_keys(wanted[name], given[name])}" for name in changed[:3])
    return found + ([f"other bytes: {', '.join(shown)}"] if changed else [])


def _changed_keys(wanted: Any, given: Any) -> str:
    """The keys in which two JSON objects differ, in brackets; nothing of other files."""
    with suppress(TypeError, ValueError, AttributeError, RecursionError):
        [one], [two] = json.loads(wanted), json.loads(given)
        return f" ({', '.join(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))})"
    return ""


@dataclass(frozen=True)
class Step:  # of the run: what it writes, relative to the place
    name: str
    paths: tuple[str, ...]

    def undo(self, place: Path) -> None:
        for path in self.paths:
            shutil.rmtree(place / path, ignore_errors=True)


def steps(base: Path) -> list[Step]:
    """The steps of a finished run, in an order in which each comes after those that it needs."""
    found = [Step("seed", ("models/tiny",)), Step("examples", (str(RUN / "sft"),))]
    found.append(Step("sft", tuple(str(path.relative_to(base)) for path in (base / "models" / "sft").iterdir())))
    for folder in sorted((base / RUN).glob("iter*")):
        for name in ("responses", "judgments", "comparisons", "pairs", "checkpoint"):
            paths = [RUN / folder.name / name] + [RUN / folder.name / "train"] * (name == "checkpoint")
            if (base / paths[0]).is_dir():
                found.append(Step(f"{folder.name}/{name}", tuple(map(str, paths))))
    keys = {_key(path): path.relative_to(base) for path in (base / "models" / "measured").iterdir()}
    for folder in sorted((base / RUN / "evaluation").iterdir()):
        copies = [folder.relative_to(base), keys[_key(folder)]]
        found.append(Step(f"evaluation/{folder.name}", tuple(map(str, copies))))
    return found


def _key(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["key"]


def operations(base: Path, chosen: Sequence[Step]) -> list[float]:
    """The times of the file operations with which these steps were made, in seconds since the first."""
    whole = [Path(path) for step in chosen for path in step.paths]
    paths = tuple(map(str, whole)) + tuple(f"{path.parent}/.{path.name}" for path in whole)  # in the making
    lines = (line.split(maxsplit=3) for line in (base / hook.LOG).read_text(errors="replace").splitlines())
    times = [float(line[0]) for line in lines if line[3].startswith(paths)]
    return [moment - times[0] for moment in times]


def seconds(base: Path) -> float:
    """How long the whole run took; a minute where nobody watched it."""
    times = [float(line.split()[0]) for line in (base / hook.LOG).open()] if (base / hook.LOG).is_file() else [0, 60]
    return times[-1] - times[0]
