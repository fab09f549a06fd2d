"""iterate.py in a session of its own, watched by the hook and under the limits that the environment names: run in a
copy of a process (`processes.fork`)."""

import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

from tests.chaos import hook


def main() -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    hook.install_from_environment()
    for name, limit in json.loads(os.environ.get(hook.LIMITS, "{}")).items():
        number = getattr(resource, name)
        if number == resource.RLIMIT_AS:  # beyond what the imports have taken
            limit += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))
    sys.argv = ["iterate", *sys.argv[1:]]
    runpy.run_module("iterate", run_name="__main__")


if __name__ == "__main__":
    main()
