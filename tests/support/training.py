"""Training in tests: a two-layer model, made pairs, and runs of dpo/train.py in this process or under torchrun."""

import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dpo.parallel import distributed, end_process
from dpo.train import DPO, train
from dpo.trainer import Trainer
from model.config import LlamaConfig
from model.llama import Llama
from model.weights import load_model, random_weights, save_pretrained
from stages import settings as sections
from stages.files import read_jsonl, write_json, write_jsonl
from stages.settings import Dpo, EngineOptions, Iteration, Model, Respond, Settings, Sft
from stages.stage import Job, Stage

ROOT = Path(__file__).parents[2]
VOCABULARY = 97
SETTINGS = Settings(
    name="test",
    model=Model(path="", dtype="float32"),
    respond=Respond(prompts="", prompts_per_iteration=1),
    iteration=[Iteration()],
    engine=EngineOptions(threads=1),
    sft=Sft(epochs=2, batch_size=4, learning_rate=1e-3, held_out=0.0),
    dpo=Dpo(epochs=2, batch_size=4, learning_rate=1e-3, held_out=0.0),
    trainer=sections.TrainerOptions(tokens_per_microbatch=128),
)


def make_model(folder: Path, seed: int = 0, tied: bool = True) -> Path:
    """A Hugging Face directory: two layers, hidden size 32, random fp32 weights that bf16 holds exactly."""
    table = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    }
    write_json(folder / "config.json", table)
    model = Llama(LlamaConfig.load(folder))
    random_weights(model, seed, std=0.2)
    weights = ((name, p.detach().bfloat16().float()) for name, p in model.named_parameters())
    save_pretrained(weights, model.config, folder, folder)
    return folder


def make_pairs(path: Path, count: int = 12, seed: int = 0, prompt: tuple[int, int] = (1, 9)) -> Path:
    """Pairs of random tokens; `prompt`: the least and the most tokens of a prompt."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(draw.randint(low, high))]

    keys = {"prompt_ids": prompt, "chosen_ids": (1, 14), "rejected_ids": (1, 14)}
    write_jsonl(path, ({"id": f"p{i}"} | {key: ids(*size) for key, size in keys.items()} for i in range(count)))
    return path


def make_inputs(folder: Path) -> Path:
    """A model and 12 pairs in `folder`."""
    make_model(folder / "model")
    make_pairs(folder / "pairs.jsonl")
    return folder


def changed(settings: Settings = SETTINGS, **sections: dict[str, Any]) -> Settings:
    """Settings with some keys of some sections changed: changed(dpo={"epochs": 3})."""
    return replace(settings, **{name: replace(getattr(settings, name), **keys) for name, keys in sections.items()})


@dataclass(frozen=True)
class Arguments:
    """A training's stage, its inputs, and the folder for its output `out` and its state `train`."""

    stage: Stage
    inputs: dict[str, Any]
    place: Path

    @property
    def work(self) -> Path:
        return self.place / "train"


def arguments(folder: Path, stage: Stage = DPO, place: Path | str = "run", **inputs: Any) -> Arguments:
    """Arguments for the model and the pairs in `folder`, or for other inputs, with the output in `folder`/`place`."""
    values = {"model": folder / "model", "data": [folder / "pairs.jsonl"]}
    if stage is DPO:
        values["reference"] = folder / "model"
    return Arguments(stage, values | inputs, folder / place)


def make_job(settings: Settings, given: Arguments) -> Job:
    return given.stage.job(settings, given.place / "out", 1, **given.inputs)


def run(settings: Settings, given: Arguments) -> list[dict[str, Any]]:
    """Train in this process; returns the lines of metrics.jsonl."""
    with distributed(1) as world:
        train(make_job(settings, given), world, given.work)
    return list(read_jsonl(given.work / "metrics.jsonl"))


def run_ranks(*jobs: tuple[Settings, Arguments]) -> list[list[dict[str, Any]]]:
    """Train on two ranks, one job after the other; returns the lines of each metrics.jsonl. Rank 0 is this process."""
    words = []
    for settings, given in jobs:
        write_toml(given.place / "config.toml", settings)
        words.append(DPO.arguments(given.place / "config.toml", make_job(settings, given)))
    group = two_ranks()
    second = start_rank(group, f"import training; training.train_all({words!r})")
    with mock.patch.dict(os.environ, group | {"RANK": "0", "LOCAL_RANK": "0"}), distributed(1) as world:
        for settings, given in jobs:
            train(make_job(settings, given), world, given.work)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    return [list(read_jsonl(given.work / "metrics.jsonl")) for _, given in jobs]


def train_all(jobs: list[list[str]]) -> None:
    """The second rank of `run_ranks`."""

    def work() -> None:
        with distributed(1) as world:
            for words in jobs:
                job = DPO.read_arguments(words)
                train(job, world, job.out.with_name("train"))

    end_process(work)


def two_ranks() -> dict[str, str]:
    """The environment of a process group of two ranks on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


def start_rank(group: dict[str, str], code: str, rank: str = "1") -> subprocess.Popen:
    """Start Python on `code` as a rank of the group."""
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", "OMP_NUM_THREADS": "1"}
    environment = os.environ | group | paths | {"RANK": rank, "LOCAL_RANK": rank}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def write_toml(path: Path, settings: Settings) -> None:
    """Write the sections that training reads."""
    lines = [f"name = {json.dumps(settings.name)}", f"seed = {settings.seed}"]
    for section in ("model", "respond", "engine", "sft", "dpo", "trainer"):
        lines.append(f"[{section}]")
        values = vars(getattr(settings, section)).items()
        lines += [f"{key} = {json.dumps(value)}" for key, value in values]
    for iteration in settings.iteration:
        lines.append("[[iteration]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in vars(iteration).items() if value is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def losses(metrics: list[dict[str, Any]], split: str = "train") -> torch.Tensor:
    return torch.tensor([row["loss"] for row in metrics if row["split"] == split], dtype=torch.float64)


def parameters(folder: Path) -> list[Tensor]:
    """The weights of a Hugging Face directory, fp32."""
    return list(load_model(folder, torch.float32).parameters())


def kill_at(monkeypatch, step: int) -> None:
    """End a run without warning before it takes a step."""
    real = Trainer.step

    def killed(self, batch):
        if self.progress.step == step:
            raise MemoryError
        return real(self, batch)

    monkeypatch.setattr(Trainer, "step", killed)


def stop_at(monkeypatch, number: int, step: int, times: int = 1) -> None:
    """Send the process a signal, `times` times, while it takes a step."""
    real = Trainer.step

    def stopping(self, batch):
        for _ in range(times * (self.progress.step == step)):
            os.kill(os.getpid(), number)
        return real(self, batch)

    monkeypatch.setattr(Trainer, "step", stopping)
