"""The project's commands as processes, in a folder whose models and runs are the test's."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
ITERATE = (str(ROOT / "iterate.py"), "--config", "tiny.toml")


def start(place: Path, *words: str) -> subprocess.Popen:
    """Python on the project's code, in a folder of its own, so that its models and runs are the test's.

    A shell's background job ignores Ctrl-C, and so would what the tests start when they are run as one.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(place: Path, *words: str) -> tuple[int, str, str]:
    process = start(place, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
