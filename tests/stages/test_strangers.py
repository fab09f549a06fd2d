"""Strangers on the network: who answers in the head's place has no stage run, and on one node no port is open to other
machines."""

import hmac
import json
import multiprocessing
import os
import re
import stat
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import ROOT, free_port, listening, wait_for
from test_launch import finish, in_fork

from iterate import STAGES
from stages.launch import Launcher

SECRET = b"known to the nodes"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with a module that leaves a trace, and the run's folder with its secret."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("open('ran', 'w').close()")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "secret").write_bytes(SECRET)
    return tmp_path


def signed(secret: bytes, key: str, value: object) -> str:
    text = json.dumps(value)
    return hmac.new(secret, f"{key} {text}".encode(), "sha256").hexdigest() + text


def follower(place: Path, store: dist.TCPStore, *modules: str) -> multiprocessing.Process:
    """The second of two nodes, to which the head is who has this store."""
    head = f"127.0.0.1:{store.port}"
    return in_fork(lambda: Launcher(1, Path("run/logs"), 2, 1, head).follow(modules), place, "out")


ORDER = ["log", ["planted"], 1]
FORGED = {
    "as text": json.dumps(ORDER),
    "without a secret": signed(b"", "order/1", ORDER),
    "with another secret": signed(b"guessed", "order/1", ORDER),
    "of another place": signed(SECRET, "order/2", ORDER),
    "no text": "\udcff\x00",
}


@pytest.mark.parametrize("words", FORGED)
@pytest.mark.parametrize("key", ["order/1", "end"])
def test_a_stranger_s_orders_are_refused(place, words, key):
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    store.set(key, FORGED[words].encode("utf-8", "surrogateescape"))
    node = follower(place, store, "planted")
    assert finish(node) == [2] and not (place / "ran").exists()
    assert f"127.0.0.1:{store.port}: who answers does not know run/secret" in (place / "out").read_text()


def test_a_node_that_finds_no_secret_runs_nothing(place):
    (place / "run" / "secret").unlink()
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    store.set("order/1", FORGED["without a secret"])
    node = follower(place, store, "planted")
    assert finish(node) == [2] and not (place / "ran").exists()


def test_the_head_itself_can_name_stages_alone(place):
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    store.set("order/1", signed(SECRET, "order/1", ORDER))
    assert finish(follower(place, store, "judging.judge")) == [2] and not (place / "ran").exists()
    assert "asks for 'planted', no stage" in (place / "out").read_text()
    store.delete_key("end")
    node = follower(place, store, "planted")
    wait_for((place / "ran").exists)
    store.set("end", signed(SECRET, "end", ["", 0]))
    assert finish(node) == [0]


def test_iterate_s_stages_are_all_that_it_may_name():
    modules = {path for path in ROOT.glob("*/*.py") if re.search(r"^[A-Z_]+ = Stage\(", path.read_text(), re.M)}
    assert {stage.module for stage in STAGES} == {f"{path.parent.name}.{path.stem}" for path in modules}


def test_the_head_makes_a_secret_that_its_owner_alone_may_read(tmp_path):
    for _ in range(2):
        head = Launcher(1, tmp_path / "run" / "logs", 2, 0, f"127.0.0.1:{free_port()}")
        assert stat.S_IMODE(head.secret.stat().st_mode) == 0o600
    first = head.secret.read_bytes()
    head.secret.write_bytes(b"")
    again = Launcher(1, tmp_path / "run" / "logs", 2, 0, f"127.0.0.1:{free_port()}").secret.read_bytes()
    assert len(again) == 32 and again != first, "whoever finds no secret could sign with none"
    Launcher(1, tmp_path / "other" / "logs", 2, 0, f"127.0.0.1:{free_port()}")
    assert len(first) == 32 and (tmp_path / "other" / "secret").read_bytes() != first
    Launcher(2, tmp_path / "single" / "logs")
    assert not (tmp_path / "single").exists()


LOOPBACK = "0100007F"
PORTS = """
import json, os, sys
sys.path.append({support!r})
from dpo.parallel import distributed
from processes import listening
with distributed(1) as world:
    print(json.dumps([world.size, listening(os.getpid()), listening(os.getppid())]), file=sys.stderr)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_on_one_node_ports_are_open_to_this_machine_alone(place, capfd, ranks):
    """Those of the launcher, and those of its ranks."""
    (place / "ports.py").write_text(PORTS.format(support=str(ROOT / "tests" / "support")))
    before = listening(os.getpid())
    assert Launcher(ranks, place / "run" / "logs").run("ports", [], "ports") == 0
    size, own, launchers = json.loads(capfd.readouterr().err)
    opened = [address for number, address in launchers.items() if number not in before]
    assert size == ranks and own and {*own.values()} == {LOOPBACK} and opened == [LOOPBACK] * (ranks > 1)
