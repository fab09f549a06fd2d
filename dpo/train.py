"""Training on preference pairs: `torchrun -m dpo.train`, or plain `python -m dpo.train` for one rank.

Reads a policy's Hugging Face directory, JSON-lines files of pairs and the reference's directory. Writes the trained
Hugging Face directory with its manifest, and beside it the folder train/: metrics.jsonl (a line a step, and a line for
each look at the held-out examples), the reference's log-probabilities, the state of a stopped run. The same command
continues a run that was stopped. SFT (`dpo/sft.py`) is the same loop with another loss.
"""

from pathlib import Path
from typing import Any

import torch

from dpo.checkpoint import Progress, finish, latest_state, load_state
from dpo.data import Objective, read_examples
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
from sampling.worker import environment
from stages.files import UserError
from stages.settings import Settings, Training, as_dict
from stages.stage import Job, Stage


def training_settings(settings: Settings, section: Training, *names: str) -> dict[str, Any]:
    """What a training's output depends on: the section's fields that SFT and DPO share, and its own `names`."""
    values, trainer = as_dict(section), settings.trainer
    return {name: values[name] for name in (*as_dict(Training()), *names)} | {
        "tokens_per_microbatch": trainer.tokens_per_microbatch,
        "share_prefixes": trainer.share_prefixes,
        "compile": trainer.compile,
        "dtype": settings.model.dtype,
        "attention": settings.model.attention,
        "seed": settings.seed,
    }


def fixed_epoch(stage: str, settings: Settings, iteration: int) -> int | None:
    """The epoch to export, counted from 1; None: the best on the held-out pairs. SFT exports its last."""
    if stage == "sft":
        return settings.sft.epochs
    epoch, last = settings.iteration[iteration - 1].epoch, settings.dpo.epochs
    if epoch is not None and not 1 <= epoch <= last:
        where = f"iteration[{iteration - 1}].epoch"
        raise UserError(f"{where} is {epoch}, but dpo.epochs is {last}; choose 1 to {last}")
    return epoch


def run_training(job: Job) -> None:
    """Train on preference pairs by DPO; the same command continues a stopped run."""
    with distributed(job.settings.engine.threads, job.settings.trainer.timeout_minutes) as world:
        train(job, world, job.out.with_name("train"))


def train(job: Job, world: World, work: Path) -> None:
    """Set up, run, publish. Nothing is done when the job's output is complete already."""
    settings, model_dir, data = job.settings, job.path("model"), job.paths("data")
    objective: Objective = "dpo" if job.has("reference") else "sft"
    if world.agree(lambda: job.complete):
        return
    if settings.trainer.tensorboard:
        summary_writer()  # on every rank, so that all of them stop if it is not there
    config, dtype = LlamaConfig.load(model_dir), training_dtype(settings.model.dtype, world.device)
    read = read_examples(data, objective, config.vocab_size)
    examples, dropped = keep_usable(read, settings.trainer, config.max_position_embeddings)
    if not examples:
        raise UserError(f"{', '.join(map(str, data))}: no usable example ({dropped or 'empty'}); add data")

    model = sharded_model(config, world, dtype, settings.trainer)
    reference_e2 = None
    if objective == "dpo":
        reference_e2 = reference_logprob(
            world,
            model,
            examples,
            job.path("reference"),
            job.digests["reference"],
            work / "reference",
            settings.trainer,
            dtype,
            settings.model.attention,
        )
    optimizer = make_optimizer(model, settings.sft if objective == "sft" else settings.dpo)
    progress = start(world, model, optimizer, model_dir, work, job.key)
    log = MetricsLog(work, progress.metrics_bytes, world.first, settings.trainer.tensorboard, progress.step)
    trainer = Trainer(
        stage=objective,
        settings=settings,
        world=world,
        model=model,
        optimizer=optimizer,
        examples=examples,
        reference_e2=reference_e2,
        progress=progress,
        log=log,
        work=work,
        source=model_dir,
        export_epoch=fixed_epoch(objective, settings, job.iteration),
        peak_flops=peak_flops(world.device, dtype),
    )
    with trainer.interruption.watched():  # to the end: a stage that is complete must be clean, too
        trainer.run()
        if world.first:
            exported = work / f"epoch-{progress.exported['epoch']}"
            finish(exported, job, **facts(trainer, dropped))
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


def _settings(settings: Settings, iteration: int) -> Any:
    values = training_settings(settings, settings.dpo, "beta", "nll_weight")
    return values | {"export": settings.iteration[iteration - 1].epoch}


DPO = Stage(
    "dpo",
    "dpo.train",
    run_training,
    settings=_settings,
    per_iteration=True,
    inputs=("model", "reference", "data"),
    lists=("data",),
    ranks="group",
)

if __name__ == "__main__":
    end_process(DPO.main)
