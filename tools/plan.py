"""What a run will cost and whether it will fit: `python -m tools.plan --config FILE [--gpus 8 --gpu h100]`.

The engine's scheduler runs a typical shard of each stage and the trainer packs typical batches, without weights or a
GPU. Exit code 1: something will not fit.
"""

import math
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dpo.memory import count
from dpo.metrics import forward_flops
from dpo.packing import keep_usable, micro_batches, own_prefix
from model.config import LlamaConfig
from prepare.seed_model import prepare
from stages.command import UserError, arguments, command
from stages.settings import Dpo, load_settings
from tools.doctor import missing_inputs
from tools.planned import Generation, Planned, Training, disk, disk_needed, rows
from tools.roofline import CARDS, Roofline, simulate, this_cpu

SAMPLED_BATCHES = 4  # global batches of a training that are packed


class Plan:
    """The stages of a run on a machine, and what each takes: tokens computed, tokens drawn or predicted, and seconds
    (infinite where no example fits a micro-batch); in generation also the share of the `max_num_seqs` places that draw
    tokens which are kept, on average over the time."""

    def __init__(self, machine: Roofline):
        self.machine, self.settings, self.planned = machine, machine.settings, Planned(machine.settings)
        self.stages, self.costs = self.planned.stages(), dict[Generation | Training, tuple[float, float, float]]()
        self.places = dict[Generation | Training, float]()
        trained = count(machine.config, machine.settings, machine.ranks)["needed"]  # bytes of a rank
        self.memory = {Training: trained, Generation: sum(machine.generation_memory().values())}
        for work in self.stages.values():
            if work not in self.costs:
                self.costs[work] = self.training(work) if isinstance(work, Training) else self.generation(work)

    def generation(self, work: Generation) -> tuple[float, float, float]:
        """A stage takes as long as the rank that claims the most shards."""
        settings, machine = self.settings, self.machine
        shards = settings.engine.shards(work.count)
        requests = self.planned.requests(work, -(-work.count // shards))
        steps = list(simulate(requests, settings.engine, machine.config.max_position_embeddings, machine.passes))
        times, new = [machine.step_seconds(step) for step in steps], sum(r.sampling.max_new_tokens for r in requests)
        taken = sum(step.drawn * time for step, time in zip(steps, times, strict=True)) / sum(times)
        self.places[work] = taken * new / sum(step.drawn for step in steps) / settings.engine.max_num_seqs
        seconds = settings.plan.start_seconds + work.loads * machine.disk_seconds(2)
        seconds += -(-shards // machine.ranks) * sum(times)
        return shards * sum(step.tokens for step in steps), shards * new, seconds

    def training(self, work: Training) -> tuple[float, float, float]:
        """Updates, the reference's pass, held-out evaluations, exports and states."""
        options, machine = self.settings.trainer, self.machine
        section, is_dpo = work.section, isinstance(work.section, Dpo)
        drawn = self.planned.examples(work, SAMPLED_BATCHES * section.batch_size)
        usable, _ = keep_usable(drawn, options, machine.config.max_position_embeddings)
        if not usable:
            return 0, 0, math.inf
        tokens, flops, updates = 0, 0.0, []
        for start in range(0, len(usable), section.batch_size):
            indices = range(len(usable))[start : start + section.batch_size]
            ranks = [micro_batches(usable, indices, options, rank, machine.ranks) for rank in range(machine.ranks)]
            forwards = [[forward_flops(machine.config, batch) for batch in batches] for batches in ranks]
            updates.append(machine.update_seconds([max(batch) for batch in zip(*forwards, strict=True)]))
            tokens += sum(batch.tokens for batches in ranks for batch in batches)
            flops += sum(map(sum, forwards))
        scale, done = work.count / len(usable), work.epochs * work.steps
        passes = scale * (is_dpo + work.epochs * section.held_out)  # forward alone, over the usable examples
        states = int(done) // options.save_every if options.save_every else work.epochs - 1
        seconds = done * sum(updates) / len(updates) + passes * machine.training_seconds(flops / machine.ranks)
        seconds = max(seconds, machine.disk_seconds(2 * work.exports - 2, 12 * states))  # written beside training
        seconds += 2 * self.settings.plan.start_seconds  # the stage that makes the examples, and this one
        seconds += machine.disk_seconds(2 + 2 * is_dpo + 2)  # the last export waits for nothing more
        computed = tokens * (passes + scale * work.epochs * (1 - section.held_out))
        new = work.count * sum(len(ids) for example in drawn for ids in example.completions) / len(drawn)
        return computed, new, seconds

    def faults(self, free: float) -> Iterator[str]:
        """What will not fit, and the setting to change. `free`: of the disk, in bytes. A "warning" stops no run."""
        settings, options, paths = self.settings, self.settings.prompts, self.settings.respond.prompts
        yield from (f"warning: {text}" for text in missing_inputs(settings))
        needed = len(settings.iteration) * settings.respond.prompts_per_iteration
        pool, change = sum(len(rows(path)) for path in paths) or needed, f"add prompts to {', '.join(paths)}"
        if options.seeds:
            pool, change = round(options.max_attempts * settings.plan.prompts_kept), "raise prompts.max_attempts"
        if pool < needed:
            yield f"pool: {pool} prompts, the iterations need {needed}; {change}"
        if (taken := disk_needed(self.stages, settings, self.machine.config)) > free:
            yield f"disk: {taken / 1e9:.1f} GB, {free / 1e9:.1f} are free; make room or run in another folder"
        self.planned.at_limits = True  # from here on the longest possible texts are drawn
        names, there = {work: name for name, work in reversed(self.stages.items())}, self.machine.card.memory
        slots = settings.engine.num_kv_blocks * settings.engine.block_size
        room = min(self.machine.config.max_position_embeddings, slots)
        for work, (_, _, seconds) in self.costs.items():
            name, change, memory = names[work], "engine.num_kv_blocks", self.memory[type(work)]
            if isinstance(work, Training):
                change, most = "trainer.tokens_per_microbatch", settings.trainer.tokens_per_microbatch
                longest = max(e.tokens(own_prefix(e, settings.trainer)) for e in self.planned.examples(work, 8))
                if seconds == math.inf:
                    yield f"{name}: no example fits a micro-batch; raise {change}"
                elif longest > most:
                    yield f"warning: {name}: examples may have {longest} tokens and be dropped; raise {change}"
            elif room < (prompt := max(map(len, work.group()))) + work.limit:
                text = f"{name}: up to {prompt} + {work.limit} tokens, the context or the KV cache holds {room}"
                yield f"{'' if room <= prompt else 'warning: '}{text}; lower max_new_tokens or raise {change}"
            if memory > there:
                yield f"{name}: {memory / 1e9:.1f} of {there / 1e9:.0f} GB of memory; lower {change}"


def table(plan: Plan, card: str) -> Iterator[str]:
    """The plan as lines for people."""
    settings, machine, config = plan.settings, plan.machine, plan.machine.config
    unit, hours = "CPU" if card == "cpu" else "GPU", defaultdict[str, float](float)
    head, row = "{:22}" + 8 * "{:>12}", "{:22}{:12,}{:12,.1f}{:12,.1f}{:12.2f}{:12,.1f}{:12.1f}{:12.1f}{:>12}"
    yield f"{settings.name}: {config.parameter_count() / 1e9:.2f} billion parameters on {machine.ranks} x {card}\n"
    columns = ("requests", "computed, k", "new, k", f"{unit}-hours", "minutes", "memory, GB", "disk, GB", "places, %")
    yield head.format("stage", *columns)
    for name, work in plan.stages.items():
        (computed, new, seconds), memory = plan.costs[work], plan.memory[type(work)] / 1e9
        each, left = machine.ranks * seconds / 3600, disk(work, config) / 1e9
        hours[name.split("/")[0]] += each
        places = f"{100 * plan.places[work]:.0f}" if work in plan.places else ""
        yield row.format(name, work.count, computed / 1e3, new / 1e3, each, seconds / 60, memory, left, places).rstrip()
    total, parts = sum(hours.values()), machine.generation_memory()
    generated, trained = plan.memory[Generation] / 1e9, plan.memory[Training] / 1e9
    yield f"{'in all':58}{total:12.2f}{60 * total / machine.ranks:12,.1f}\n"
    for text in (
        f"{unit}-hours of each part: " + ", ".join(f"{name} {value:.1f}" for name, value in hours.items()),
        f"memory of generation: {', '.join(f'{name} {size / 1e9:.1f}' for name, size in parts.items())}, in all "
        f"{generated:.1f} GB; of training: {trained:.1f} GB (python -m dpo.memory)",
        f"disk, with states and exports while training: {disk_needed(plan.stages, settings, config) / 1e9:.1f} GB",
        machine.formula(),
    ):
        yield textwrap.fill(text, 118, subsequent_indent="  ")


def main() -> None:
    gpus = {"type": int, "help": "GPUs in all; default: the config's nproc_per_node"}
    gpu = {"choices": ("cpu", *CARDS), "help": "default: h100 with --gpus, else cpu"}
    given = arguments(__doc__, "config", gpus=gpus, gpu=gpu)
    settings, card = load_settings(given.config), given.gpu or ("h100" if given.gpus else "cpu")
    ranks = settings.nproc_per_node if given.gpus is None else given.gpus
    if ranks < 1 or (card == "cpu" and given.gpus):
        raise UserError(f"--gpus {ranks}: give at least 1, and a kind of GPU or none")
    if settings.model.prepare:
        prepare(settings.model)
    peaks = CARDS[card] if card in CARDS else this_cpu(settings)
    plan = Plan(Roofline(LlamaConfig.load(settings.model.shape), settings, peaks, ranks))
    print("\n".join(table(plan, card)) + "\n")
    faults = list(plan.faults(shutil.disk_usage("runs" if Path("runs").is_dir() else ".").free))
    print("\n".join(faults) or "Everything fits: context, KV cache, micro-batches, pool, memory and disk.")
    if any(not fault.startswith("warning") for fault in faults):
        raise SystemExit(1)


if __name__ == "__main__":
    command(main)
