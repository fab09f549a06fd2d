"""stages/launch.py: ranks find each other; failures of ranks and nodes, signals; two nodes on one machine."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, children_of, free_port, wait_for

import iterate
from stages import launch
from stages.command import UserError, command, on_sigterm_raise
from stages.files import read_manifest
from stages.launch import Launcher
from stages.lock import run_lock


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, from which stages import modules."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_fork(run, place: Path, name: str) -> multiprocessing.Process:
    """A copy of this process that calls `run` as a command; its output is in the file `name`."""

    def main() -> None:
        file = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, stream in ((1, "stdout"), (2, "stderr")):
            os.dup2(file, number)
            setattr(sys, stream, os.fdopen(number, "w", buffering=1, closefd=False))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_sigterm_raise()
        command(run)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def start_nodes(
    place: Path, program: str, stages: tuple[str, ...] = ("stage",), nodes: int = 2, ranks: int = 1, late: float = 0.0
) -> list[multiprocessing.Process]:
    """Nodes whose stages run `program` on all ranks, or "alone"; the second node starts `late` seconds later."""
    (place / "stage.py").write_text(program)
    head = f"127.0.0.1:{free_port()}"

    def node(number: int) -> None:
        time.sleep(late * number)
        launcher = Launcher(ranks, place / "logs", nodes, number, head)
        if number:
            launcher.follow(["stage"])
        with launcher.coordinate():
            raise SystemExit(sum(launcher.run("stage", [name], name, name != "alone") for name in stages))

    return [in_fork(lambda number=number: node(number), place, f"node{number}") for number in range(nodes)]


def finish(*processes: multiprocessing.Process) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def logs(place: Path) -> list[str]:
    return [log.read_text() for log in place.glob("logs/stage/node*/rank*.log")]


COUNT = """
import os, sys
from pathlib import Path
if sys.argv[1] == "alone":
    raise SystemExit("RANK" in os.environ)
import torch
import torch.distributed as dist
from stages.shards import rendezvous
dist.init_process_group("gloo")
total = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(total)
store, rank = rendezvous("count", "key")
claims = store.add("claimed", 1)
dist.barrier()
Path(f"{sys.argv[1]}-{rank}").write_text(f"{total.item():g} {store.add('claimed', 0)} {os.environ['LOCAL_RANK']}")
print("counted by", rank, file=sys.stderr)
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("nodes", "stages"), [(1, ("first", "alone")), (2, ("first", "alone", "second"))])
def test_ranks_find_each_other_in_each_stage(place, nodes, stages):
    """Two ranks, on one node or on two, add up 1 and 2; a later stage has a store of its own."""
    processes = start_nodes(place, COUNT, stages, nodes, 2 // nodes)
    assert finish(*processes) == [0] * nodes, [(place / f"node{number}").read_text() for number in range(nodes)]
    for stage in {*stages} - {"alone"}:
        for rank in range(2):
            assert (place / f"{stage}-{rank}").read_text() == f"3 2 {rank if nodes == 1 else 0}"
            log = place / "logs" / stage / f"node{rank if nodes == 2 else 0}" / f"rank{rank}.log"
            assert f"counted by {rank}" in log.read_text()
    shown = (place / "node0").read_text()
    assert shown.count("counted by 0") == nodes and "counted by 1" not in shown
    if nodes == 2:
        assert (place / "node1").read_text().count("stage (node 1 of 2)") == 2


ERROR = "error: what, where: mend it"
LOG = "its output is in logs/stage/node0/rank1.log"


@pytest.mark.parametrize(
    ("first", "second", "code", "shown"),
    [
        ("fail()", "fail()", 2, [ERROR]),
        ("time.sleep(60)", "fail()", 2, [ERROR]),
        ("time.sleep(60)", "1 / 0", 1, [f"error: rank 1 ended with exit code 1; {LOG}"]),
        ("time.sleep(60)", "os.kill(os.getpid(), 9)", 137, [f"error: rank 1 was killed: out of memory?; {LOG}"]),
    ],
)
def test_a_failed_rank_is_named_with_the_end_of_its_log(place, capfd, first, second, code, shown):
    """`command` turns the error of `fail` into a line and exit code 2."""
    (place / "wrong.py").write_text(
        f"""
import os, time
from stages.command import UserError, command
def fail():
    time.sleep(0.5)
    raise UserError("what, where: mend it")
print("at work", flush=True)
while os.environ["RANK"] == "1" and not os.path.getsize("logs/stage/node0/rank0.log"):
    time.sleep(0.05)
command(lambda: {second} if os.environ["RANK"] == "1" else {first})
"""
    )
    assert Launcher(2, Path("logs")).run("wrong", [], "stage") == code
    first_line, *lines = capfd.readouterr().err.splitlines()
    assert first_line == "at work" and lines[: len(shown)] == shown
    end = {1: ["  ZeroDivisionError: division by zero"], 2: [], 137: ["  at work"]}
    assert lines[len(shown) :][-1:] == end[code]


def test_a_killed_stage_is_named(place, capfd):
    (place / "alone.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert Launcher(1, Path("logs")).run("alone", [], "stage") == 137
    assert capfd.readouterr().err == "error: alone was killed: out of memory?\n"


SAVING = """
import signal, sys, time
stop = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.append(1))
print("ready", file=sys.stderr, flush=True)
while not stop:
    time.sleep(0.05)
time.sleep(1.5)
open("saved", "a").write("x")
raise SystemExit(143)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_that_come_again_do_not_break_off_the_saving(place, number, code):
    """A scheduler, or a terminal, signals every process, and more than once. The lock stays until ranks have saved."""
    (place / "saving.py").write_text(SAVING)

    def run() -> None:
        with run_lock(place):
            Launcher(2, place / "logs").run("saving", [], "stage")

    process = in_fork(run, place, "out")
    wait_for(lambda: logs(place) == ["ready\n"] * 2)
    ranks = children_of(process.pid)
    assert len(ranks) == 2
    for _ in range(3):
        for pid in (*ranks, process.pid):
            os.kill(pid, number)
        time.sleep(0.3)
    assert (place / "lock").is_file()
    assert finish(process) == [code] and (place / "saved").read_text() == "xx" and not (place / "lock").exists()
    assert (place / "out").read_text().endswith("run the same command again to continue\n")


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_fails_ends_the_others(place, node):
    program = f"import os, time\nif os.environ['GROUP_RANK'] == '{node}':\n    raise SystemExit(7)\ntime.sleep(600)\n"
    assert finish(*start_nodes(place, program)) == [7, 7]
    assert f"error: rank {node} ended with exit code 7" in (place / f"node{node}").read_text()
    assert f"error: node {node} failed with exit code 7; see its output" in (place / f"node{1 - node}").read_text()


@pytest.mark.parametrize(
    ("node", "number", "codes", "message"),
    [
        (1, signal.SIGTERM, [143, 143], "error: node 1 failed with exit code 143"),
        (0, signal.SIGKILL, [-9, 2], "node 0 has gone; see its output"),
    ],
)
def test_a_node_that_is_stopped_ends_the_others(place, node, number, codes, message):
    processes = start_nodes(place, "import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    wait_for(lambda: logs(place) == ["ready\n"] * 2)
    os.kill(processes[node].pid, number)
    assert finish(*processes) == codes and message in (place / f"node{1 - node}").read_text()


def test_nodes_that_start_late_or_not_at_all(monkeypatch, place):
    assert finish(*start_nodes(place, "", stages=(), late=1.0)) == [0, 0]
    monkeypatch.setattr(launch, "PATIENCE", launch.timedelta(seconds=1))
    port = free_port()
    with pytest.raises(UserError, match="start the same command with --node 0"):
        Launcher(1, place, nodes=2, node=1, head=f"127.0.0.1:{port}")
    head = Launcher(1, place, nodes=3, head=f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"1 of 3 nodes are here; .*--node 1 to 2"), head.coordinate():
        pytest.fail("the head did not wait")


@pytest.mark.parametrize(("node", "head"), [(0, ""), (0, "here"), (0, "here:70000"), (2, "here:1")])
def test_wrong_options_for_nodes(tmp_path, node, head):
    with pytest.raises(UserError, match="0 to 1" if node else "HOST:PORT"):
        Launcher(1, tmp_path, nodes=2, node=node, head=head)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["HEAD=here:1"], "--head here:1: --nodes is missing"),
        (["NODE=1"], "--node 1: with --nodes 1"),
        (["NODES=2"], "--head '': several nodes need the first one's HOST:PORT"),
    ],
)
def test_options_for_nodes_without_the_others(tmp_path, monkeypatch, given, complaint):
    """Make hands them all on. `--nodes 1 --head` is right: scripts of a scheduler name its number of nodes."""
    words = ["make", "-n", "--no-print-directory", "iterate", f"CONFIG={ROOT}/configs/tiny.toml", *given]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
    monkeypatch.setattr(sys, "argv", shlex.split(made[made.index("iterate --config") :].replace("\\\n", "")))
    monkeypatch.setattr(iterate, "on_sigterm_raise", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=complaint):
        iterate.main()


@pytest.mark.slow
def test_two_nodes_make_what_one_makes(tmp_path):
    """Two ranks on one node, and two nodes of a rank each: every stage's output is the same to the byte."""
    digests = []
    for ranks, nodes in ((2, 1), (1, 2)):
        place, head = tmp_path / str(nodes), f"127.0.0.1:{free_port()}"
        place.mkdir()
        (place / "data").symlink_to(ROOT / "data")
        text = f'extends = "{ROOT}/configs/tiny.toml"\nnproc_per_node = {ranks}\n[[iteration]]\nrho = 0.0\n'
        (place / "two.toml").write_text(text)
        line = [sys.executable, ROOT / "iterate.py", "--config", "two.toml", "--nodes", str(nodes), "--head", head]
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        processes = [subprocess.Popen([*line, "--node", str(i)], cwd=place, env=variables) for i in range(nodes)]
        assert [process.wait(400) for process in processes] == [0] * nodes
        folders = [path.parent for path in place.rglob("manifest.json")]
        digests.append({folder.relative_to(place): read_manifest(folder)["digest"] for folder in folders})
    assert digests[0] == digests[1] and len(digests[0]) == 8  # seven stages and the reference
