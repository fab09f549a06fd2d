"""The training loop of SFT and DPO: one update of the model for each global batch.

Each rank computes its part of a batch in packed micro-batches (`dpo.packing`). The loss is the mean over the whole
batch, so the number of ranks and micro-batches does not change an update.
"""

import math
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from dpo.checkpoint import Progress, Write, Writer, export, save_state
from dpo.data import Example, Objective, epoch_batches, split
from dpo.loss import chosen_nll, completion_logprob, dpo_loss, sft_loss
from dpo.metrics import MetricsLog, forward_flops, peak_memory_mib
from dpo.packing import MicroBatch, micro_batches
from dpo.parallel import Interruption, World, keep_gathered, replicas, reshard, return_memory
from kernels.launch import to_device
from model.llama import Llama
from stages.command import UserError
from stages.progress import progress
from stages.settings import Dpo, Settings, Sft


class BatchResult(NamedTuple):
    """Losses of a global batch and the work for it, over all ranks."""

    means: dict[str, float]  # of the loss terms, over the examples by weight
    grad_norm: float  # of the mean loss; 0 without backward
    tokens: int  # computed; a shared prefix counts once
    flops: float  # of a forward pass
    memory_mib: float  # the highest peak of any rank
    stop: bool  # whether a rank got a signal to stop, or could not write


@dataclass
class Trainer:
    """A model, its data and its optimizer. The loop: run, train_epoch, step, measure, end_epoch."""

    stage: Objective
    settings: Settings
    world: World
    model: Llama
    optimizer: torch.optim.Optimizer
    examples: list[Example]
    reference_e2: Tensor | None  # fp32: the reference's log-probabilities of (chosen, rejected), for DPO
    progress: Progress
    work: Path
    source: Path  # the initial policy; an export copies its configuration and tokenizer
    export_epoch: int | None  # counted from 1; None: the best epoch on the held-out examples
    peak_flops: float  # operations a second of a rank, for the utilisation (mfu)
    interruption: Interruption = field(default_factory=Interruption)

    def __post_init__(self) -> None:
        self.section: Sft | Dpo = self.settings.sft if self.stage == "sft" else self.settings.dpo
        self.train_set, self.held_out_set = split(self.examples, self.section.held_out, self.settings.seed)
        if not self.train_set:
            raise UserError(f"{self.stage}: no example is left to train on; add data or lower {self.stage}.held_out")
        self.steps_per_epoch = math.ceil(len(self.train_set) / self.section.batch_size)
        at, board = self.progress, self.settings.trainer.tensorboard
        self.started = time.monotonic() - at.seconds
        self.log = MetricsLog(self.work, at.metrics_bytes, self.world.first, board, at.step)
        self.writer = Writer(self.world, self.settings.trainer.timeout_minutes)

    def run(self) -> None:
        """Train from the current progress to the last epoch that can be exported."""
        epochs, at = self.export_epoch or self.section.epochs, self.progress
        total = epochs * self.steps_per_epoch
        bar = progress(total, self.stage, "step", first=self.world.first, done=at.step)
        with self.writer.thread, bar:  # a write that has begun ends before an error leaves
            while at.epoch < epochs:
                self.train_epoch(bar)
                self.end_epoch(epochs)
            self.writer.wait()

    def train_epoch(self, bar: tqdm) -> None:
        """Train on the remaining global batches of the current epoch."""
        at, every = self.progress, self.settings.trainer.evaluate_every
        curriculum = isinstance(self.section, Sft) and self.section.curriculum
        batches = epoch_batches(self.train_set, self.section.batch_size, self.settings.seed, at.epoch, curriculum)
        for batch in batches[at.position :]:
            # Before a step, not after it, so that an interrupted run saves its state first.
            if at.position and every and at.step % every == 0:
                self.evaluate()
            metrics, stop = self.step(batch)
            at.first_loss = metrics["loss"] if at.first_loss is None else at.first_loss
            at.step, at.position = at.step + 1, at.position + 1
            self.write(metrics)
            bar.set_postfix({k: f"{metrics[k]:.4g}" for k in ("loss", "accuracy") if k in metrics}, refresh=False)
            bar.update()
            if at.step % 32 == 0:  # rarely, since returned pages have to be zeroed again
                return_memory()
            if stop or (at.position < len(batches) and self.due(epoch_ended=False)):
                self.save()
            if stop:
                self.writer.wait()
                self.world.say(f"\nstopped after step {at.step - 1}; the same command continues from there")
                raise SystemExit(128 + (self.interruption.signal or signal.SIGTERM))

    def step(self, batch: list[int]) -> tuple[dict[str, Any], bool]:
        """One update on a global batch (indices of examples): its metrics, and whether a rank got a signal to stop."""
        started, section, step = time.perf_counter(), self.section, self.progress.step
        steps = section.epochs * self.steps_per_epoch
        rate = learning_rate(step, steps, section.learning_rate, section.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        result = self.measure(batch, backward=True)
        self.progress.last = result.means
        clip(local_gradients(self.model.parameters()), result.grad_norm, section.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - started
        metrics = {"step": step, "epoch": self.progress.epoch + 1, "split": "train", **result.means}
        metrics |= {"grad_norm": result.grad_norm, "lr": rate}
        metrics |= {"tokens": result.tokens, "tokens_per_second": result.tokens / seconds}
        passes = 2 if self.settings.trainer.lora_rank else 3  # frozen weights have no gradients
        metrics |= {"mfu": passes * result.flops / seconds / (self.peak_flops * self.world.size)}
        return metrics | {"memory_mib": round(result.memory_mib), "seconds": seconds}, result.stop

    def measure(self, indices: list[int], backward: bool) -> BatchResult:
        """The mean loss terms of the examples at `indices`; with `backward` the parameters get its gradient, added."""
        world, weight = self.world, sum(self.examples[i].weight for i in indices)
        terms: dict[str, Tensor] = {}
        sums, tokens, flops = torch.zeros((), dtype=torch.float64, device=world.device), 0, 0
        options = self.settings.trainer
        batches = micro_batches(self.examples, indices, options, world.rank, world.size, world.device)
        for batch in batches:
            terms = self.terms(batch)
            if backward:
                keep_gathered(self.model, options, more=batch is not batches[-1])
                scale = world.size / weight  # FSDP averages over ranks; this mean is over weight
                (terms["loss"].sum() * (batch.real * scale)).backward()
            sums = sums + batch.real * torch.stack([term.detach().double().sum() for term in terms.values()])
            tokens += batch.real * batch.tokens
            flops += batch.real * forward_flops(self.model.config, batch)
        square = self.reduce_gradients() if backward else sums.new_zeros(())
        memory_r = [peak_memory_mib(world.device) * (rank == world.rank) for rank in range(world.size)]
        stop = self.interruption.signal > 0 or self.writer.failed
        facts = to_device([tokens, flops, stop, *memory_r], torch.float64, world.device)
        values = world.sum(torch.cat((sums, square[None], facts))).tolist()
        means = {name: value / weight for name, value in zip(terms, values, strict=False)}
        square_of_all, tokens_of_all, flops_of_all, stops, *memory_r = values[len(terms) :]
        norm = math.sqrt(square_of_all) if square_of_all >= 0 else math.nan
        if not math.isfinite(means["loss"] + norm):
            for i in indices if len(indices) > 1 else ():
                with torch.no_grad():
                    self.measure([i], backward=False)  # raises where this example's own loss is not finite
            names = ", ".join(self.examples[i].id for i in indices)
            what = "gradient" if math.isfinite(means["loss"]) else "loss"
            advice = f"check these examples, or lower {self.stage}.learning_rate"
            raise UserError(f"step {self.progress.step}: the {what} is not finite in {names}; {advice}")
        return BatchResult(means, norm, int(tokens_of_all), flops_of_all, max(memory_r), stops > 0)

    def reduce_gradients(self) -> Tensor:
        """This rank's share of the gradient's squared norm, fp64. LoRA's gradients, which FSDP leaves alone, become
        their means over ranks."""
        gradients, options = local_gradients(self.model.parameters()), self.settings.trainer
        if options.lora_rank:
            self.world.average(gradients)
        return squared_norm(gradients) / replicas(self.world.size, options)

    def terms(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Loss and further terms of each example of a micro-batch, fp32 [e]."""
        logprob_n = completion_logprob(self.model, batch, self.settings.model.attention)
        if self.reference_e2 is None:
            return sft_loss(batch, logprob_n)
        options = self.settings.dpo
        terms = dpo_loss(batch.sums(logprob_n), self.reference_e2[batch.examples_e], options.beta)
        if options.nll_weight:
            nll_e = chosen_nll(batch, logprob_n)
            terms |= {"loss": terms["loss"] + options.nll_weight * nll_e, "nll": nll_e}
        return terms

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Means over the held-out examples, also written as a line of metrics; empty without held-out examples."""
        if not self.held_out_set:
            return {}
        means = self.measure(self.held_out_set, backward=False).means
        reshard(self.model)
        self.write({"step": self.progress.step - 1, "epoch": self.progress.epoch + 1, "split": "held_out"} | means)
        return means

    def end_epoch(self, epochs: int) -> None:
        """Held-out metrics, the export, and the state to continue from. Exported are the configured epoch, or the best
        so far by held-out accuracy, then loss, or the last."""
        at, means = self.progress, self.evaluate()
        number, best = at.epoch + 1, at.exported
        if self.export_epoch or not means:
            better = number == (self.export_epoch or self.section.epochs)
        else:
            better = not best or (means["accuracy"], -means["loss"]) > (best["accuracy"], -best["loss"])
        if better:
            at.exported = {"epoch": number} | means
        at.epoch, at.position, at.seconds = number, 0, time.monotonic() - self.started
        state = number < epochs and self.due(epoch_ended=True)
        if better or state:
            self.save(better, state)

    def due(self, epoch_ended: bool) -> bool:
        """Whether to save a state now: every `save_every` steps, or at the end of each epoch."""
        every = self.settings.trainer.save_every
        return self.progress.step % every == 0 if every else epoch_ended

    def save(self, exporting: bool = False, state: bool = True) -> None:
        """Begin to write the epoch `exported` and the state to continue from, once all before is written."""
        self.writer.wait()
        writes, adapters = list[Write](), self.settings.trainer.save_adapters
        if exporting:
            folder = self.progress.export(self.work)
            writes.append(export(self.world, self.model, self.source, folder, adapters))
        if state:
            writes.append(save_state(self.work, self.model, self.optimizer, self.progress))
        self.writer.begin(*writes)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write a line of metrics and count it in the progress."""
        self.log.write(metrics)
        self.progress.metrics_bytes = self.log.length
        self.progress.seconds = time.monotonic() - self.started


def make_optimizer(model: nn.Module, section: Sft | Dpo) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), weight decay on matrices only; its moments exist at once, for a state to load into."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": section.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=section.learning_rate, fused=True)
    for p in trained:
        state = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p)}
        optimizer.state[p] = state | {"exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over the first `warmup_ratio` of the steps, then half a cosine period down to zero."""
    if step < (warmup := round(warmup_ratio * steps)):
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This rank's shards of the gradients, fp32; adapters' gradients whole."""
    gradients = (p.grad for p in parameters if p.grad is not None)
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]


def squared_norm(gradients: list[Tensor]) -> Tensor:
    """Sum of squares, fp64. The sums of all ranks add up to the squared norm of the whole gradient."""
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()


def clip(gradients: list[Tensor], norm: float, max_norm: float) -> None:
    """Scale the gradients, of global norm `norm`, down to `max_norm`, as `clip_grad_norm_` does."""
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
