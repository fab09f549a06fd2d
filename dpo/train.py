"""One loop for SFT and DPO: `torchrun -m dpo.train --stage dpo ...`, or plain `python -m dpo.train` for one rank.

Reads a policy's Hugging Face directory, JSON-lines files of examples and, for DPO, the reference's directory. Writes
`--work`: metrics.jsonl (a line a step, and a line for each look at the held-out examples), the reference's
log-probabilities, the state of a stopped run; and `--out`: the trained Hugging Face directory with its manifest. The
same command continues a run that was stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpo.checkpoint import Progress, finish, latest_state, load_state
from dpo.data import Stage, read_examples
from dpo.flops import peak_flops
from dpo.metrics import MetricsLog, summary_writer
from dpo.optimizer import make_optimizer
from dpo.packing import keep_usable
from dpo.parallel import World, distributed, end_process, load_sharded, sharded_model
from dpo.reference import reference_logprob
from dpo.trainer import Trainer
from model.config import LlamaConfig
from model.dtype import training_dtype
from model.llama import Llama
from sampling.generate import environment
from stages.files import UserError, command, digest, is_complete, stage_key
from stages.settings import Settings, as_dict, load_settings

HYPERPARAMETERS = ("epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_grad_norm", "held_out")


def train_key(
    stage: Stage, settings: Settings, iteration: int, model: Path, reference: Path | None, data: Sequence[Path]
) -> str:
    """The identity of a training stage's work. SFT has no reference, and the iteration says nothing to it."""
    section = as_dict(settings.sft if stage == "sft" else settings.dpo)
    names = (*HYPERPARAMETERS, *(("curriculum",) if stage == "sft" else ("beta", "nll_weight")))
    facts = {name: section[name] for name in names} | {
        "export": fixed_epoch(stage, settings, iteration),
        "tokens_per_microbatch": settings.trainer.tokens_per_microbatch,
        "share_prefixes": settings.trainer.share_prefixes,
        "compile": settings.trainer.compile,
        "dtype": settings.model.dtype,
        "attention": settings.model.attention,
        "seed": settings.seed,
    }
    inputs: dict[str, Path | str] = {f"data{i}": path for i, path in enumerate(data)}
    inputs["model"] = model
    if stage == "dpo" and reference is not None:
        inputs["reference"] = reference
    return stage_key(stage, facts, inputs)


def fixed_epoch(stage: Stage, settings: Settings, iteration: int) -> int | None:
    """The epoch to export, counted from 1; None: the best on the held-out pairs. SFT exports its last."""
    if stage == "sft":
        return settings.sft.epochs
    epoch, last = settings.iteration[iteration - 1].epoch, settings.dpo.epochs
    if epoch is not None and not 1 <= epoch <= last:
        raise UserError(f"iteration[{iteration - 1}].epoch is {epoch}, but dpo.epochs is {last}; choose 1 to {last}")
    return epoch


def train(arguments: argparse.Namespace, settings: Settings, world: World) -> None:
    """The command's work: set up, run, publish. Nothing is done when `--out` is complete already."""
    stage, model_dir, reference, data = arguments.stage, arguments.model, arguments.reference, arguments.data
    key = world.agree(lambda: train_key(stage, settings, arguments.iteration, model_dir, reference, data))
    if world.agree(lambda: is_complete(arguments.out, key)):
        return
    if settings.trainer.tensorboard:
        summary_writer()  # on every rank, so that all of them stop if it is not there
    folders = {"model": model_dir} | ({"reference": reference} if stage == "dpo" else {})
    weights = world.agree(lambda: {name: digest(folder) for name, folder in folders.items()})
    config, dtype = LlamaConfig.load(model_dir), training_dtype(settings.model.dtype, world.device)
    found = read_examples(data, stage, config.vocab_size)
    examples, dropped = keep_usable(found, settings.trainer, config.max_position_embeddings)
    if not examples:
        raise UserError(f"{', '.join(map(str, data))}: no usable example ({dropped or 'empty'}); add data")

    model = sharded_model(config, world, dtype, settings.trainer)
    reference_e2 = None
    if stage == "dpo":
        reference_e2 = reference_logprob(
            world,
            model,
            examples,
            reference,
            weights["reference"],
            arguments.work / "reference",
            settings.trainer,
            dtype,
            settings.model.attention,
        )
    optimizer = make_optimizer(model, settings.sft if stage == "sft" else settings.dpo)
    progress = start(world, model, optimizer, model_dir, arguments.work, key)
    log = MetricsLog(arguments.work, progress.metrics_bytes, world.first, settings.trainer.tensorboard, progress.step)
    trainer = Trainer(
        stage=stage,
        settings=settings,
        world=world,
        model=model,
        optimizer=optimizer,
        examples=examples,
        reference_e2=reference_e2,
        progress=progress,
        log=log,
        work=arguments.work,
        source=model_dir,
        export_epoch=fixed_epoch(stage, settings, arguments.iteration),
        peak_flops=peak_flops(world.device, dtype),
    )
    with trainer.interruption.watched():  # to the end: a stage that is complete must be clean, too
        trainer.run()
        if world.first:
            exported = arguments.work / f"epoch-{progress.exported['epoch']}"
            finish(exported, arguments.out, key, **facts(trainer, dropped), weights=weights)
        trainer.clean()


def facts(trainer: Trainer, dropped: dict[str, int]) -> dict[str, Any]:
    """What the manifest says of a training that is done."""
    settings, world, progress = trainer.settings, trainer.world, trainer.progress
    sets = {"train": len(trainer.train_set), "held_out": len(trainer.held_out_set)}
    return {
        "counts": {"examples": len(trainer.examples), **sets, **dropped},
        "first_loss": progress.first_loss,
        **progress.exported,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "dtype": str(training_dtype(settings.model.dtype, world.device)).removeprefix("torch."),
        "ranks": world.size,
        "threads": settings.engine.threads,
        "environment": environment(),
    }


def start(
    world: World, model: Llama, optimizer: torch.optim.Optimizer, model_dir: Path, work: Path, key: str
) -> Progress:
    """Fill the model: from the last state of the same work, else from `model_dir`."""
    state = world.agree(lambda: latest_state(work, key))
    if state is None:
        load_sharded(model, model_dir)
        progress = Progress(key)
    else:
        progress = load_state(state, model, optimizer)
        world.say(f"continuing from step {progress.step} ({state})")
    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description="Train by SFT or DPO; the same command continues a stopped run.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--stage", required=True, choices=("sft", "dpo"))
    parser.add_argument("--iteration", type=int, default=1, help="which [[iteration]] of the config, from 1")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory that the policy starts from")
    parser.add_argument("--reference", type=Path, help="Hugging Face directory of DPO's reference model")
    parser.add_argument("--data", required=True, type=Path, nargs="+", help="JSON lines of pairs, or of SFT examples")
    parser.add_argument("--work", required=True, type=Path, help="folder for metrics and what a stopped run needs")
    parser.add_argument("--out", required=True, type=Path, help="folder for the trained model")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    if arguments.stage == "dpo" and arguments.reference is None:
        raise UserError("--stage dpo needs --reference, the model that log-probabilities are compared with; add it")
    if arguments.stage == "dpo" and not 1 <= arguments.iteration <= len(settings.iteration):
        raise UserError(
            f"--iteration {arguments.iteration}: the config has {len(settings.iteration)}; choose one of them"
        )
    with distributed(settings.engine.threads, settings.trainer.timeout_minutes) as world:
        train(arguments, settings, world)


if __name__ == "__main__":
    end_process(lambda: command(main))
