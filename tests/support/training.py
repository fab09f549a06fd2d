"""Training in tests: a two-layer model, made pairs, and runs of dpo/train.py in this process or on two ranks."""

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from processes import ROOT, free_port
from torch import Tensor

from dpo.parallel import distributed
from dpo.train import DPO, train
from dpo.trainer import Trainer
from model.config import LlamaConfig
from model.llama import Llama
from model.weights import load_model, random_weights, save_pretrained
from stages import settings as sections
from stages.files import read_jsonl, write_json, write_jsonl
from stages.settings import Dpo, EngineOptions, Iteration, Model, Respond, Settings, Sft
from stages.stage import Job, Stage

VOCABULARY = 97
SETTINGS = Settings(
    name="test",
    model=Model(path="", dtype="float32"),
    respond=Respond(prompts_per_iteration=1),
    iteration=[Iteration()],
    engine=EngineOptions(threads=1),
    sft=Sft(epochs=2, batch_size=4, learning_rate=1e-3, held_out=0.0),
    dpo=Dpo(epochs=2, batch_size=4, learning_rate=1e-3, held_out=0.0),
    trainer=sections.TrainerOptions(tokens_per_microbatch=128),
)


def make_model(folder: Path, seed: int = 0, tied: bool = True, **family: Any) -> Path:
    """A Hugging Face directory: two layers, hidden size 32, random fp32 weights that bf16 holds exactly. `family`: keys
    of config.json; then norms and biases are random, too."""
    table = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48}
    table |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    table |= {"rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": tied}
    write_json(folder / "config.json", table | family)
    model = Llama(LlamaConfig.load(folder))
    random_weights(model, seed, std=0.2)
    for parameter in (p for p in model.parameters() if family and p.dim() == 1):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
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


class Arguments(NamedTuple):
    """A training's stage, its inputs, and the folder for its output `out` and its state `train`."""

    stage: Stage
    inputs: dict[str, Any]
    place: Path


def arguments(folder: Path, stage: Stage = DPO, place: Path | str = "run", **inputs: Any) -> Arguments:
    """Arguments for the model and the pairs in `folder`, or other inputs, with the output in `folder`/`place`."""
    values = {"model": folder / "model", "data": [folder / "pairs.jsonl"]}
    values |= {"reference": folder / "model"} if stage is DPO else {}
    return Arguments(stage, values | inputs, folder / place)


def make_job(settings: Settings, given: Arguments) -> Job:
    return given.stage.job(settings, given.place / "out", 1, **given.inputs)


def run(settings: Settings, given: Arguments) -> list[dict[str, Any]]:
    """Train in this process; returns the lines of metrics.jsonl."""
    with distributed(1) as world:
        train(make_job(settings, given), world, given.place / "train")
    return list(read_jsonl(given.place / "train" / "metrics.jsonl"))


def run_ranks(*jobs: tuple[Settings, Arguments], ranks: int = 2) -> list[list[dict[str, Any]]]:
    """Train on ranks, one job after the other; returns the lines of each metrics.jsonl. Rank 0 is this process."""
    work = [(settings, given.inputs, given.place) for settings, given in jobs]
    group, imports = group_of(ranks), "import pickle, training\nfrom stages.shards import end_process\n"
    code = f"{imports}work = pickle.loads({pickle.dumps(work)!r})\nend_process(lambda: training.train_all(*work))"
    others = [start_rank(group, code, str(rank)) for rank in range(1, ranks)]
    with mock.patch.dict(os.environ, group | {"RANK": "0", "LOCAL_RANK": "0"}):
        train_all(*work)
    for other in others:
        _, err = other.communicate(timeout=60)
        assert other.returncode == 0, err
    return [list(read_jsonl(given.place / "train" / "metrics.jsonl")) for _, given in jobs]


def train_all(*jobs: tuple[Settings, dict[str, Any], Path]) -> None:
    """A rank's part of `run_ranks`."""
    with distributed(1) as world:
        for settings, inputs, place in jobs:
            train(make_job(settings, Arguments(DPO, inputs, place)), world, place / "train")


def group_of(ranks: int = 2) -> dict[str, str]:
    """The environment of a process group on this machine."""
    return {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}


def start_rank(group: dict[str, str], code: str, rank: str = "1") -> subprocess.Popen:
    """Start Python on `code` as a rank of the group."""
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", "OMP_NUM_THREADS": "1"}
    environment = os.environ | group | paths | {"RANK": rank, "LOCAL_RANK": rank}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def losses(metrics: list[dict[str, Any]], split: str = "train") -> torch.Tensor:
    return torch.tensor([row["loss"] for row in metrics if row["split"] == split], dtype=torch.float64)


def parameters(folder: Path) -> list[Tensor]:
    """The weights of a Hugging Face directory, fp32."""
    return list(load_model(folder, torch.float32).parameters())


def before_step(monkeypatch, step: int, act: Callable[[], Any]) -> None:
    """Do something when a run comes to a step."""
    real = Trainer.step

    def acting(self, batch):
        if self.progress.step == step:
            act()
        return real(self, batch)

    monkeypatch.setattr(Trainer, "step", acting)


def run_killed(monkeypatch, step: int, settings: Settings, given: Arguments) -> None:
    """Begin a run that ends without warning before it takes a step."""
    before_step(monkeypatch, step, killed)
    with pytest.raises(MemoryError):
        run(settings, given)
    torch.distributed.destroy_process_group()
    monkeypatch.undo()


def killed(*_, **__) -> None:
    raise MemoryError


def run_stopped(monkeypatch, number: int, step: int, settings: Settings, given: Arguments, times: int = 1) -> None:
    """Begin a run that gets a signal, `times` times, while it takes a step, and ends after it."""
    before_step(monkeypatch, step, lambda: [os.kill(os.getpid(), number) for _ in range(times)])
    with pytest.raises(SystemExit) as stopped:
        run(settings, given)
    assert stopped.value.code == 128 + number
    monkeypatch.undo()
