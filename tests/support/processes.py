"""The project's commands in a test's folder: as processes, or in copies of this one, which have imported PyTorch."""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from stages.files import read_jsonl, write_jsonl
from stages.launch import Launcher

ROOT = Path(__file__).parents[2]
SMALL_SFT = """[sft]
examples = ["sft.jsonl"]
epochs = 6
learning_rate = 1e-2
batch_size = 6
held_out = 0.0

"""
ITERATE = (str(ROOT / "iterate.py"), "--config", "tiny.toml")
HELD_OUT = {
    "judge_cases": "evaluation/groups.jsonl",
    "instructions": "evaluation/verifiable.jsonl",
    "prompts": "prompts/evaluation.jsonl",
}


def start(place: Path, *words: str) -> subprocess.Popen:
    """Start Python on the project's code in the folder `place`.

    Ctrl-C gets its default action back: jobs in the background of a shell ignore it, and so would their children.
    """
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(place: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(place, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def fork(place: Path, module: str, *words: str, **environment: str) -> int:
    """Start `python -m module words` in a copy of this process; its id. Its output goes to out.txt and err.txt."""
    if process := os.fork():
        return process
    code = 1
    gc.freeze()  # another test's process group, collected here without its threads, would wait for them for ever
    try:
        os.chdir(place)
        os.environ.update(environment)
        for number, name in enumerate(("stdout", "stderr"), 1):
            file = Path(f"{name[3:]}.txt").open("a", buffering=1)  # noqa: SIM115
            os.dup2(file.fileno(), number)
            setattr(sys, name, file)
        sys.argv = [module, *words]
        Launcher.run = _run_in_copy  # type: ignore[method-assign]
        runpy.run_module(module, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run_in_copy(launcher: Launcher, module: str, arguments, name: str, distributed: bool = True) -> int:
    return wait(fork(Path(), module, *map(str, arguments)))


def wait_for(done, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(process: int) -> list[int]:
    return [*map(int, subprocess.check_output(["ps", "--ppid", str(process), "-o", "pid="], text=True).split())]


def wait(process: int) -> int:
    """The exit code of a copy; the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def iterate(place: Path, *words: str, config: str = "tiny.toml") -> tuple[int, str, str]:
    """Run iterate.py and its stages in copies of this process: exit code, stdout and stderr."""
    for name in ("out.txt", "err.txt"):
        (place / name).unlink(missing_ok=True)
    code = wait(fork(place, "iterate", "--config", config, *words))
    return code, (place / "out.txt").read_text(), (place / "err.txt").read_text()


def finished_run(place: Path) -> Path:
    """A finished run of tiny.toml in the folder `place`, with less SFT, each model measured on a few held-out cases."""
    (place / "data").symlink_to(ROOT / "data")
    write_jsonl(place / "sft.jsonl", short_examples())
    before, _, after = (ROOT / "configs" / "tiny.toml").read_text().partition("[sft]\n")
    text = before + SMALL_SFT + after[after.index("[respond]") :] + "\n[evaluation]\n"
    for key, name in HELD_OUT.items():
        lines = (ROOT / "data" / name).read_text().splitlines(keepends=True)
        (place / f"{key}.jsonl").write_text("".join(lines[:4]))
        text += f'{key} = "{key}.jsonl"\n'
    (place / "tiny.toml").write_text(text)
    code, _, err = iterate(place)
    assert code == 0, err
    return place


def short_examples() -> list[dict]:
    """The shortest SFT examples, with six words of justification: a verdict's form is learnt in few steps."""
    rows = sorted(read_jsonl(ROOT / "data" / "sft" / "tiny.jsonl.gz"), key=lambda row: len(json.dumps(row)))
    for row in rows:
        for judgment in row.get("judgments", [row]):
            judgment["justification"] = " ".join(judgment["justification"].split()[:6])
    judge, metajudge = ([row for row in rows if row["kind"] == kind] for kind in ("judge", "metajudge"))
    return judge[:60] + metajudge[:30]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def listening(process: int) -> dict[str, str]:
    """The sockets on which a process waits for others to connect: the address, as in /proc/net/tcp, by number."""
    links = (os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink())
    own = {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[9]: row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in own}
