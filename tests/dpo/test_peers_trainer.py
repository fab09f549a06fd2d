"""The trainer against TRL in fp32, on the real weights of the default model: `make test-peers`."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from training import arguments, changed, run

from model.weights import split_parameters
from prepare.seed_model import prepare
from stages.files import read_jsonl, write_jsonl
from stages.settings import Model

pytestmark = pytest.mark.peers

STEPS, RATE = 3, 5e-6


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare(Model(path="models/smollm2-135m-instruct", prepare="smollm2-135m"))


def conversations() -> list[dict[str, Any]]:
    """Six pairs of English prompts and answers, of lengths that differ."""
    texts = [row["prompt"] for row in read_jsonl("data/prompts/evaluation.jsonl")]
    draw = random.Random(5)

    def turn(role: str, count: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.sample(texts, count))}]

    return [
        {"prompt": turn("user", 1 + i % 2), "chosen": turn("assistant", 1 + i % 3), "rejected": turn("assistant", 2)}
        for i in range(6)
    ]


@pytest.fixture(scope="module")
def theirs(folder, tmp_path_factory):
    """TRL: (its pairs as tokens, its log of steps, its weights before and after)."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    options = {"per_device_train_batch_size": 6, "num_train_epochs": STEPS, "learning_rate": RATE, "max_length": 2048}
    options |= {"lr_scheduler_type": "cosine", "logging_steps": 1, "gradient_checkpointing": False, "report_to": []}
    options |= {"use_cpu": True, "bf16": False, "save_strategy": "no"}
    config = trl.DPOConfig(output_dir=str(tmp_path_factory.mktemp("trl")), **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokenizer, pairs = transformers.AutoTokenizer.from_pretrained(folder), datasets.Dataset.from_list(conversations())
    trainer = trl.DPOTrainer(model=model, args=config, train_dataset=pairs, processing_class=tokenizer)
    pairs = [
        {"id": str(i)} | {key: list(row[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")}
        for i, row in enumerate(trainer.train_dataset)
    ]
    trainer.train()
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    return pairs, [row for row in trainer.state.log_history if "grad_norm" in row], before, after


@pytest.mark.parametrize("budget", [4096, 900], ids=["one micro-batch", "several"])
def test_losses_gradient_norms_and_weights_are_trls(folder, theirs, tmp_path, monkeypatch, budget):
    pairs, log, before, after = theirs
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    trained: dict[str, torch.Tensor] = {}

    def kept(world, model, source, target, peft):
        """Keep the parameters that an export gathers, before they are rounded to bf16."""
        parameters = ((name, p.detach().full_tensor().clone()) for name, p in model.named_parameters())
        trained.update(split_parameters(parameters, model.config))
        return lambda _: target.mkdir(parents=True)

    monkeypatch.setattr("dpo.trainer.export", kept)
    settings = changed(
        engine={"threads": torch.get_num_threads()},
        dpo={"epochs": STEPS, "batch_size": 6, "learning_rate": RATE, "warmup_ratio": 0.0},
        trainer={"tokens_per_microbatch": budget},
    )
    metrics = run(settings, arguments(tmp_path, model=folder, reference=folder))
    assert len(metrics) == len(log) == STEPS
    for ours, row in zip(metrics, log, strict=True):
        assert ours["lr"] == pytest.approx(row["learning_rate"])
        assert ours["loss"] == pytest.approx(row["loss"], abs=1e-4), row  # TRL rounds what it logs
        assert ours["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
        names = {"reward_chosen": "rewards/chosen", "margin": "rewards/margins", "logp_chosen": "logps/chosen"}
        for name, key in names.items():
            assert ours[name] == pytest.approx(row[key], rel=1e-3, abs=1e-4), name
    assert trained.keys() == before.keys()
    for name in before:
        moved, expected = trained[name] - before[name], after[name] - before[name]
        assert (moved - expected).norm() <= 2e-3 * expected.norm(), name
