"""What a run will cost and whether it will fit, estimated before it starts.

    python -m tools.plan --config configs/llama3-8b-instruct.toml --gpus 8 --gpu h100
    python -m tools.plan --config configs/smollm2-135m.toml

The engine's scheduler runs a typical shard of each stage and the trainer packs typical batches, without weights and
without a GPU. Exit code 0: everything fits; 1: something will not.
"""

import argparse
import math
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dpo.memory import CONTEXT_BYTES, count
from dpo.metrics import forward_flops
from dpo.packing import keep_usable, micro_batches, own_prefix
from model.config import LlamaConfig
from prepare.seed_model import prepare
from sampling.request import Request, Sampling
from stages.files import UserError, command
from stages.settings import EngineOptions, Settings, load_settings
from tools.inputs import missing_inputs
from tools.planned import CHARACTERS, Generation, Planned, Stages, Training, count_rows
from tools.roofline import CARDS, Roofline, key_bytes, this_cpu
from tools.simulation import simulate

RECORD_BYTES = 300
"""A record without its tokens: ids, seed, log-probability."""
SAMPLED_BATCHES = 4
"""Global batches of a training that are packed."""


@dataclass(frozen=True)
class Cost:
    """What a stage takes: tokens computed (shared prefixes once) and drawn or predicted, seconds from start to end
    (infinite where no example fits a micro-batch), bytes of memory on a rank; and how often a sequence gives way."""

    computed: float
    new: float
    seconds: float
    memory: float
    preemptions: float = 0.0


class Plan:
    """The stages of a run on a machine, and what each takes."""

    def __init__(self, settings: Settings, machine: Roofline):
        self.settings, self.machine, self.planned = settings, machine, Planned(settings)
        self.stages, self.costs = self.planned.stages(), dict[Generation | Training, Cost]()
        self.training_memory = count(machine.config, settings, machine.ranks)["needed"]
        for work in self.stages.values():
            if work not in self.costs:
                self.costs[work] = self.training(work) if isinstance(work, Training) else self.generation(work)

    def config(self, work: Generation) -> LlamaConfig:
        """The shape of a stage's model; the seed's where the model is not there."""
        there = (Path(work.model or "none") / "config.json").is_file()
        return LlamaConfig.load(work.model) if there else self.machine.config

    def generation(self, work: Generation) -> Cost:
        """A stage whose shards the ranks claim: its time is that of the rank with the most shards."""
        settings, machine = self.settings, replace(self.machine, config=self.config(work))
        shards = 2 * -(-work.count // (2 * settings.engine.shard_requests))  # an even number, as in `cut_shards`
        size, prompts = -(-work.count // shards), list[list[int]]()
        while len(prompts) < size:
            prompts += work.group()
        sampling = Sampling(1.0, 1.0, work.limit)
        requests = [Request(str(i), ids, sampling, 0) for i, ids in enumerate(prompts[:size])]
        lengths = {str(i): length for i, length in enumerate(self.planned.lengths(work, size))}
        simulation = simulate(requests, lengths, settings.engine, machine.config.max_position_embeddings)
        seconds = settings.plan.start_seconds + work.loads * machine.disk_seconds(2)
        seconds += -(-shards // machine.ranks) * sum(map(machine.step_seconds, simulation.steps))
        computed, new = (shards * sum(getattr(step, key) for step in simulation.steps) for key in ("tokens", "drawn"))
        memory = sum(generation_memory(machine.config, settings.engine).values())
        return Cost(computed, new, seconds, memory, simulation.preemptions / size)

    def training(self, work: Training) -> Cost:
        """Updates, the reference's pass, held-out evaluations, exports and states."""
        section, options, machine, is_dpo = work.section, self.settings.trainer, self.machine, work.completions == 2
        drawn = self.planned.examples(work, SAMPLED_BATCHES * section.batch_size)
        usable, _ = keep_usable(drawn, options, machine.config.max_position_embeddings)
        if not usable:
            return Cost(0, 0, math.inf, self.training_memory)
        tokens, flops, updates = 0, 0.0, []
        for start in range(0, len(usable), section.batch_size):
            indices = range(start, min(start + section.batch_size, len(usable)))
            ranks = [micro_batches(usable, indices, options, rank, machine.ranks) for rank in range(machine.ranks)]
            forwards = [[forward_flops(machine.config, batch) for batch in batches] for batches in ranks]
            updates.append(machine.update_seconds([max(batch) for batch in zip(*forwards, strict=True)]))
            tokens += sum(batch.tokens for batches in ranks for batch in batches)
            flops += sum(map(sum, forwards))
        scale = work.count / len(usable)
        passes = scale * (is_dpo + work.epochs * section.held_out)  # forward alone, over the usable examples
        seconds = 2 * self.settings.plan.start_seconds  # the stage that makes the examples, and this one
        seconds += work.epochs * work.steps * sum(updates) / len(updates)
        seconds += passes * machine.training_seconds(flops / machine.ranks)
        states = int(work.epochs * work.steps) // options.save_every if options.save_every else work.epochs - 1
        seconds += machine.disk_seconds(2 + 2 * is_dpo + 2 * work.exports + 12 * states)
        computed = tokens * (passes + scale * work.epochs * (1 - section.held_out))
        new = work.count * sum(len(ids) for example in drawn for ids in example.completions) / len(drawn)
        return Cost(computed, new, seconds, self.training_memory)

    def faults(self, free: float) -> Iterator[str]:
        """What will not fit, and the setting to change. `free`: bytes free on the disk. A "warning" stops no run."""
        settings, options, path = self.settings, self.settings.trainer, self.settings.respond.prompts
        yield from (f"warning: {text}" for text in missing_inputs(settings))
        needed = len(settings.iteration) * settings.respond.prompts_per_iteration
        pool = round(settings.prompts.max_attempts * settings.plan.prompts_kept)
        pool = pool if settings.prompts.seeds else count_rows(path) or needed
        if pool < needed:
            change = "raise prompts.max_attempts" if settings.prompts.seeds else f"add prompts to {path}"
            yield f"pool: {pool} prompts, the iterations need {needed}; {change}"
        if (taken := disk_needed(self.stages, settings, self.machine.config)) > free:
            yield f"disk: {taken / 1e9:.1f} GB, {free / 1e9:.1f} are free; make room or run in another folder"
        self.planned.at_limits = True  # from here on the longest possible texts are drawn
        names = {work: name for name, work in reversed(self.stages.items())}
        cache, there = settings.engine.num_kv_blocks * settings.engine.block_size, self.machine.card.memory
        for work, cost in self.costs.items():
            change = "trainer.tokens_per_microbatch" if isinstance(work, Training) else "engine.num_kv_blocks"
            if cost.memory > there:
                yield f"{names[work]}: {cost.memory / 1e9:.1f} of {there / 1e9:.0f} GB of memory; lower {change}"
            if isinstance(work, Training):
                most = max(e.tokens(own_prefix(e, options)) for e in self.planned.examples(work, 8))
                if cost.seconds == math.inf:
                    yield f"{names[work]}: no example fits a micro-batch; raise {change}"
                elif most > options.tokens_per_microbatch:
                    yield f"warning: {names[work]}: examples may have {most} tokens and be dropped; raise {change}"
                continue
            prompt = max(map(len, work.group()), default=0)
            room = min(self.config(work).max_position_embeddings, cache)
            if room < prompt + work.limit:
                text = f"{names[work]}: up to {prompt} + {work.limit} tokens, the context or the KV cache holds {room}"
                yield f"{'' if room <= prompt else 'warning: '}{text}; lower max_new_tokens or raise {change}"
            if (times := cost.preemptions) > 0.05:
                yield f"warning: {names[work]}: a sequence gives its KV cache up {times:.2g} times; raise {change}"


def generation_memory(config: LlamaConfig, engine: EngineOptions) -> dict[str, float]:
    """Memory of a rank that generates in bf16, by part."""
    inner = 3 * config.hidden_size + config.q_size + 2 * config.kv_size + 3 * config.intermediate_size
    logits = 4 * engine.max_num_seqs * config.vocab_size * 3  # bf16, fp32, and top-p's copies
    return {
        "weights": 2 * config.parameter_count(),
        "KV cache": key_bytes(config) * engine.block_size * (engine.num_kv_blocks + 1),
        "a step": 2 * engine.max_num_batched_tokens * inner + logits,
        "CUDA": CONTEXT_BYTES,
    }


def disk(work: Generation | Training, settings: Settings, config: LlamaConfig) -> tuple[float, float]:
    """Bytes that a stage leaves, and that training takes besides: two states of 12 bytes a parameter, and the exports
    of 2 that wait for the next state."""
    if isinstance(work, Training):
        waiting = min(work.exports, 2 + int(settings.trainer.save_every / work.steps))
        return 2.0 * config.parameter_count(), (2.0 * 12 + 2 * waiting) * config.parameter_count()
    token = len(str(config.vocab_size)) + 1 + CHARACTERS  # the id, a comma, the text
    return work.count * (RECORD_BYTES + token * work.mean), 0.0


def disk_needed(stages: Stages, settings: Settings, config: LlamaConfig) -> float:
    """Bytes that a run takes at most."""
    left, besides = zip(*(disk(work, settings, config) for work in stages.values()), strict=True)
    return sum(left) + max(besides)


def table(plan: Plan, card: str) -> Iterator[str]:
    """The plan as lines for people."""
    settings, machine, config = plan.settings, plan.machine, plan.machine.config
    unit, hours = "CPU" if card == "cpu" else "GPU", dict.fromkeys((name.split("/")[0] for name in plan.stages), 0.0)
    yield f"{settings.name}: {config.parameter_count() / 1e9:.2f} billion parameters on {machine.ranks} x {card}\n"
    columns = ("requests", "computed", "new tokens", f"{unit}-hours", "time", "memory GB", "disk GB")
    yield f"{'stage':22}" + "".join(f"{column:>12}" for column in columns)
    for name, work in plan.stages.items():
        cost = plan.costs[work]
        each = machine.ranks * cost.seconds / 3600
        hours[name.split("/")[0]] += each
        sizes = f"{cost.memory / 1e9:12.1f}{disk(work, settings, config)[0] / 1e9:12.1f}"
        tokens = f"{work.count:12,}{_count(cost.computed)}{_count(cost.new)}"
        yield f"{name:22}{tokens}{each:12.2f}{_time(cost.seconds)}{sizes}"
    yield f"{'in all':58}{sum(hours.values()):12.2f}{_time(3600 * sum(hours.values()) / machine.ranks)}\n"
    memory = generation_memory(config, settings.engine)
    for text in (
        f"{unit}-hours of each part: " + ", ".join(f"{name} {value:.1f}" for name, value in hours.items()),
        f"memory of generation: {', '.join(f'{name} {size / 1e9:.1f}' for name, size in memory.items())}, in all "
        f"{sum(memory.values()) / 1e9:.1f} GB; of training: {plan.training_memory / 1e9:.1f} GB (python -m dpo.memory)",
        f"disk, with states and exports while training: {disk_needed(plan.stages, settings, config) / 1e9:.1f} GB",
        machine.formula(),
    ):
        yield textwrap.fill(text, 118, subsequent_indent="  ")


def _count(count: float) -> str:
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= s), (1, ""))
    return f"{f'{count / size:.{1 if unit else 0}f} {unit}'.rstrip():>12}"


def _time(seconds: float) -> str:
    if seconds < 6000:
        return f"{f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min':>12}"
    return f"{f'{seconds / 3600:.1f} h':>12}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a run will cost, and whether it will fit.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--gpus", type=int, help="GPUs in all; default: the config's nproc_per_node")
    parser.add_argument("--gpu", choices=("cpu", *CARDS), help="default: h100 with --gpus, else cpu")
    arguments = parser.parse_args()
    settings, card = load_settings(arguments.config), arguments.gpu or ("h100" if arguments.gpus else "cpu")
    ranks = settings.nproc_per_node if arguments.gpus is None else arguments.gpus
    if ranks < 1 or (card == "cpu" and arguments.gpus):
        raise UserError(f"--gpus {ranks}: give at least 1, and a kind of GPU or none")
    if settings.model.prepare:
        prepare(settings.model)
    config, recompute = LlamaConfig.load(settings.model.shape), settings.trainer.activation_checkpointing
    peaks = CARDS[card] if card in CARDS else this_cpu(settings)
    plan = Plan(settings, Roofline(config, settings.plan, peaks, ranks, recompute))
    print("\n".join(table(plan, card)) + "\n")
    faults = list(plan.faults(shutil.disk_usage("runs" if Path("runs").is_dir() else ".").free))
    print("\n".join(faults) or "Everything fits: context, KV cache, micro-batches, pool, memory and disk.")
    if any(not fault.startswith("warning") for fault in faults):
        raise SystemExit(1)


if __name__ == "__main__":
    command(main)
