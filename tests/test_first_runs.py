"""First runs in a fresh folder, two at once; what a kill has left half written; locks that are none; names of runs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, SMALL_SFT, fork, iterate, short_examples, start, wait, wait_for

from iterate import main
from prepare.seed_model import prepare
from stages.command import UserError, command
from stages.files import digest, write_jsonl
from stages.lock import run_lock
from stages.settings import Model


@pytest.fixture
def place(tmp_path) -> Path:
    """A fresh folder with a config that trains M0 alone, in few steps, and measures it as a meta-judge."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    write_jsonl(tmp_path / "sft.jsonl", short_examples()[:12])
    text = (ROOT / "configs" / "tiny.toml").read_text()
    text = "iteration = []\n" + text[: text.index("[sft]")] + SMALL_SFT + text[text.index("[respond]") :]
    (tmp_path / "tiny.toml").write_text(text[: text.index("[[iteration]]")])
    return tmp_path


def leftovers(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.name.endswith(".tmp") or path.name == "lock"]


def test_two_first_runs_at_once_make_what_one_makes(place):
    """Both need models/tiny and the same SFT: one makes them, the other waits."""
    runs = [fork(place, "iterate", "--config", "tiny.toml", "--run", name) for name in ("a", "b")]
    assert [wait(run) for run in runs] == [0, 0], (place / "err.txt").read_text()
    assert leftovers(place) == [] and len(list((place / "models" / "sft").glob("*/checkpoint"))) == 1
    assert (place / "out.txt").read_text().count("dpo.sft -> ") == 1
    assert "waiting for process" in (place / "err.txt").read_text()


def test_two_first_runs_merge_one_sft_delta(place):
    text = (place / "tiny.toml").read_text().replace("[sft]", '[sft]\nsft_delta = "delta.safetensors"')
    (place / "tiny.toml").write_text(text)
    code, _, err = iterate(place, "--make-sft-delta")
    assert code == 0, err
    runs = [fork(place, "iterate", "--config", "tiny.toml", "--run", name) for name in ("a", "b")]
    assert [wait(run) for run in runs] == [0, 0], (place / "err.txt").read_text()
    assert leftovers(place) == [] and len(list((place / "models" / "sft").glob("*/checkpoint"))) == 2


MAKE = """
import sys
from pathlib import Path
from iterate import main
from prepare.seed_model import prepare
from stages.settings import Model
print("ready", flush=True)
sys.stdin.readline()
prepare(Model("models/tiny", "tiny"))
"""


def test_several_processes_make_one_seed(place):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    makers = [subprocess.Popen([sys.executable, "-c", MAKE], cwd=place, env=environment, **pipes) for _ in range(3)]
    assert [maker.stdout.readline() for maker in makers] == ["ready\n"] * 3
    for maker in makers:
        maker.stdin.write("\n")
        maker.stdin.flush()
    for maker in makers:
        _, err = maker.communicate(timeout=120)
        assert maker.returncode == 0, err
    assert [path.name for path in (place / "models").iterdir()] == ["tiny"]


def test_a_seed_that_a_kill_left_half_made_is_made_anew(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "models" / ".tiny.tmp").mkdir(parents=True)
    (place / "models" / ".tiny.tmp" / "stray").touch()
    made = digest(prepare(Model("models/tiny", "tiny")))
    assert leftovers(place) == [] and not (place / "models" / "tiny" / "stray").exists()
    assert digest(prepare(Model("models/other", "tiny"))) == made


WRITE = """
import os, sys
from stages.files import write_atomic
os.fsync = lambda number: open("writing", "w").close() or sys.stdin.readline()
write_atomic("run/iter1/file", "text")
"""


def test_what_a_kill_within_a_write_leaves_is_swept_by_the_next_run(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITE], cwd=tmp_path, env=environment, stdin=subprocess.PIPE)
    wait_for((tmp_path / "writing").exists)
    writer.kill()
    writer.communicate()
    assert [path.name[:6] for path in (tmp_path / "run" / "iter1").iterdir()] == [".file."]
    (tmp_path / "run" / "iter1" / ".state-0001.tmp").mkdir()
    (tmp_path / "run" / "iter1" / ".state-0001.tmp" / ".metadata.tmp").touch()
    with run_lock(tmp_path / "run"):
        assert list((tmp_path / "run" / "iter1").iterdir()) == []
    assert leftovers(tmp_path) == []


def test_who_waits_for_a_lock_gets_it_and_ctrl_c_ends_the_wait(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom stages.command import command\nfrom stages.lock import run_lock\n"
    )
    code += "def main():\n    with run_lock(Path('.'), wait=True):\n        open('inside', 'w').close()\ncommand(main)"
    with run_lock(tmp_path):
        waiting = [start(tmp_path, "-c", code) for _ in range(2)]
        for process in waiting:
            assert process.stderr.readline().startswith(f"lock: waiting for process {os.getpid()} on ")
        waiting[0].send_signal(signal.SIGINT)
        assert waiting[0].wait(60) == 130 and not (tmp_path / "inside").exists()
    assert waiting[1].wait(60) == 0 and (tmp_path / "inside").exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize("target", ["nowhere", "nowhere/deeper", "lock", "."])
def test_a_lock_that_is_a_link_is_an_error(tmp_path, target):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(target)
    began = time.monotonic()
    with (
        pytest.raises(UserError, match="run/lock: a link, which locks nothing here; remove it"),
        run_lock(tmp_path / "run"),
    ):
        pytest.fail("took a link for a lock")
    assert time.monotonic() - began < 5 and not (tmp_path / "run" / "nowhere").exists()


@pytest.mark.parametrize("name", ["../../x", "..", ".", "a/b", "/tmp/x", "x/", ""])
@pytest.mark.parametrize("where", ["--run", "config"])
def test_a_run_stays_below_runs(place, monkeypatch, name, where):
    if where == "config":
        text = (place / "tiny.toml").read_text()
        (place / "tiny.toml").write_text(text.replace('name = "tiny"', f'name = "{name}"'))
    elif not name:
        pytest.skip("--run without a name is the config's")
    before = sorted(place.parent.rglob("*"))
    monkeypatch.chdir(place)
    words = ["--run", name] if where == "--run" else []
    monkeypatch.setattr(sys, "argv", ["iterate.py", "--config", "tiny.toml", *words])
    with pytest.raises(UserError, match=f"^'{re.escape(name)}': no name of a folder below runs/"):
        main()
    assert sorted(place.parent.rglob("*")) == before


def test_names_that_no_file_has_are_one_line(place, monkeypatch, capsys):
    """A NUL in a config's name or in what it extends, and a word that is not UTF-8, before anything is computed."""
    monkeypatch.chdir(place)
    text = (place / "tiny.toml").read_text()
    (place / "nul.toml").write_text(text.replace('name = "tiny"', 'name = "a\\u0000b"'))
    (place / "extends.toml").write_text('extends = "a\\u0000b"\n')
    for words in (["nul.toml"], ["extends.toml"], ["a\0b.toml"], ["tiny.toml", "--run", "x\udcff"], ["x\udcff.toml"]):
        monkeypatch.setattr(sys, "argv", ["iterate.py", "--config", *words])
        with pytest.raises(SystemExit) as ended:
            command(main)
        err = capsys.readouterr().err
        assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, words
