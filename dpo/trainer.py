"""The training loop of SFT and DPO: epochs of global batches, each an update of the model.

A global batch is what the config says, in pairs; each rank computes its part of it in packed micro-batches
(`dpo.packing`), and the loss is a mean over all of it, so that neither ranks nor micro-batches change an update.
"""

import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dpo.checkpoint import Progress, export, save_state
from dpo.data import Example, Stage, epoch_batches, split
from dpo.flops import forward_flops
from dpo.loss import chosen_nll, completion_logprob, dpo_loss, sft_loss
from dpo.metrics import MetricsLog, peak_memory_mib
from dpo.optimizer import clip, learning_rate, local_gradients, squared_norm
from dpo.packing import MicroBatch, micro_batches
from dpo.parallel import World, reshard
from kernels.transfer import to_device
from model.llama import Llama
from stages.files import UserError
from stages.progress import progress
from stages.settings import Dpo, Settings, Sft


class Interruption:
    """Ctrl-C or SIGTERM, remembered until the step is done. A second Ctrl-C ends the process at once.

    What comes within seconds of the first is the same one: a terminal, or a scheduler, sends it to every process, and
    torchrun passes on what it got.
    """

    signal = 0
    since = 0.0
    """When the first one came."""
    patience = 5.0
    """Seconds."""

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
        if not self.signal:
            self.signal, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > self.patience:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@dataclass(frozen=True)
class Measured:
    """What a global batch gave, on all ranks together."""

    means: dict[str, float]
    """Means over the examples, by weight, of what the loss says of each."""
    tokens: int
    """Tokens computed; shared prefixes once."""
    flops: float
    """Operations of a forward pass over them."""
    grad_norm: float
    """Of the mean loss's gradient; 0 without backward."""
    memory_mib: float
    """The most that any rank has had."""
    stop: bool
    """Whether a rank was told to stop."""


@dataclass
class Trainer:
    """A model, its data and its optimizer; the methods are the loop: run, train_epoch, step, measure, end_epoch."""

    stage: Stage
    settings: Settings
    world: World
    model: Llama
    optimizer: torch.optim.Optimizer
    examples: list[Example]
    reference_e2: Tensor | None
    """fp32 [examples, 2], the reference's log-probabilities of chosen and rejected; None for SFT."""
    progress: Progress
    log: MetricsLog
    work: Path
    source: Path
    """The policy's start, whose configuration and tokenizer an export takes along."""
    export_epoch: int | None
    """The epoch to export, counted from 1; None: the best on the held-out examples."""
    peak_flops: float
    """Operations a second that a rank reaches at best, for the utilisation."""
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
        total = epochs * self.steps_per_epoch
        bar = progress(total, self.stage, "step", first=self.world.first, done=self.progress.step)
        with bar:
            while self.progress.epoch < epochs:
                self.train_epoch(bar)
                self.end_epoch(epochs)

    def train_epoch(self, bar: tqdm) -> None:
        """The global batches that are left of the epoch under way."""
        progress, options = self.progress, self.settings.trainer
        curriculum = isinstance(self.section, Sft) and self.section.curriculum
        batches = epoch_batches(self.train_set, self.section.batch_size, self.settings.seed, progress.epoch, curriculum)
        for batch in batches[progress.position :]:
            # Before a step, not behind one: a run that is told to stop has its state saved first.
            if progress.position and options.evaluate_every and progress.step % options.evaluate_every == 0:
                self.evaluate()
            metrics, stop = self.step(batch)
            if progress.first_loss is None:
                progress.first_loss = metrics["loss"]
            progress.step += 1
            progress.position += 1
            self.write(metrics)
            bar.set_postfix({k: f"{metrics[k]:.4g}" for k in ("loss", "accuracy") if k in metrics}, refresh=False)
            bar.update()
            if stop or (progress.position < len(batches) and self.due(epoch_ended=False)):
                self.save()
            if stop:
                self.world.say(f"\nstopped after step {progress.step - 1}; the same command continues from there")
                raise SystemExit(128 + (self.interruption.signal or signal.SIGTERM))

    def step(self, batch: list[int]) -> tuple[dict[str, Any], bool]:
        """One update on a global batch (indices of examples): its metrics, and whether a rank was told to stop."""
        started, section = time.perf_counter(), self.section
        rate = learning_rate(self.progress.step, self.steps, section.learning_rate, section.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        found = self.measure(batch, backward=True)
        if not math.isfinite(found.means["loss"]) or not math.isfinite(found.grad_norm):
            raise UserError(self.blame(batch))
        clip(local_gradients(self.model.parameters()), found.grad_norm, section.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - started
        metrics = {
            "step": self.progress.step,
            "epoch": self.progress.epoch + 1,
            "split": "train",
            **found.means,
            "grad_norm": found.grad_norm,
            "lr": rate,
            "tokens": found.tokens,
            "tokens_per_second": found.tokens / seconds,
            "mfu": 3 * found.flops / seconds / (self.peak_flops * self.world.size),
            "memory_mib": round(found.memory_mib),
            "seconds": seconds,
        }
        return metrics, found.stop

    def measure(self, indices: Sequence[int], backward: bool) -> Measured:
        """What the loss says of the examples at `indices`, and how much work that was. One sum over ranks.

        With `backward` the mean loss's gradient is added to the parameters'. The mean is over all ranks' examples, by
        weight.
        """
        world, weight = self.world, sum(self.examples[i].weight for i in indices)
        terms: dict[str, Tensor] = {}
        sums, tokens, flops = torch.zeros((), dtype=torch.float64, device=world.device), 0, 0
        batches = micro_batches(
            self.examples, indices, self.settings.trainer, world.rank, world.size, device=world.device
        )
        for batch in batches:
            terms = self.terms(batch)
            if backward:
                scale = world.size / weight  # FSDP averages gradients over ranks; the mean here is over weight
                (terms["loss"].sum() * (batch.real * scale)).backward()
            sums = sums + batch.real * torch.stack([term.detach().double().sum() for term in terms.values()])
            tokens += batch.real * batch.tokens
            flops += batch.real * forward_flops(self.model.config, batch)
        square = squared_norm(local_gradients(self.model.parameters())) if backward else sums.new_zeros(())
        memory_r = [peak_memory_mib(world.device) * (rank == world.rank) for rank in range(world.size)]
        facts = to_device([tokens, flops, self.interruption.signal > 0, *memory_r], torch.float64, world.device)
        values = world.sum(torch.cat((sums, square[None], facts))).tolist()
        square_of_all, tokens_of_all, flops_of_all, stops, *memory_r = values[len(terms) :]
        return Measured(
            means={name: value / weight for name, value in zip(terms, values, strict=False)},
            tokens=int(tokens_of_all),
            flops=flops_of_all,
            grad_norm=math.sqrt(square_of_all) if square_of_all >= 0 else math.nan,
            memory_mib=max(memory_r),
            stop=stops > 0,
        )

    def terms(self, batch: MicroBatch) -> dict[str, Tensor]:
        """What the stage's loss says of each example of a micro-batch."""
        logprob_n = completion_logprob(self.model, batch, self.settings.model.attention)
        if self.reference_e2 is None:
            return sft_loss(batch, logprob_n)
        options, reference_e2 = self.settings.dpo, self.reference_e2[batch.examples_e]
        terms = dpo_loss(batch.sums(logprob_n), reference_e2, options.beta)
        if options.nll_weight:
            nll_e = chosen_nll(batch, logprob_n)
            terms |= {"loss": terms["loss"] + options.nll_weight * nll_e, "nll": nll_e}
        return terms

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out examples' means, as a line of the metrics too; nothing without such examples."""
        if not self.held_out_set:
            return {}
        means = self.measure(self.held_out_set, backward=False).means
        reshard(self.model)
        self.write({"step": self.progress.step - 1, "epoch": self.progress.epoch + 1, "split": "held_out"} | means)
        return means

    def end_epoch(self, epochs: int) -> None:
        """Held-out metrics, the export if this epoch is the one to keep so far, and the state to continue from."""
        progress, number = self.progress, self.progress.epoch + 1
        means = self.evaluate()
        if self.better(number, means):
            export(self.world, self.model, self.source, self.work / f"epoch-{number}")
            progress.exported = {"epoch": number} | means
        progress.epoch, progress.position = number, 0
        progress.seconds = time.monotonic() - self.started
        if number < epochs and self.due(epoch_ended=True):
            self.save()

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
            for kind in ("epoch-*", "state-*", ".epoch-*", ".state-*"):  # whole ones, and what a kill left in between
                for folder in self.work.glob(kind):
                    shutil.rmtree(folder)

    def due(self, epoch_ended: bool) -> bool:
        """Whether a state is to be saved: by the steps that are done, or at the end of each epoch."""
        every = self.settings.trainer.save_every
        return self.progress.step % every == 0 if every else epoch_ended

    def save(self) -> None:
        """The state to continue from; exports that a better epoch has replaced go, as no state knows them any more."""
        save_state(self.work, self.world, self.model, self.optimizer, self.progress)
        for folder in self.work.glob("epoch-*"):
            if self.world.first and folder.name != f"epoch-{self.progress.exported.get('epoch')}":
                shutil.rmtree(folder)

    def write(self, metrics: dict[str, Any]) -> None:
        """A line of metrics, which belongs to the state from now on."""
        self.log.write(metrics)
        self.progress.metrics_bytes = self.log.length
        self.progress.seconds = time.monotonic() - self.started

    def blame(self, batch: Sequence[int]) -> str:
        """What to tell the user of a batch whose loss or gradient is not finite."""
        with torch.no_grad():
            bad = [i for i in batch if not math.isfinite(self.measure([i], backward=False).means["loss"])]
        what = "loss" if bad else "gradient"
        names = ", ".join(self.examples[i].id for i in bad or batch)
        return (
            f"step {self.progress.step}: the {what} is not finite in {names}; look at these examples, or lower "
            f"{self.stage}.learning_rate"
        )
