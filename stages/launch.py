"""Stages as processes: one process, or ranks on one node or on several that share the folder.

On several nodes the same command runs on each. The first node, the head, decides what comes next and tells the others
through a store on its port; the ranks of a stage meet on the port after it. A node whose ranks fail reports that in the
store, so that no other node waits for them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist

from stages.files import Terminated, UserError

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
            code = self._wait([_start(module, words)])
            if code == 128 + signal.SIGKILL:
                print(f"error: {module} was killed: out of memory?", file=sys.stderr)
            return code
        self.orders += 1
        self._tell(f"order/{self.orders}", {"module": module, "arguments": words, "name": name})
        return self._run_ranks(module, words, name)

    def follow(self) -> int:
        """On the other nodes: take part in the stages that the head starts, until it ends; the head's exit code."""
        assert self.store is not None
        self.store.add("joined", 1)
        try:
            while "exit" not in (order := self._order()):
                self.orders += 1
                print(f"[{time.strftime('%H:%M:%S')}] {order['module']} (node {self.node} of {self.nodes})", flush=True)
                if code := self._run_ranks(order["module"], order["arguments"], order["name"]):
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

    def _run_ranks(self, module: str, words: list[str], name: str) -> int:
        """Run this node's ranks; the exit code of the first that fails, whose last lines are printed."""
        folder = self.logs / name / f"node{self.node}"
        folder.mkdir(parents=True, exist_ok=True)
        first, size = self.node * self.ranks, self.nodes * self.ranks
        address = (self.host, self.port + 1) if self.store else ("127.0.0.1", _free_port())
        common: dict[str, Any] = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": self.ranks, "GROUP_RANK": self.node}
        common |= {"MASTER_ADDR": address[0], "MASTER_PORT": address[1]}
        processes, logs = [], [folder / f"rank{first + local}.log" for local in range(self.ranks)]
        for local, log in enumerate(logs):
            ranked = {key: str(value) for key, value in (common | {"RANK": first + local, "LOCAL_RANK": local}).items()}
            with log.open("wb") as file:
                output = subprocess.PIPE if first + local == 0 else file
                processes.append(_start(module, words, ranked, output))
        shown = [threading.Thread(target=_show, args=(processes[0].stdout, logs[0]))] if first == 0 else []
        for thread in shown:
            thread.start()
        code = self._wait(processes)
        for thread in shown:
            thread.join()
        failed = [i for i, process in enumerate(processes) if process.returncode in (code, 128 - code)]
        if code and failed:
            _report(first + failed[0], code, logs[failed[0]], logs[0].read_text() if first == 0 else "")
        return code

    def _wait(self, processes: list[subprocess.Popen]) -> int:
        """Wait for all; the exit code of the first that fails, or 0.

        The others are ended when one fails, when another node fails, and when SIGTERM ends this process.
        """
        try:
            while True:
                codes = [process.poll() for process in processes]
                if broken := [code for code in codes if code]:
                    _end(processes)
                    return broken[0] if broken[0] > 0 else 128 - broken[0]
                if None not in codes:
                    return 0
                if self.store and (failure := self._failed_elsewhere()):
                    print(f"error: {failure['who']}; see its output", file=sys.stderr)
                    _end(processes)
                    return failure["code"]
                time.sleep(0.05)
        except (KeyboardInterrupt, Terminated) as error:
            for number in (signal.SIGINT, signal.SIGTERM):  # leaving while ranks save would release the run's lock
                signal.signal(number, signal.SIG_IGN)
            if isinstance(error, Terminated):  # a terminal's Ctrl-C reaches every process
                _end(processes)
            for process in processes:
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


def _start(module: str, words: list[str], ranked: dict[str, str] | None = None, output: Any = None) -> subprocess.Popen:
    """Start `python -m module words`. It inherits the run's lock, and finds the checkout's modules from any folder.

    Waiting threads sleep early, unless the user says how they wait.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = ({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPINS}) | os.environ
    environment |= {"PYTHONPATH": path} | (ranked or {})
    command = [sys.executable, *(["-u"] if ranked else []), "-m", module, *words]
    errors = subprocess.STDOUT if output else None
    return subprocess.Popen(command, env=environment, stdout=output, stderr=errors, close_fds=False)


def _show(output: BinaryIO, log: Path) -> None:
    """Copy a rank's output to its log and, each line with its rank, to standard error."""
    with log.open("ab", buffering=0) as file:
        for line in output:
            file.write(line)
            print(f"[rank 0] {line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)


def _end(processes: list[subprocess.Popen]) -> None:
    """Have all processes end: they get `GRACE` seconds to save their state."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))
        process.kill()
        process.wait()


def _report(rank: int, code: int, log: Path, shown: str) -> None:
    """Print why a rank failed, unless it was shown. A `UserError` takes one line, an end by SIGINT or SIGTERM none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if code == 2:
        errors = [line for line in lines if line.startswith("error: ") and line not in shown]
        print(*errors[-1:], sep="\n", end="\n" * bool(errors), file=sys.stderr)
    elif code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        reason = "was killed: out of memory?" if code == 128 + signal.SIGKILL else f"ended with exit code {code}"
        if any("collective operation timeout" in line for line in lines):  # NCCL's watchdog aborts the process
            reason = "waited in vain for another (trainer.timeout_minutes), which hangs, or whose disk is slow"
        print(f"error: rank {rank} {reason}; its output is in {log}", file=sys.stderr)
        print(*(f"  {line}" for line in lines[-15:] if rank), sep="\n", end="\n" * bool(rank), file=sys.stderr)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def exit_code(error: BaseException) -> int:
    """Exit code for an exception that leaves main()."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return {UserError: 2, KeyboardInterrupt: 130, Terminated: 143}.get(type(error), 1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
