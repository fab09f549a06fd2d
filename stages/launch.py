"""Stages as processes: one process, or ranks under torchrun, on one node or on several that share the folder.

On several nodes the same command runs on each. The first node, the head, decides what comes next and tells the others
through a store on its port; the ranks of a stage meet on the port after it. A node whose ranks fail reports that in the
store, so that no other node waits for them.

`python -m stages.launch` is torchrun with short error messages; its exit code is that of the first rank that failed.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import api as elastic
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from stages.files import Terminated, UserError, command

ROOT = Path(__file__).parents[1]
GRACE = 300
"""Seconds that ranks have to save their state after a signal."""
SPINS = "1000"
"""How often a thread that waits for another looks before it sleeps. OpenMP's default, 300,000, suits an idle machine;
beside a program that takes a core, a stage would spend its time on looking."""
PATIENCE = timedelta(minutes=10)
"""How long the head waits for the other nodes at the start, and the others for the head."""


@dataclass
class Launcher:
    """Starts the stages of a run and waits for them."""

    ranks: int
    """Ranks on each node."""
    logs: Path
    """Folder for the output of the ranks, if there are several: `logs`/STAGE/node0/.../RANK/stderr.log."""
    nodes: int = 1
    node: int = 0
    head: str = ""
    """HOST:PORT of node 0; PORT + 1 must be free on it as well."""
    store: dist.Store | None = None
    orders: int = 0
    """Number of stages started under torchrun; the same on all nodes."""
    host: str = field(init=False, default="")
    port: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Raises `UserError` where the head's address is wrong or the head does not answer."""
        if self.nodes == 1:
            return
        self.host, _, port = self.head.rpartition(":")
        if not self.host or not port.isdecimal() or not 0 < int(port) < 65535:
            raise UserError(f"--head {self.head!r}: several nodes need the first one's HOST:PORT, as in node0:29400")
        if not 0 <= self.node < self.nodes:
            raise UserError(f"--node {self.node}: with --nodes {self.nodes} it must lie in 0 to {self.nodes - 1}")
        self.port, first = int(port), self.node == 0
        try:
            self.store = dist.TCPStore(self.host, self.port, None, first, PATIENCE, wait_for_workers=False)
        except (dist.DistError, ValueError) as error:
            mend = "take another port" if first else "start the same command with --node 0 there"
            raise UserError(f"{self.head}: {_first_line(error)}; {mend}") from None

    def run(self, module: str, arguments: Sequence[str | Path], name: str, distributed: bool = True) -> int:
        """Run `python -m module arguments`, on all ranks if `distributed`; its exit code. `name` names the logs."""
        words = [str(word) for word in arguments]
        if not distributed or self.ranks * self.nodes == 1:
            return self._wait(subprocess.Popen([sys.executable, "-m", module, *words], env=_environment()))
        self.orders += 1
        self._tell(f"order/{self.orders}", {"module": module, "arguments": words, "name": name})
        return self._wait(self._agent(module, words, name))

    def follow(self) -> int:
        """On the other nodes: take part in the stages that the head starts, until it ends; the head's exit code."""
        assert self.store is not None
        self.store.add("joined", 1)
        try:
            while "exit" not in (order := self._order()):
                self.orders += 1
                print(f"[{time.strftime('%H:%M:%S')}] {order['module']} (node {self.node} of {self.nodes})", flush=True)
                if code := self._wait(self._agent(order["module"], order["arguments"], order["name"])):
                    self._tell_failure(code)
        except BaseException as error:
            self._tell_failure(exit_code(error))  # the others must not wait for this node
            raise
        finally:
            with suppress(dist.DistError):
                self.store.add("left", 1)
        return order["exit"]

    @contextmanager
    def coordinate(self) -> Iterator[None]:
        """On the head: wait for the other nodes, and at the end have them exit with the same code."""
        code = 0
        try:
            self._gather()  # also if no stage is left: a node that starts late would wait for a head
            yield
        except BaseException as error:
            code = exit_code(error)
            raise
        finally:
            self._end(code)

    def _end(self, code: int) -> None:
        """Tell the other nodes the exit code, and keep the store until they have read it."""
        if self.store is None:
            return
        if code:
            self._tell_failure(code)
        self._tell(f"order/{self.orders + 1}", {"exit": code})
        deadline = time.monotonic() + 60
        while self.store.add("left", 0) < self.store.add("joined", 0) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _agent(self, module: str, arguments: list[str], name: str) -> subprocess.Popen:
        """Start this node's torchrun."""
        logs = self.logs / name / f"node{self.node}"
        logs.mkdir(parents=True, exist_ok=True)
        if self.nodes == 1:
            where = ["--standalone"]
        else:
            # Explicit node ranks put rank 0, whose output is shown, on the head.
            where = ["--nnodes", str(self.nodes), "--node-rank", str(self.node)]
            where += ["--master-addr", self.host, "--master-port", str(self.port + 1)]
        output = ["--log-dir", str(logs), "--redirects", "3", "--tee", "0:3"]
        output += ["--shutdown-timeout", str(GRACE), "--signals-to-handle", "SIGTERM,SIGINT"]  # under nohup no SIGHUP
        ranks = ["--nproc-per-node", str(self.ranks)]
        words = [sys.executable, "-m", "stages.launch", *where, *ranks, *output, "-m", module, *arguments]
        return subprocess.Popen(words, env=_environment())

    def _wait(self, process: subprocess.Popen) -> int:
        """A process's exit code. The process is ended when another node fails, or when SIGTERM ends this one."""
        try:
            while True:
                try:
                    code = process.wait(timeout=1 if self.store else None)
                    return code if code >= 0 else 128 - code
                except subprocess.TimeoutExpired:
                    if failure := self._failed_elsewhere():
                        print(f"error: {failure['who']}; see its output", file=sys.stderr)
                        process.terminate()
                        process.wait()
                        return failure["code"]
        except (KeyboardInterrupt, Terminated) as error:
            for number in (signal.SIGINT, signal.SIGTERM):  # leaving while ranks save would release the run's lock
                signal.signal(number, signal.SIG_IGN)
            if isinstance(error, Terminated):  # a terminal's Ctrl-C reaches every process
                process.terminate()
            process.wait()
            raise

    def _gather(self) -> None:
        """On the head: wait until the other nodes have joined."""
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while self.store and (present := self.store.add("joined", 0) + 1) < self.nodes:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{present} of {self.nodes} nodes are here after {PATIENCE.seconds // 60} minutes; start the same "
                    f"command with --node 1 to {self.nodes - 1} on the others, and check that they reach {self.head}"
                )
            time.sleep(0.2)

    def _tell(self, key: str, value: Any) -> None:
        if self.store:
            self.store.set(key, json.dumps(value))

    def _tell_failure(self, code: int) -> None:
        with suppress(dist.DistError):  # the head, and its store, may have ended
            self._tell(f"failed/{self.orders}", {"who": f"node {self.node} failed with exit code {code}", "code": code})

    def _failed_elsewhere(self) -> dict[str, Any] | None:
        """The report of a node whose ranks have failed at this stage, or None."""
        assert self.store is not None
        try:
            key = f"failed/{self.orders}"
            return json.loads(self.store.get(key)) if self.store.check([key]) else None
        except dist.DistError:
            return {"who": "node 0 has gone", "code": 1}

    def _order(self) -> dict[str, Any]:
        """The head's next order."""
        assert self.store is not None
        key = f"order/{self.orders + 1}"
        try:
            while not self.store.check([key]):
                time.sleep(0.2)
            return json.loads(self.store.get(key))
        except dist.DistError:
            raise UserError(f"{self.head}: node 0 has gone; see its output, and start all nodes again") from None


def _environment() -> dict[str, str]:
    """The environment of a stage: it finds the checkout's modules, which no one installs, from any folder.

    Waiting threads sleep early, unless the user says how they wait.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = os.environ | {"PYTHONPATH": path}
    return own if "OMP_WAIT_POLICY" in own else {"GOMP_SPINCOUNT": SPINS, **own}


def exit_code(error: BaseException) -> int:
    """Exit code for an exception that leaves main()."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return {UserError: 2, KeyboardInterrupt: 130, Terminated: 143}.get(type(error), 1)


class StderrTee:
    """Standard error that keeps its last lines, because torchrun may lose what a rank prints just before it ends."""

    def __init__(self, stream: TextIO):
        self.stream, self.lines = stream, deque[str](maxlen=100)

    def write(self, text: str) -> None:
        self.lines.extend(text.splitlines())
        self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def repeat(self, log: Path | None, count: int, indent: str = "") -> None:
        """Print those of a log's last `count` lines that were not printed before."""
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:] if log else []
        for line in lines:
            if not any(line in printed for printed in self.lines):
                self.write(f"{indent}{line}\n")


def main() -> None:
    """Run torchrun. If it fails, name the first rank that failed, with the end of its log."""
    logging.disable(logging.ERROR)
    elastic._terminate_process_handler = partial(_first_signal, elastic._terminate_process_handler)
    os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "[rank ${rank}] ")
    stderr = StderrTee(sys.stderr)
    sys.stderr = cast(TextIO, stderr)
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        raise SystemExit(_report(*error.get_first_failure(), stderr)) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except (dist.DistError, RuntimeError) as error:
        print(f"error: the nodes do not find each other: {_first_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def _first_signal(handler: Callable[[int, Any], None], number: int, frame: Any) -> None:
    """Pass the first signal alone to torchrun's handler: another would break off its wait for the ranks."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    handler(number, frame)


def _report(rank: int, failure: ProcessFailure, stderr: StderrTee) -> int:
    """Print why a rank failed; its exit code. A `UserError` takes one line, an end by SIGINT or SIGTERM none."""
    code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    log = _log(failure.local_rank)
    text = log.read_text(encoding="utf-8", errors="replace") if log else ""
    if code == 2:
        stderr.repeat(log if "\nerror: " in text or text.startswith("error: ") else _log(0), 1)
    elif code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        reason = "was killed: out of memory?" if code == 128 + signal.SIGKILL else f"ended with exit code {code}"
        if "collective operation timeout" in text:  # NCCL's watchdog aborts the process
            reason = "waited in vain for another (trainer.timeout_minutes), which hangs, or whose disk is slow"
        stderr.write(f"error: rank {rank} {reason}" + (f"; its output is in {log}\n" if log else "\n"))
        stderr.repeat(log, 15, "  ")
    return code


def _log(local_rank: int) -> Path | None:
    """The log of a rank of this node in this launch; None if it is empty or torchrun has no folder for logs."""
    folder = Path(sys.argv[sys.argv.index("--log-dir") + 1]) if "--log-dir" in sys.argv else None
    attempts = sorted(folder.glob("*/attempt_*"), key=lambda path: path.stat().st_mtime) if folder else []
    log = attempts[-1] / str(local_rank) / "stderr.log" if attempts else None
    return log if log and log.is_file() and log.stat().st_size else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    command(main)
