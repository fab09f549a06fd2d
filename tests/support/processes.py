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
    """Start Python on the project's code in the folder `place`.

    Ctrl-C gets its default action back: jobs in the background of a shell ignore it, and so would their children.
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
    """Exit code, stdout and stderr."""
    process = start(place, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
