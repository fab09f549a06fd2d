"""Training on preference pairs: `torchrun -m dpo.train`, or plain `python -m dpo.train` for one rank.

Writes the trained Hugging Face directory, and beside it the folder train/: metrics.jsonl, the reference's
log-probabilities, the state of a stopped run. The same command continues a stopped run.
"""

import hashlib
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from dpo.checkpoint import Progress, finish, load_state, saved_progress
from dpo.data import Objective, read_examples
from dpo.lora import draw_adapters
from dpo.metrics import METRICS, peak_flops, summary_writer
from dpo.packing import keep_usable
from dpo.parallel import World, distributed, load_sharded, sharded_model
from dpo.reference import reference_logprob
from dpo.trainer import Trainer, make_optimizer
from model.dtype import training_dtype
from model.weights import meta_model
from sampling.worker import environment
from stages.command import UserError
from stages.seeds import request_seed
from stages.settings import Settings, Training
from stages.shards import end_process
from stages.stage import Job, Stage


def training_settings(settings: Settings, section: Training, *names: str) -> dict[str, Any]:
    """What a training's output depends on: the section's fields that SFT and DPO share, and its own `names`."""
    read = {name: getattr(section, name) for name in (*(field.name for field in fields(Training)), *names)}
    options = ["tokens_per_microbatch", "share_prefixes", "compile"]
    options += ["lora_rank", "lora_alpha", "lora_targets", "save_adapters"] if settings.trainer.lora_rank else []
    read |= {name: getattr(settings.trainer, name) for name in options}
    return read | {name: getattr(settings.model, name) for name in ("dtype", "attention")} | {"seed": settings.seed}


def fixed_epoch(stage: str, settings: Settings, iteration: int) -> int | None:
    """The epoch to export, counted from 1; None: the best on the held-out pairs. SFT exports its last."""
    return settings.sft.epochs if stage == "sft" else settings.iteration[iteration - 1].epoch


def run_training(job: Job) -> None:
    """Train on preference pairs by DPO; the same command continues a stopped run."""
    with distributed(job.settings.engine.threads, job.settings.trainer.timeout_minutes) as world:
        train(job, world, job.out.with_name("train"))


def train(job: Job, world: World, work: Path) -> None:
    """Set up, run, publish; nothing, if the job's output is complete."""
    settings, model_dir, data = job.settings, job.path("model"), job.paths("data")
    objective: Objective = "dpo" if job.has("reference") else "sft"
    if world.agree(lambda: job.complete):
        return
    if settings.trainer.tensorboard:
        summary_writer()  # on every rank, so that all of them stop if it is not there
    options = settings.trainer
    config, dtype = meta_model(model_dir).config, training_dtype(settings.model.dtype, world.device)
    examples = read_examples(data, objective, config.vocab_size)
    examples, dropped = keep_usable(examples, options, config.max_position_embeddings)
    if not examples:
        raise UserError(f"{', '.join(map(str, data))}: no usable example ({dropped or 'empty'}); add data")

    model, reference_e2 = sharded_model(config, world, dtype, options), None
    draw_adapters(model, partial(request_seed, settings.seed, job.iteration, job.name))
    if objective == "dpo":
        folder, digest = job.path("reference"), job.digests["reference"]
        reference_e2 = reference_logprob(world, model, examples, folder, digest, work / "reference", settings)
    optimizer = make_optimizer(model, settings.sft if objective == "sft" else settings.dpo)
    saved = world.agree(lambda: saved_progress(work, job.key))
    if saved is None or options.lora_rank:  # a state has what is trained
        load_sharded(model, model_dir)
    if saved is not None:
        load_state(work, saved, model, optimizer)
        world.say(f"continuing from step {saved.step} ({work / saved.state})")
    at = saved or Progress(job.key)
    epoch, peak = fixed_epoch(objective, settings, job.iteration), peak_flops(world.device, dtype)
    inputs = (examples, reference_e2, at, work, model_dir, epoch, peak)
    trainer = Trainer(objective, settings, world, model, optimizer, *inputs)
    with trainer.interruption.watched():  # to the end: a stage that is complete must be clean, too
        trainer.run()
        if world.first:
            sizes = {"train": len(trainer.train_set), "held_out": len(trainer.held_out_set)}
            facts: dict[str, Any] = {"counts": {"examples": len(examples), **sizes, **dropped}}
            facts |= {"first_loss": at.first_loss} | at.last | at.exported  # held-out means, if any, replace the last's
            facts |= {"metrics": hashlib.sha256((work / METRICS).read_bytes()).hexdigest()}  # beside the output
            facts |= {"steps": at.step, "seconds": round(at.seconds, 1)}
            facts |= {"dtype": str(dtype).removeprefix("torch."), "ranks": world.size}
            facts |= {"threads": settings.engine.threads, "environment": environment()}
            finish(at.export(work), job, **facts)
        world.remove([*work.glob("*epoch-*"), *work.glob("*state-*")])


def _settings(settings: Settings, iteration: int) -> Any:
    epoch = settings.iteration[iteration - 1].epoch
    return training_settings(settings, settings.dpo, "beta", "nll_weight") | {"export": epoch}


INPUTS = ("model", "reference", "data")
DPO = Stage("dpo", "dpo.train", run_training, _settings, INPUTS, lists=("data",), per_iteration=True, ranks="group")

if __name__ == "__main__":
    end_process(DPO.main)
