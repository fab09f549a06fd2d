"""One loop for SFT and DPO: `torchrun -m dpo.train --stage dpo ...`, or plain `python -m dpo.train` for one rank.

Reads a policy's Hugging Face directory, JSON-lines files of examples and, for DPO, the reference's directory. Writes
`--work`: metrics.jsonl (a line a step, and a line an epoch for the held-out examples), the reference's
log-probabilities, the state of a stopped run; and `--out`: the trained Hugging Face directory with its manifest. The
same command continues a run that was stopped.
"""

import argparse
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from dpo.checkpoint import Progress, export, finish, latest_state, load_state, save_state
from dpo.data import Example, MicroBatch, Stage, epoch_batches, keep_usable, micro_batches, read_examples, split
from dpo.loss import completion_logprob, dpo_loss, sft_loss
from dpo.parallel import World, distributed, end_process, reshard, sharded_model
from dpo.reference import reference_logprob
from files import UserError, command, digest, is_complete, stage_key
from model.config import LlamaConfig
from model.llama import Llama, compute_dtype
from model.weights import load_weights
from sampling.generate import environment
from settings import Dpo, Settings, Sft, as_dict, load_settings

METRICS = "metrics.jsonl"
HYPERPARAMETERS = ("epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_grad_norm", "held_out")


def train_key(
    stage: Stage, settings: Settings, iteration: int, model: Path, reference: Path | None, data: Sequence[Path]
) -> str:
    """The identity of a training stage's work. SFT has no reference, and the iteration says nothing to it."""
    section = as_dict(settings.sft if stage == "sft" else settings.dpo)
    names = (*HYPERPARAMETERS, "in_order" if stage == "sft" else "beta")
    facts = {name: section[name] for name in names} | {
        "export": fixed_epoch(stage, settings, iteration),
        "token_budget": settings.trainer.token_budget,
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


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over the first `warmup_ratio` of the steps, then half a cosine down to zero."""
    warmup = round(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: Llama, section: Sft | Dpo) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) on the fp32 parameters; matrices decay, norms do not."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=section.learning_rate, fused=True)


class Interruption:
    """Ctrl-C or SIGTERM, remembered until the step is done. A second one ends the process at once."""

    signal = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While in here a first signal is only remembered."""
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _frame: Any) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Trainer:
    """A model, its data and its optimizer; the methods are the loop: run, train_epoch, step, evaluate, end_epoch."""

    stage: Stage
    settings: Settings
    world: World
    model: Llama
    optimizer: torch.optim.Optimizer
    examples: list[Example]
    reference_e2: Tensor | None
    """fp32 [examples, 2], the reference's log-probabilities of chosen and rejected; None for SFT."""
    progress: Progress
    work: Path
    source: Path
    """The policy's start, whose configuration and tokenizer an export takes along."""
    export_epoch: int | None
    interruption: Interruption = field(default_factory=Interruption)

    def __post_init__(self) -> None:
        self.section: Sft | Dpo = self.settings.sft if self.stage == "sft" else self.settings.dpo
        self.train_set, self.held_out_set = split(self.examples, self.section.held_out, self.settings.seed)
        if not self.train_set:
            raise UserError(f"{self.stage}: no example is left to train on; add data or lower {self.stage}.held_out")
        self.steps_per_epoch = -(-len(self.train_set) // self.section.batch_size)
        self.steps = self.section.epochs * self.steps_per_epoch
        self.started = time.monotonic() - self.progress.seconds

    def run(self) -> None:
        """From where `progress` stands to the last epoch that can be exported."""
        epochs = self.export_epoch or self.section.epochs
        bar = tqdm(
            total=epochs * self.steps_per_epoch,
            initial=self.progress.step,
            desc=self.stage,
            unit="step",
            disable=not self.world.first,
            mininterval=1 if sys.stderr.isatty() else 30,
        )
        with self.interruption.watched(), bar:
            while self.progress.epoch < epochs:
                self.train_epoch(bar)
                self.end_epoch(epochs)

    def train_epoch(self, bar: tqdm) -> None:
        """The global batches that are left of the epoch under way."""
        progress, save_every = self.progress, self.settings.trainer.save_every
        in_order = isinstance(self.section, Sft) and self.section.in_order
        batches = epoch_batches(self.train_set, self.section.batch_size, self.settings.seed, progress.epoch, in_order)
        for batch in batches[progress.position :]:
            metrics, stop = self.step(batch)
            if progress.first_loss is None:
                progress.first_loss = metrics["loss"]
            progress.step += 1
            progress.position += 1
            progress.seconds = time.monotonic() - self.started
            self.log(metrics)
            bar.set_postfix({k: f"{metrics[k]:.4g}" for k in ("loss", "accuracy") if k in metrics}, refresh=False)
            bar.update()
            due = save_every and progress.step % save_every == 0 and progress.position < len(batches)
            if stop or due:
                save_state(self.work, self.world, self.model, self.optimizer, progress)
            if stop:
                self.world.say(f"\nstopped after step {progress.step - 1}; the same command continues from there")
                raise SystemExit(128 + (self.interruption.signal or signal.SIGTERM))

    def step(self, batch: list[int]) -> tuple[dict[str, Any], bool]:
        """One update on a global batch (indices of examples): its metrics, and whether a rank was told to stop."""
        started, section = time.perf_counter(), self.section
        rate = learning_rate(self.progress.step, self.steps, section.learning_rate, section.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        means, tokens, stop = self.measure(batch, backward=True)
        norm = cast(DTensor, torch.nn.utils.clip_grad_norm_(self.model.parameters(), section.max_grad_norm))
        grad_norm = norm.full_tensor().item()
        if not math.isfinite(means["loss"]) or not math.isfinite(grad_norm):
            raise UserError(self.blame(batch))
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - started
        speed = {"tokens": tokens, "tokens_per_second": tokens / seconds, "seconds": seconds}
        place = {"step": self.progress.step, "epoch": self.progress.epoch + 1, "split": "train"}
        return place | means | {"grad_norm": grad_norm, "lr": rate} | speed, stop

    def measure(self, indices: Sequence[int], backward: bool) -> tuple[dict[str, float], int, bool]:
        """Means over the examples at `indices` of what the loss says of each; their tokens; whether to stop.

        With `backward` the mean loss's gradient is added to the parameters'. The mean is over all ranks' examples, by
        weight, so neither ranks nor micro-batches change it.
        """
        weight = sum(self.examples[i].weight for i in indices)
        budget = self.settings.trainer.token_budget
        terms: dict[str, Tensor] = {}
        totals = torch.zeros((), device=self.world.device, dtype=torch.float64)
        tokens = 0
        for batch in micro_batches(self.examples, indices, self.world.rank, self.world.size, budget):
            terms = self.terms(batch.to(self.world.device))
            if backward:
                scale = self.world.size / weight  # FSDP averages gradients over ranks; the mean here is over weight
                (terms["loss"].sum() * (batch.real * scale)).backward()
            totals = totals + batch.real * torch.stack([term.detach().double().sum() for term in terms.values()])
            tokens += batch.real * len(batch.ids_t)
        others = totals.new_tensor([tokens, self.interruption.signal > 0])
        *sums, tokens_of_all, stops = self.world.sum(torch.cat((totals, others))).tolist()
        means = {name: value / weight for name, value in zip(terms, sums, strict=True)}
        return means, int(tokens_of_all), stops > 0

    def terms(self, batch: MicroBatch) -> dict[str, Tensor]:
        """What the stage's loss says of each example of a micro-batch."""
        logprob_n = completion_logprob(self.model, batch, self.settings.model.attention)
        if self.reference_e2 is None:
            return sft_loss(batch, logprob_n)
        return dpo_loss(batch.sums(logprob_n), self.reference_e2[batch.examples], self.settings.dpo.beta)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out examples' means."""
        means, _, _ = self.measure(self.held_out_set, backward=False)
        reshard(self.model)
        return means

    def end_epoch(self, epochs: int) -> None:
        """Held-out metrics, the export if this epoch is the one to keep so far, and the state to continue from."""
        progress, number = self.progress, self.progress.epoch + 1
        means = self.evaluate() if self.held_out_set else {}
        if means:
            self.log({"step": progress.step - 1, "epoch": number, "split": "held_out"} | means)
        if self.better(number, means):
            export(self.world, self.model, self.source, self.work / f"epoch-{number}")
            progress.exported = {"epoch": number} | means
        progress.epoch, progress.position = number, 0
        progress.seconds = time.monotonic() - self.started
        if number < epochs:
            save_state(self.work, self.world, self.model, self.optimizer, progress)
            self.remove_exports()

    def better(self, number: int, means: dict[str, float]) -> bool:
        """Whether the epoch just done is to be exported: the set one, or the best held-out accuracy, then loss, so far.

        Without held-out examples the last epoch is.
        """
        if self.export_epoch or not means:
            return number == (self.export_epoch or self.section.epochs)
        best = self.progress.exported
        return not best or (means["accuracy"], -means["loss"]) > (best["accuracy"], -best["loss"])

    def clean(self) -> None:
        """Remove what a stopped run would need, once nothing can stop it."""
        if self.world.first:
            for folder in (*self.work.glob("epoch-*"), *self.work.glob("state-*")):
                shutil.rmtree(folder)

    def remove_exports(self) -> None:
        """Drop the exports that a better epoch has replaced."""
        for folder in self.work.glob("epoch-*"):
            if self.world.first and folder.name != f"epoch-{self.progress.exported.get('epoch')}":
                shutil.rmtree(folder)

    def log(self, metrics: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        line = (json.dumps(metrics) + "\n").encode()
        self.progress.metrics_bytes += len(line)
        if self.world.first:
            with (self.work / METRICS).open("ab") as file:
                file.write(line)

    def blame(self, batch: Sequence[int]) -> str:
        """What to tell the user of a batch whose loss or gradient is not finite."""
        with torch.no_grad():
            bad = [i for i in batch if not math.isfinite(self.measure([i], backward=False)[0]["loss"])]
        what = "loss" if bad else "gradient"
        names = ", ".join(self.examples[i].id for i in bad or batch)
        return (
            f"step {self.progress.step}: the {what} is not finite in {names}; look at these examples, or lower "
            f"{self.stage}.learning_rate"
        )


def train(arguments: argparse.Namespace, settings: Settings, world: World) -> None:
    """The command's work: set up, run, publish. Nothing is done when `--out` is complete already."""
    stage, model_dir, reference, data = arguments.stage, arguments.model, arguments.reference, arguments.data
    key = world.agree(lambda: train_key(stage, settings, arguments.iteration, model_dir, reference, data))
    if world.agree(lambda: is_complete(arguments.out, key)):
        return
    folders = {"model": model_dir} | ({"reference": reference} if stage == "dpo" else {})
    weights = world.agree(lambda: {name: digest(folder) for name, folder in folders.items()})
    config, dtype = LlamaConfig.load(model_dir), compute_dtype(settings.model.dtype, world.device)
    found = read_examples(data, stage, config.vocab_size)
    examples, dropped = keep_usable(found, settings.trainer.token_budget, config.max_position_embeddings)
    if not examples:
        raise UserError(f"{', '.join(map(str, data))}: no usable example ({dropped or 'empty'}); add data")

    model = sharded_model(config, world, dtype, settings.trainer.activation_checkpointing)
    reference_e2 = None
    if stage == "dpo":
        reference_e2 = reference_logprob(
            world,
            model,
            examples,
            reference,
            weights["reference"],
            arguments.work / "reference",
            settings.trainer.token_budget,
            dtype,
            settings.model.attention,
        )
    optimizer = make_optimizer(model, settings.sft if stage == "sft" else settings.dpo)
    progress = start(world, model, optimizer, model_dir, arguments.work, key)
    trainer = Trainer(
        stage=stage,
        settings=settings,
        world=world,
        model=model,
        optimizer=optimizer,
        examples=examples,
        reference_e2=reference_e2,
        progress=progress,
        work=arguments.work,
        source=model_dir,
        export_epoch=fixed_epoch(stage, settings, arguments.iteration),
    )
    trainer.run()
    sets = {"train": len(trainer.train_set), "held_out": len(trainer.held_out_set)}
    facts = {
        "counts": {"examples": len(examples), **sets, **dropped},
        "first_loss": progress.first_loss,
        **progress.exported,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "weights": weights,
        "dtype": str(dtype).removeprefix("torch."),
        "ranks": world.size,
        "threads": settings.engine.threads,
        "environment": environment(),
    }
    if world.first:
        finish(arguments.work / f"epoch-{progress.exported['epoch']}", arguments.out, key, **facts)
    trainer.clean()


def start(
    world: World, model: Llama, optimizer: torch.optim.Optimizer, model_dir: Path, work: Path, key: str
) -> Progress:
    """Fill the model: from the last state of the same work, else from `model_dir`. Cuts metrics.jsonl to match."""
    state = world.agree(lambda: latest_state(work, key))
    if state is None:
        load_weights(model, model_dir)
        progress = Progress(key)
    else:
        progress = load_state(state, model, optimizer)
        world.say(f"continuing from step {progress.step} ({state})")
    if world.first:
        work.mkdir(parents=True, exist_ok=True)
        with (work / METRICS).open("ab") as file:
            file.truncate(min(progress.metrics_bytes, file.tell()))
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
    if not 1 <= arguments.iteration <= len(settings.iteration):
        raise UserError(
            f"--iteration {arguments.iteration}: the config has {len(settings.iteration)}; choose one of them"
        )
    with distributed(settings.engine.threads) as world:
        train(arguments, settings, world)


if __name__ == "__main__":
    end_process(lambda: command(main))
