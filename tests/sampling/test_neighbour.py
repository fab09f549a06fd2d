"""The speed of a stage beside a program that keeps a core busy."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from model.config import LlamaConfig
from model.llama import Llama
from model.weights import random_weights, save_pretrained
from prepare.seed_model import prepare
from stages.files import read_jsonl, read_manifest, write_jsonl
from stages.launch import Launcher
from stages.settings import Model

ROOT = Path(__file__).parents[2]


def wide_model(tiny: Path, folder: Path) -> None:
    """Random weights in matrices as large as the default model's, so that threads would wait for each other."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    sizes |= {"head_dim": 64, "num_hidden_layers": 6}
    model = Llama(config := replace(LlamaConfig.load(tiny), **sizes))
    random_weights(model, seed=0)
    save_pretrained(model.named_parameters(), config, tiny, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no neighbour")
def test_a_busy_neighbour_costs_a_stage_only_the_core_that_it_takes(tmp_path, monkeypatch):
    """One busy core of two leaves half of the speed. OpenMP's threads, which spin, would leave a quarter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "data").symlink_to(ROOT / "data")
    wide_model(prepare(Model(path="models/tiny", prepare="tiny")), tmp_path / "wide")
    config = (ROOT / "configs" / "tiny.toml").read_text()
    (tmp_path / "wide.toml").write_text(config.replace("threads = 1", "threads = 2"))
    write_jsonl(tmp_path / "prompts.jsonl", islice(read_jsonl(ROOT / "data" / "prompts" / "train.jsonl"), 48))

    def speed(name: str) -> float:
        """Tokens a second."""
        arguments = ["--config", "wide.toml", "--iteration", "1", "--model", "wide", "--prompts", "prompts.jsonl"]
        assert Launcher(1, tmp_path / "logs").run("sampling.respond", [*arguments, "--out", name], name) == 0
        manifest = read_manifest(tmp_path / name)
        return manifest["new_tokens"] / manifest["seconds"]

    quiet = speed("quiet")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            busy = speed("busy")
        finally:
            neighbour.kill()
    assert busy >= 0.35 * quiet, f"{quiet:.0f} tokens/s, beside a busy core {busy:.0f}"
