"""Ends that nobody planned: a killed iterate.py, output that nobody reads or that can't be encoded, Ctrl-C during an
import, spaces in every name."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, start, wait_for
from test_launch import in_fork

from stages.command import UserError
from stages.files import read_manifest
from stages.launch import Launcher
from stages.lock import run_lock

WRITER = """
import os, signal, time
def save(*_):
    end.append(time.monotonic() + 1)
end = []
signal.signal(signal.SIGTERM, {handler})
while not end or time.monotonic() < end[0]:
    with open("metrics", "a") as file:
        print(os.getpid(), file=file)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "save", "signal.SIG_IGN"])
def test_no_stage_of_a_killed_run_writes_beside_the_next(tmp_path, monkeypatch, ranks, handler):
    """A stage ends, or saves its state and ends, or hangs: as long as it lives it has the lock."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "writer.py").write_text(WRITER.format(handler=handler))

    def run() -> None:
        with run_lock(tmp_path / "run"):
            Launcher(ranks, tmp_path / "run" / "logs").run("writer", [], "writer")

    metrics, process = tmp_path / "metrics", in_fork(run, tmp_path, "out")
    wait_for(lambda: metrics.exists() and len(set(metrics.read_text().split())) == ranks)
    process.kill()
    process.join()
    if handler == "signal.SIG_IGN":
        monkeypatch.setattr("stages.lock.ENDING", 0.5)
        with pytest.raises(UserError, match=r"in use by process .* or its stages"), run_lock(tmp_path / "run"):
            pytest.fail("took the lock of a living stage")
        for stage in set(metrics.read_text().split()):
            os.kill(int(stage), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with run_lock(tmp_path / "run"):
                size = metrics.stat().st_size
                time.sleep(0.5)
                assert metrics.stat().st_size == size
                return
        except UserError:
            time.sleep(0.01)
    pytest.fail("a stage outlives its run")


SPEAKER = """
import os, sys, time
from stages.command import UserError, command
from stages.progress import progress
def main():
    print("─" * 100_000, flush=True)
    print("warning: ─", file=sys.stderr)
    with progress(2, "wörk", "step", first=True) as bar:
        for _ in range(2):
            bar.update()
            bar.refresh()
    os.system("echo from a child; echo from a child >&2")
    print("the last ─")
    open("done", "w").close()
    {end}
command(main)
"""
READERS = ["", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true", "> /dev/full 2>&1"]


def shell(place: Path, line: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    words = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, timeout=300, check=False)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("reader", READERS)
def test_work_is_done_whoever_reads_of_it(tmp_path, reader, encoding):
    (tmp_path / "speaker.py").write_text(SPEAKER.format(end=""))
    done = shell(tmp_path, f"{sys.executable} -m speaker {reader}", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and (tmp_path / "done").exists() and b"Traceback" not in done.stderr
    if not reader:
        last = "the last \\u2500" if encoding == "ascii" else "the last ─"
        assert last in done.stdout.decode() and b"from a child" in done.stdout and b"2/2" in done.stderr


@pytest.mark.parametrize("reader", [">&-", "2>&-", "2>&1 | true"])
def test_an_error_has_its_code_whoever_reads_of_it(tmp_path, reader):
    (tmp_path / "speaker.py").write_text(SPEAKER.format(end="raise UserError('wrong')"))
    assert shell(tmp_path, f"{sys.executable} -m speaker {reader}").returncode == 2


SLOW = "import sys, time\nopen('importing', 'w').close()\ntime.sleep(60)\n"


def test_ctrl_c_during_an_import_is_one_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    process = start(tmp_path, "-m", "stages.stage", "slow", "--config", "c")
    wait_for((tmp_path / "importing").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "interrupted: run the same command again to continue\n"


def test_ctrl_c_while_iterate_py_imports_is_one_line(tmp_path):
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / "__init__.py").write_text(SLOW)
    code = f"import runpy; runpy.run_path({str(ROOT / 'iterate.py')!r}, run_name='__main__')"
    process = start(tmp_path, "-c", code)
    wait_for((tmp_path / "importing").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "interrupted: run the same command again to continue\n"


def test_ctrl_c_during_a_stage_s_import_is_two_lines_of_a_run(tmp_path, monkeypatch):
    """One of the stage, one of the run, and no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    process = in_fork(lambda: Launcher(1, tmp_path / "logs").run("slow", [], "slow"), tmp_path, "out")
    wait_for((tmp_path / "importing").exists)
    stage = int(subprocess.check_output(["ps", "--ppid", str(process.pid), "-o", "pid="], text=True))
    for pid in (stage, process.pid):
        os.kill(pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert (tmp_path / "out").read_text() == "interrupted: run the same command again to continue\n" * 2


@pytest.mark.parametrize("target", ["iterate", "sft", "plan", "doctor", "rehearse", "report"])
def test_make_takes_names_with_spaces(target):
    words = ["make", "--dry-run", "-o", ".venv/demo", "-o", ".venv/rehearse", target, "CONFIG=my config.toml"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "my config.toml" in shlex.split(shown)
    if target in ("iterate", "sft", "report"):
        shown = subprocess.run([*words, "RUN=my run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {"my run", "runs/my run"} & {*shlex.split(shown)}


@pytest.mark.parametrize("reader", [">&- 2>&-", "2>&1 | true"])
def test_a_run_writes_its_report_in_a_place_with_spaces_unheard(tiny_run, tmp_path, reader):
    """All names have spaces. The first iteration's judgments are missing: a stage works unheard, too."""
    place = Path(shutil.copytree(tiny_run, tmp_path / "my place", symlinks=True))
    (place / "tiny.toml").rename(place / "my config.toml")
    folder = (place / "runs" / "tiny").rename(place / "runs" / "my run")
    (tmp_path / "my code").symlink_to(ROOT)
    shutil.rmtree(folder / "iter1" / "pairs")
    expected = read_manifest(tiny_run / "runs" / "tiny" / "iter1" / "pairs")
    (folder / "report.html").unlink()
    command = shlex.join([sys.executable, str(tmp_path / "my code" / "iterate.py"), "--config", "my config.toml"])
    done = shell(place, f"{command} --run 'my run' {reader}", PYTHONPATH=str(tmp_path / "my code"))
    assert done.returncode == 0 and "<html" in (folder / "report.html").read_text()
    assert read_manifest(folder / "iter1" / "pairs")["digest"] == expected["digest"]
