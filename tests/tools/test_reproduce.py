"""docs/reproduce.md, walked through: its commands run as they are written, with stand-ins for model, data and counts.

The folder is a copy of the repository in which `configs/llama3-8b-instruct.toml` is the rehearsal's version of itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT
from questions import written

from prepare.scripted import write_stand_in
from stages.files import read_jsonl, write_atomic
from stages.settings import load_settings
from tools.doctor import named_files
from tools.rehearse import Rehearsal, toml

CONFIG = "configs/llama3-8b-instruct.toml"

# Need the internet, or are tests/tools/test_rehearse.py's or another tool's.
NOT_RUN = (".venv/bin/hf", "make setup", "make rehearse", "pip install", "alpaca_eval evaluate")
SLURM = {  # two nodes, which are one machine
    "scontrol": "#!/bin/bash\nprintf '127.0.0.1\\n127.0.0.1\\n'\n",
    "srun": '#!/bin/bash\nshift\nSLURM_NODEID=1 "$@" &\nSLURM_NODEID=0 "$@" && wait $!\n',
}


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "reproduce.md").read_text(), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """A block's commands, each on one line, without comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", block)
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()) if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The copy, with the files that a user fetches where the page has them put."""
    folder = tmp_path_factory.mktemp("walk") / "clone"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    for done in ("base", "demo", "rehearse"):  # so that make installs nothing
        (folder / ".venv" / done).touch()
    rehearsal = Rehearsal(folder / CONFIG, folder / "rehearsal")
    derived = rehearsal.changes() | {"name": "llama3-8b-instruct", "model": {}}
    derived["prompts"]["seeds"] = "data/seed-prompts.jsonl"
    (folder / CONFIG).rename(folder / "configs" / "real.toml")
    write_atomic(folder / CONFIG, toml({"extends": "real.toml"} | derived))
    shutil.copytree(folder / "rehearsal" / "data", folder / "data", dirs_exist_ok=True)
    (folder / "data" / "seed-prompts.jsonl").unlink()
    write_stand_in(folder / "models" / "Meta-Llama-3-8B-Instruct-original")
    prompts = [row["prompt"] for row in read_jsonl(ROOT / "data" / "prompts" / "evaluation.jsonl")][:6]
    known = {"dataset": "helpful_base", "output": "", "generator": "text_davinci_003"}
    written(folder / "data" / "alpaca_eval.json", [known | {"instruction": text} for text in prompts])
    known = {"category": "arena-hard-v0.1", "cluster": "c"}
    rows = [known | {"question_id": f"q{i}", "turns": [{"content": text}]} for i, text in enumerate(prompts)]
    written(folder / "data" / "arena-hard" / "question.jsonl", rows)
    rows = [{"question_id": i, "category": "x", "turns": [text, "Shorter."]} for i, text in enumerate(prompts)]
    written(folder / "data" / "mt-bench" / "question.jsonl", rows)
    for name, script in SLURM.items():
        write_atomic(folder / "bin" / name, script)
        (folder / "bin" / name).chmod(0o755)
    return folder


def run(clone: Path, *lines: str, seconds: float = 1500) -> None:
    """Commands that run at the same time."""
    known = {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "127.0.0.1"}
    shells = [subprocess.Popen(["bash", "-ec", line], cwd=clone, env=os.environ | known | slurm) for line in lines]
    for line, shell in zip(lines, shells, strict=True):
        assert shell.wait(timeout=seconds) == 0, line


@pytest.mark.parametrize("page", ["reproduce.md", "your-model.md"])
def test_the_page_names_what_there_is(page):
    """Quick: files and make's targets that the page names exist."""
    text = (ROOT / "docs" / page).read_text()
    for link in re.findall(r"\]\(((?!http|#)[^)#]+)", text):
        assert (ROOT / "docs" / link).exists(), link
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)
    for module in re.findall(r" -m ([a-z_.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_config_of_your_model_is_one(tmp_path):
    """The blocks of docs/your-model.md, one after another."""
    parts = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs" / "your-model.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "my.toml").write_text("".join(parts).replace('"configs/', f'"{ROOT}/configs/'))
    settings = load_settings(tmp_path / "my.toml")
    assert len(parts) == 3 and not settings.sft.enabled and settings.trainer.activation_checkpointing
    read = [name for name, _ in named_files(settings)]
    assert read == ["respond.prompts", "evaluation.instructions", "evaluation.prompts"]


@pytest.mark.slow
def test_every_command_runs_as_it_is_written(clone):
    """In the page's order. Two nodes are started together, and node0 is this machine."""
    together: list[str] = []
    for block in blocks():
        if "#SBATCH" in block:
            run(clone, block)
            continue
        for line in commands(block):
            if any(part in line for part in NOT_RUN):
                continue
            here = line.replace("node0:", "127.0.0.1:")
            if "NODES=2" in here or "--nnodes 2" in here:
                together += [here] if "NODE=" in here else [here, here]
                if len(together) < 2:
                    continue
                run(clone, *together)
                together = []
            else:
                run(clone, here.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    summary = json.loads((clone / "runs" / "llama3" / "summary.json").read_text())
    assert [row["pairs"]["actor"] > 0 for row in summary["iterations"]] == [True] * 4
    answers = clone / "runs" / "llama3" / "answers" / "M4"
    outputs = json.loads((answers / "alpaca-eval" / "model_outputs.json").read_text())
    assert len(outputs) == 6 and all(row["generator"] == "M4" for row in outputs)
