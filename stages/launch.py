"""Stages as processes: one process, or ranks on one node or on several that share the folder.

A rank gets torchrun's variables and meets the others in a store of the launcher. On several nodes the same command runs
on each: the head decides what comes next and tells the others through a store on its port, which has the first failure.
Words in that store are signed with a secret in the run's folder, so that no stranger who reaches the port is heard.
"""

import ctypes
import hmac
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from stages.command import UserError
from stages.files import write_atomic

ROOT = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
GRACE = 300  # seconds that ranks have to save their state after a signal
KILLED = 128 + signal.SIGKILL
PATIENCE = timedelta(minutes=10)  # how long nodes wait for one another at the start
SPINS = "1000"  # how often a waiting thread looks before it sleeps; OpenMP's 300,000 would take a shared machine's time


@dataclass
class Launcher:  # starts the stages of a run and waits for them
    ranks: int  # on each node
    logs: Path  # folder for the output of several ranks: `logs`/STAGE/node0/rank0.log
    nodes: int = 1
    node: int = 0
    head: str = ""  # HOST:PORT of node 0
    store: Any = field(init=False, default=None)  # a `TCPStore` of several nodes
    orders: Iterator[int] = field(init=False, default_factory=lambda: count(1))  # of stages on all ranks

    def __post_init__(self) -> None:
        """Raises `UserError` where the head's address is wrong or the head does not answer."""
        self.secret = self.logs.with_name("secret")  # of the nodes, who share the run's folder
        if not 0 <= self.node < self.nodes:
            raise UserError(f"--node {self.node}: with --nodes {self.nodes} it must lie in 0 to {self.nodes - 1}")
        if self.nodes == 1:
            return
        host, _, port = self.head.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise UserError(f"--head {self.head!r}: several nodes need the first one's HOST:PORT, as in node0:29400")
        if self.node == 0 and not (self.secret.is_file() and self.secret.stat().st_size):
            write_atomic(self.secret, os.urandom(32), 0o600)
        try:
            self.store = dist.TCPStore(host, int(port), None, self.node == 0, PATIENCE, wait_for_workers=False)
        except (dist.DistError, ValueError) as error:
            mend = "start the same command with --node 0 there" if self.node else "take another port"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.head}: {reason}; {mend}") from None

    def _meeting(self) -> dist.TCPStore:
        """A store for the ranks of a stage. On one node its port is open to this machine alone."""
        if self.nodes > 1:
            return dist.TCPStore(self.store.host, 0, None, True, wait_for_workers=False)
        server = socket.create_server((LOOPBACK, 0))
        port, number = server.getsockname()[1], server.detach()
        return dist.TCPStore(LOOPBACK, port, None, True, wait_for_workers=False, master_listen_fd=number)

    def _signed(self, key: str, text: str) -> str:
        return hmac.digest(self.secret.read_bytes(), f"{key} {text}".encode(), "sha256").hex() + text

    def run(self, module: str, arguments: Sequence[str | Path], name: str, distributed: bool = True) -> int:
        """Run `python -m module arguments`, on all ranks if `distributed`; its exit code. `name` names the logs."""
        words = [module, *map(str, arguments)]
        if distributed and self.ranks * self.nodes > 1:
            meeting = self._meeting()
            if self.nodes > 1:
                key = f"order/{next(self.orders)}"
                self.store.set(key, self._signed(key, json.dumps([name, words, meeting.port])))
            return self._run_ranks(name, words, meeting.port)
        code, _ = self._wait([_start(words)])
        if code == KILLED:
            print(f"error: {module} was killed: out of memory?", file=sys.stderr)
        return code

    @contextmanager
    def coordinate(self) -> Iterator[None]:
        """On the head: wait for the other nodes, and have them end when this context does, with the same exit code."""
        if self.nodes == 1:
            yield
            return
        try:
            with self._end_reported():
                deadline = time.monotonic() + PATIENCE.total_seconds()
                while (present := self.store.add("joined", 0) + 1) < self.nodes:
                    if time.monotonic() > deadline:
                        mend = f"with --node 1 to {self.nodes - 1} on the others, and check that they reach {self.head}"
                        raise UserError(f"{present} of {self.nodes} nodes are here; start the same command {mend}")
                    time.sleep(0.2)
                yield
        finally:  # the store stays until the others have read how the run ended
            deadline = time.monotonic() + 60
            while self.store.add("left", 0) < self.store.add("joined", 0) and time.monotonic() < deadline:
                time.sleep(0.1)

    def follow(self, modules: Sequence[str]) -> NoReturn:
        """On the other nodes: take part in the head's stages, some of `modules`. Exits with its code or a failure's."""
        self.store.add("joined", 1)
        try:
            with self._end_reported():
                while True:
                    number = next(self.orders)
                    while not (order := self._read(f"order/{number}")):
                        self._check_end()
                        time.sleep(0.2)
                    if order[1][0] not in modules:
                        raise UserError(f"{self.head}: asks for {order[1][0]!r}, no stage; use one version")
                    print(f"[{time.strftime('%H:%M:%S')}] {order[1][0]} (node {self.node} of {self.nodes})", flush=True)
                    if code := self._run_ranks(*order):
                        raise SystemExit(code)
        finally:
            with suppress(dist.DistError):
                self.store.add("left", 1)

    @contextmanager
    def _end_reported(self) -> Iterator[None]:
        """Report how this node ends, unless another has ended before: the head's end and a node's failure end all."""
        code = 0
        try:
            yield
        except BaseException as error:
            code = getattr(error, "code", {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1))
            raise
        finally:
            with suppress(dist.DistError, OSError):  # the head, and its store, may have ended
                report = json.dumps([f"node {self.node} failed with exit code {code}", code])
                self.store.compare_set("end", "", self._signed("end", report))

    def _read(self, key: str) -> Any:
        """What a node has written to the store, or None. Raises `UserError` if the head has gone without a word, or a
        stranger has written."""
        try:
            text = self.store.get(key).decode(errors="replace") if self.store.check([key]) else ""
        except dist.DistError:
            raise UserError(f"{self.head}: node 0 has gone; see its output, and start all nodes again") from None
        known = self.secret.is_file() and hmac.compare_digest(text.encode(), self._signed(key, text[64:]).encode())
        if text and not known:
            raise UserError(f"{self.head}: who answers does not know {self.secret}; start node 0 of this run there")
        return json.loads(text[64:]) if text else None

    def _check_end(self) -> None:
        """Raise SystemExit if a node has ended, with its exit code."""
        if self.store is not None and (end := self._read("end")):
            if end[1]:
                print(f"error: {end[0]}; see its output", file=sys.stderr)
            raise SystemExit(end[1])

    def _run_ranks(self, name: str, words: list[str], port: int) -> int:
        """Run this node's ranks, show rank 0's output, and name the rank that fails first; its exit code."""
        folder, first = self.logs / name / f"node{self.node}", self.node * self.ranks
        folder.mkdir(parents=True, exist_ok=True)
        host = self.store.host if self.store else LOOPBACK
        common = {"MASTER_ADDR": host, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        common |= {"WORLD_SIZE": self.nodes * self.ranks, "LOCAL_WORLD_SIZE": self.ranks, "GROUP_RANK": self.node}
        common |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", 1)}
        logs = [folder / f"rank{first + i}.log" for i in range(self.ranks)]
        processes = [_start(words, common | {"RANK": first + i, "LOCAL_RANK": i}, log) for i, log in enumerate(logs)]
        code, failed = self._wait(processes, None if first else logs[0])
        if code:
            _report(first + failed, code, logs[failed], None if first else logs[0])
        return code

    def _wait(self, processes: list[subprocess.Popen], shown: Path | None = None) -> tuple[int, int]:
        """Wait for all, and end all when one, another node or this one fails; the first failure's code and number. What
        is written to the log `shown` appears on standard error, too."""

        def show() -> None:
            sys.stderr.buffer.write(lines.read())
            sys.stderr.flush()

        with shown.open("rb") if shown else io.BytesIO() as lines:
            try:
                while None in (codes := [process.poll() for process in processes]) and not any(codes):
                    self._check_end()
                    show()
                    time.sleep(0.05)
            except BaseException as error:
                for number in (signal.SIGINT, signal.SIGTERM):  # leaving while ranks save would release the run's lock
                    signal.signal(number, signal.SIG_IGN)
                if isinstance(error, KeyboardInterrupt):  # a terminal's Ctrl-C reaches every process
                    for process in processes:
                        process.wait()
                raise
            finally:
                _end(processes)
                show()
        return next(((code if code > 0 else 128 - code, i) for i, code in enumerate(codes) if code), (0, 0))


def _start(words: list[str], variables: dict[str, Any] | None = None, log: Path | None = None) -> subprocess.Popen:
    """Start the module of `words`. It inherits the run's lock, is told to end when this process is killed (Linux's
    PR_SET_PDEATHSIG), and finds the checkout's modules from any folder."""
    tie = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM)
    environment = ({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPINS}) | os.environ
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    environment |= {key: str(value) for key, value in (variables or {}).items()}
    with log.open("wb") if log else nullcontext() as out:
        command = [sys.executable, "-m", "stages.stage", *words]
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, close_fds=False, preexec_fn=tie)


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


def _report(rank: int, code: int, log: Path, shown: Path | None) -> None:
    """Print why a rank failed, unless the log `shown` has it. A `UserError` takes one line, an end by a signal none."""
    lines, seen = (file.read_text(errors="replace").splitlines() if file else [] for file in (log, shown))
    if code == 2:
        errors = [line for line in lines if line.startswith("error: ") and line not in seen]
        print(*(f"{line}\n" for line in errors[-1:]), sep="", end="", file=sys.stderr)
    elif code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        reason = "was killed: out of memory?" if code == KILLED else f"ended with exit code {code}"
        if any("collective operation timeout" in line for line in lines):  # NCCL's watchdog aborts the process
            reason = "waited in vain for another (trainer.timeout_minutes), which hangs, or whose disk is slow"
        print(f"error: rank {rank} {reason}; its output is in {log}", file=sys.stderr)
        print(*(f"  {line}\n" for line in lines[-15:] if log != shown), sep="", end="", file=sys.stderr)
