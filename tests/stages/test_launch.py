"""stages/launch.py: two nodes on one machine, failures of ranks and nodes, SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from stages import launch
from stages.files import UserError, read_manifest
from stages.launch import Launcher

ROOT = Path(__file__).parents[2]
ITERATE = (str(ROOT / "iterate.py"), "--config", "two.toml")


def free_port() -> int:
    """A free port whose successor is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def start(place: Path, *words: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{place}", "OMP_NUM_THREADS": "1"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs ignore SIGINT
    return subprocess.Popen([sys.executable, *words], cwd=place, env=environment, preexec_fn=default, **piped)


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def make_place(place: Path, ranks: int) -> Path:
    """A folder for one iteration of tiny.toml with `ranks` ranks a node."""
    place.mkdir()
    (place / "data").symlink_to(ROOT / "data")
    text = (ROOT / "configs" / "tiny.toml").read_text().replace("seed = 0", f"seed = 0\nnproc_per_node = {ranks}", 1)
    (place / "two.toml").write_text(text[: text.rindex("[[iteration]]")])
    return place


def digests(place: Path) -> dict[str, str]:
    """The digest of each stage's output, by folder."""
    manifests = {path.parent: read_manifest(path.parent) for path in place.rglob("manifest.json")}
    return {str(folder.relative_to(place)): manifest["digest"] for folder, manifest in manifests.items() if manifest}


@pytest.fixture(scope="module")
def one_node(tmp_path_factory) -> tuple[Path, str]:
    """A run on two ranks of one torchrun, stopped by SIGTERM during SFT and continued; and its output."""
    place = make_place(tmp_path_factory.mktemp("one") / "place", 2)
    process = start(place, *ITERATE)
    deadline = time.monotonic() + 200
    while not (metrics := list(place.glob("models/sft/*/*/metrics.jsonl"))) or not metrics[0].stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 143, err
    assert len(list(place.glob("models/sft/*/*/state-*"))) == 1 and not list(place.rglob("lock"))
    code, out_2, err_2 = finish(start(place, *ITERATE))
    assert code == 0, err_2
    return place, out + err + out_2 + err_2


def test_sigterm_saves_and_the_same_command_continues(one_node):
    _, output = one_node
    assert "terminated: run the same command again" in output and "stopped after step" in output
    assert "continuing from step" in output


def test_each_rank_has_a_log_and_the_first_rank_is_shown(one_node):
    place, output = one_node
    logs = place / "runs" / "tiny" / "logs" / "iter1-judgments" / "node0"
    first, second = ((logs / f"rank{rank}.log").read_text() for rank in range(2))
    assert "KV cache" in first and "judge: 100%" in first and "\r" not in first
    assert "[rank 0] judge: 100%" in output and "[rank 1]" not in output
    assert "KV cache" not in second


def test_two_nodes_make_what_one_makes(one_node, tmp_path):
    """With the same number of ranks, every stage's output is the same to the byte."""
    place = make_place(tmp_path / "place", 1)
    several = ("--nodes", "2", "--head", f"127.0.0.1:{free_port()}")
    follower, head = (start(place, *ITERATE, *several, "--node", node) for node in ("1", "0"))
    code, _, err = finish(head)
    assert code == 0, err
    code, out, err = finish(follower, 60)
    assert code == 0, err
    assert out.count("(node 1 of 2)") == 5
    assert digests(place) == digests(one_node[0]) and len(digests(place)) == 7
    manifest = read_manifest(place / "runs" / "tiny" / "iter1" / "checkpoint")
    assert manifest is not None and manifest["ranks"] == 2


RUN = """
import sys
from pathlib import Path
from stages.files import command, on_sigterm_raise
from stages.launch import Launcher
on_sigterm_raise()
def main():
    raise SystemExit(Launcher(int(sys.argv[1]), Path("logs")).run(sys.argv[2], sys.argv[3:], "stage"))
command(main)
"""


def launched(place: Path, *words: str, ranks: str = "2") -> tuple[int, str, str]:
    (place / "run.py").write_text(RUN)
    return finish(start(place, "run.py", ranks, *words))


def test_a_users_error_on_all_ranks_is_one_line_and_exit_code_2(tmp_path):
    words = ("dpo.sft", "--config", "none.toml", "--model", "m", "--data", "d")
    code, out, err = launched(tmp_path, *words, "--out", "o")
    assert code == 2 and out == ""
    assert err.removeprefix("[rank 0] ") == "error: none.toml: no such config; choose one of configs/*.toml\n"


def test_a_users_error_on_one_rank_is_shown(tmp_path):
    program = "import os, sys, time\nfrom stages.files import UserError, command\nprint('at work', file=sys.stderr)\n"
    program += "def main():\n    time.sleep(1)\n    if os.environ['RANK'] == '1':\n        raise UserError('a, b: c')\n"
    (tmp_path / "wrong.py").write_text(program + "    time.sleep(60)\ncommand(main)\n")
    code, _, err = launched(tmp_path, "wrong")
    assert code == 2 and err.splitlines() == ["[rank 0] at work", "error: a, b: c"]


SAVING = """
import signal, sys, time
stop = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.append(1))
print("ready", file=sys.stderr, flush=True)
while not stop:
    time.sleep(0.05)
time.sleep(4)
open("saved", "a").write("x")
raise SystemExit(143)
"""


def wait_until_ready(place: Path) -> None:
    while len([log for log in place.glob("logs/stage/node0/rank*.log") if "ready" in log.read_text()]) < 2:
        time.sleep(0.1)


def test_signals_that_come_again_do_not_break_off_the_saving(tmp_path):
    """A scheduler signals every process, and more than once."""
    (tmp_path / "saving.py").write_text(SAVING)
    (tmp_path / "run.py").write_text(RUN)
    process = start(tmp_path, "run.py", "2", "saving")
    wait_until_ready(tmp_path)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    code, _, err = finish(process, 60)
    assert code == 143 and (tmp_path / "saved").read_text() == "xx" and "signal" not in err


def test_a_second_ctrl_c_does_not_give_up_the_lock_while_ranks_save(tmp_path):
    (tmp_path / "saving.py").write_text(SAVING)
    program = "from pathlib import Path\nfrom stages.files import command\nfrom stages.launch import Launcher\n"
    program += "from stages.lock import run_lock\n"
    program += (
        "def main():\n    with run_lock(Path('.')):\n        Launcher(2, Path('logs')).run('saving', [], 'stage')\n"
    )
    (tmp_path / "run.py").write_text(program + "command(main)\n")
    process = start(tmp_path, "run.py")
    wait_until_ready(tmp_path)
    agents = subprocess.check_output(["ps", "--ppid", str(process.pid), "-o", "pid="], text=True).split()
    for _ in range(2):
        for pid in (*map(int, agents), process.pid):
            os.kill(pid, signal.SIGINT)
        time.sleep(1)
    assert (tmp_path / "lock").is_file()
    code, _, _ = finish(process, 60)
    assert code == 130 and (tmp_path / "saved").read_text() == "xx" and not (tmp_path / "lock").exists()


def test_a_failed_rank_is_named_with_the_end_of_its_log(tmp_path):
    (tmp_path / "crash.py").write_text("import os\nif os.environ['RANK'] == '1':\n    raise ValueError('no luck')\n")
    code, _, err = launched(tmp_path, "crash")
    assert code == 1
    assert "error: rank 1 ended with exit code 1; its output is in logs/" in err and "ValueError: no luck" in err


def test_a_killed_rank_is_named(tmp_path):
    (tmp_path / "crash.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    code, _, err = launched(tmp_path, "crash", ranks="1")
    assert code == 137 and "error: crash was killed: out of memory?" in err


FAILING = """
import os, time
if os.environ["GROUP_RANK"] == "{node}":
    raise SystemExit(7)
time.sleep(600)
"""

NODE = """
import sys
from functools import partial
from pathlib import Path
from stages.files import command, on_sigterm_raise
from stages.launch import Launcher

on_sigterm_raise()
launcher = Launcher(1, Path("logs"), nodes=2, node=int(sys.argv[1]), head=sys.argv[2])

def main():
    if launcher.node:
        raise SystemExit(launcher.follow())
    with launcher.coordinate():
        raise SystemExit(launcher.run("failing", [], "stage"))

command(main)
"""


def two_nodes(place: Path) -> list[subprocess.Popen]:
    (place / "node.py").write_text(NODE)
    head = f"127.0.0.1:{free_port()}"
    return [start(place, "node.py", str(number), head) for number in range(2)]


def nodes_at_work(place: Path) -> list[subprocess.Popen]:
    """Two nodes, each with a running rank."""
    (place / "failing.py").write_text("import time\ntime.sleep(600)")
    processes = two_nodes(place)
    while not list(place.glob("logs/stage/node1/rank1.log")):
        time.sleep(0.1)
    return processes


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_fails_ends_the_others(tmp_path, node):
    (tmp_path / "failing.py").write_text(FAILING.format(node=node))
    processes = two_nodes(tmp_path)
    codes = [finish(process, 120) for process in processes]
    assert [code for code, _, _ in codes] == [7, 7]
    assert "ended with exit code 7" in codes[node][2]
    assert f"error: node {node} failed with exit code 7" in codes[1 - node][2]


def test_a_node_that_is_told_to_stop_ends_the_others(tmp_path):
    processes = nodes_at_work(tmp_path)
    time.sleep(1)
    processes[1].send_signal(signal.SIGTERM)
    codes = [finish(process, 120) for process in processes]
    assert (codes[0][0], codes[1][0]) == (143, 143) and "error: node 1 failed" in codes[0][2], codes


def test_a_head_that_is_killed_ends_the_others(tmp_path):
    processes = nodes_at_work(tmp_path)
    agents = subprocess.check_output(["ps", "--ppid", str(processes[0].pid), "-o", "pid="], text=True).split()
    processes[0].kill()
    code, _, err = finish(processes[1], 120)
    assert code == 2 and "error: node 0 has gone" in err
    for agent_of_head in agents:
        os.kill(int(agent_of_head), signal.SIGTERM)
    processes[0].communicate()


def test_a_node_that_starts_late_ends_with_the_head(tmp_path):
    (tmp_path / "node.py").write_text(NODE.replace('launcher.run("failing", [], "stage")', "0"))
    head = f"127.0.0.1:{free_port()}"
    processes = [start(tmp_path, "node.py", "0", head)]
    time.sleep(6)
    processes.append(start(tmp_path, "node.py", "1", head))
    assert [finish(process, 60)[0] for process in processes] == [0, 0]


def test_nodes_that_do_not_start(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "PATIENCE", launch.timedelta(seconds=1))
    port = free_port()
    with pytest.raises(UserError, match="start the same command with --node 0"):
        Launcher(1, tmp_path, nodes=2, node=1, head=f"127.0.0.1:{port}")
    head = Launcher(1, tmp_path, nodes=3, head=f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"1 of 3 nodes are here after 0 minutes; .*--node 1 to 2"), head.coordinate():
        pytest.fail("the head did not wait")


@pytest.mark.parametrize(
    ("node", "head", "complaint"),
    [(0, "", "HOST:PORT"), (0, "here", "HOST:PORT"), (0, "here:70000", "HOST:PORT"), (2, "here:1", "0 to 1")],
)
def test_wrong_options_for_nodes(tmp_path, node, head, complaint):
    with pytest.raises(UserError, match=complaint):
        Launcher(1, tmp_path, nodes=2, node=node, head=head)


def test_a_second_iterate_in_the_same_folder_is_refused(one_node):
    place, _ = one_node
    folder = place / "runs" / "tiny"
    code = "import sys, time; from stages.lock import run_lock; from pathlib import Path\n"
    code += f"with run_lock(Path({str(folder)!r})):\n    print('held', flush=True); time.sleep(600)"
    holder = start(place, "-c", code)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    code_of_second, _, err = finish(start(place, *ITERATE))
    holder.kill()
    holder.communicate()
    assert code_of_second == 2 and f"runs/tiny/lock: in use by process {holder.pid}" in err
    code_of_third, _, err = finish(start(place, *ITERATE))
    assert code_of_third == 0, err
