"""Training on preference pairs: `torchrun -m dpo.train`, or plain `python -m dpo.train` for one rank.

Reads a policy's Hugging Face directory, JSON-lines files of pairs and the reference's directory. Writes the trained
Hugging Face directory with its manifest, and beside it the folder train/: metrics.jsonl (a line a step, and a line for
each look at the held-out examples), the reference's log-probabilities, the state of a stopped run. The same command
continues a run that was stopped. SFT (`dpo/sft.py`) is the same loop with another loss.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch.optim import AdamW

from dpo.checkpoint import Progress, finish, latest_state, load_state
from dpo.data import Objective, read_examples
from dpo.metrics import peak_flops, summary_writer
from dpo.packing import keep_usable
from dpo.parallel import World, distributed, end_process, load_sharded, sharded_model
from dpo.reference import reference_logprob
from dpo.trainer import Trainer, make_optimizer
from model.config import LlamaConfig
from model.dtype import training_dtype
from model.llama import Llama
from sampling.worker import environment
from stages.files import UserError
from stages.settings import Settings, Training
from stages.stage import Job, Stage


def training_settings(settings: Settings, section: Training, *names: str) -> dict[str, Any]:
    """What a training's output depends on: the section's fields that SFT and DPO share, and its own `names`."""
    names = (*(field.name for field in fields(Training)), *names)
    options = ("tokens_per_microbatch", "share_prefixes", "compile")
    return {
        **{name: getattr(section, name) for name in names},
        **{name: getattr(settings.trainer, name) for name in options},
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

    model, reference_e2 = sharded_model(config, world, dtype, settings.trainer), None
    if objective == "dpo":
        folder, digest, attention = job.path("reference"), job.digests["reference"], settings.model.attention
        cache, options = work / "reference", settings.trainer
        reference_e2 = reference_logprob(world, model, examples, folder, digest, cache, options, dtype, attention)
    optimizer = make_optimizer(model, settings.sft if objective == "sft" else settings.dpo)
    at = start(world, model, optimizer, model_dir, work, job.key)
    epoch, peak = fixed_epoch(objective, settings, job.iteration), peak_flops(world.device, dtype)
    trainer = Trainer(
        objective, settings, world, model, optimizer, examples, reference_e2, at, work, model_dir, epoch, peak
    )
    with trainer.interruption.watched():  # to the end: a stage that is complete must be clean, too
        trainer.run()
        if world.first:
            sizes = {"train": len(trainer.train_set), "held_out": len(trainer.held_out_set)}
            facts = {
                "counts": {"examples": len(examples), **sizes, **dropped},
                "first_loss": at.first_loss,
                **at.exported,
                "steps": at.step,
                "seconds": round(at.seconds, 1),
                "dtype": str(dtype).removeprefix("torch."),
                "ranks": world.size,
                "threads": settings.engine.threads,
                "environment": environment(),
            }
            finish(work / f"epoch-{at.exported['epoch']}", job, **facts)
        trainer.clean()


def start(world: World, model: Llama, optimizer: AdamW, model_dir: Path, work: Path, key: str) -> Progress:
    """Fill the model: from the last state of the same work, else from `model_dir`."""
    state = world.agree(lambda: latest_state(work, key))
    if state is None:
        load_sharded(model, model_dir)
        return Progress(key)
    progress = load_state(state, model, optimizer)
    world.say(f"continuing from step {progress.step} ({state})")
    return progress


DPO = Stage(
    "dpo",
    "dpo.train",
    run_training,
    settings=lambda settings, iteration: (
        training_settings(settings, settings.dpo, "beta", "nll_weight")
        | {"export": settings.iteration[iteration - 1].epoch}
    ),
    per_iteration=True,
    inputs=("model", "reference", "data"),
    lists=("data",),
    ranks="group",
)

if __name__ == "__main__":
    end_process(DPO.main)
