"""What a run will cost and whether it will fit, estimated before it starts.

    python -m tools.plan --config configs/llama3-8b-instruct.toml --gpus 8 --gpu h100
    python -m tools.plan --config configs/smollm2-135m.toml

The engine's scheduler runs typical shards and the trainer packs typical batches, without weights and without a GPU;
lengths and yields are those of `[plan]` in the config. A step's time comes from the machine's roofline: a GPU's by its
data sheet, this CPU's by a large product and a large copy. Exit code 0: everything fits; 1: something will not.
"""

import argparse
import json
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.config import LlamaConfig
from prepare.seed_model import prepare
from stages.files import UserError, command
from stages.settings import Settings, load_settings
from tools.planning.checks import checks, free_disk, memory
from tools.planning.requests import Requests
from tools.planning.roofline import CARDS, Roofline, this_cpu
from tools.planning.room import disk, memory_uses
from tools.planning.stages import PlannedRun
from tools.planning.texts import chat_format

COUNTED = (
    "prompt: all tokens of all prompts (of training, one epoch's); computed: shared prefixes once. GPU-hours: GPUs are "
    "held from a stage's start to its end. Training writes an export of 2 bytes a parameter after each epoch, or one "
    "in all where the epoch is set or nothing is held out, and a state of 12 after each epoch but the last, or every "
    "trainer.save_every steps."
)

TIMES = (
    "A step of generation takes the longer of its operations and its bytes, at the utilisations above, and "
    "step_milliseconds; a micro-batch of training the longer of its operations (3 forward passes, 4 with activation "
    "checkpointing) and of 8 bytes a parameter sent over the links between GPUs, at bandwidth_utilisation. "
    "start_seconds also covers hashing a stage's inputs: of a seed without a manifest 2 bytes a parameter, in every "
    "stage that starts from it."
)
CPU_PARAMETERS = 1e9
"""Parameters at most of a model that is planned for a CPU."""


def plan(settings: Settings, config: LlamaConfig, machine: Roofline, ranks: int) -> PlannedRun:
    """The run that `settings` describe, on `ranks` ranks of a machine."""
    chat = chat_format(Path(settings.model.path), config.vocab_size)
    return PlannedRun(settings, config, machine, Requests(settings, chat), chat, ranks).iterate()


def report(run: PlannedRun, card: str, folder: Path) -> dict[str, Any]:
    """The plan as plain values: stages, totals, memory, disk, pairs, assumptions, checks. Sizes are in bytes."""
    settings, config = run.settings, run.config
    memory_parts, results = {}, list(checks(run))
    for use, parts, change in memory_uses(run):
        memory_parts[use] = parts
        results.append(memory(sum(parts.values()), run.machine.card.memory, f"{use} on a {card}", change))
    space = disk(run)
    results.append(free_disk(sum(space.values()), shutil.disk_usage(folder).free, folder))
    return {
        "name": settings.name,
        "parameters": config.parameter_count(),
        "gpu": card,
        "ranks": run.ranks,
        "stages": [asdict(stage) | {"rank_hours": stage.rank_hours} for stage in run.stages],
        "seconds": sum(stage.seconds for stage in run.stages),
        "rank_hours": sum(stage.rank_hours for stage in run.stages),
        "pairs": [{"actor": actor, "judge": judge} for actor, judge in run.pairs],
        "memory": memory_parts,
        "disk": space,
        "assumptions": asdict(settings.plan) | {"characters_per_token": run.requests.texts.characters},
        "machine": run.machine.stated(),
        "checks": [asdict(check) for check in results],
    }


def table(document: dict[str, Any]) -> str:
    """A `report` as text for people."""
    cpu = document["gpu"] == "cpu"
    machine = "this machine's CPU" if cpu else f"{document['ranks']} x {document['gpu']}"
    lines = [f"{document['name']}: {document['parameters'] / 1e9:.2f} billion parameters on {machine}", ""]
    columns = ("requests", "prompt", "computed", "new", "CPU-hours" if cpu else "GPU-hours", "time")
    lines.append(f"{'stage':20}" + "".join(f"{column:>11}" for column in columns))
    for row in document["stages"]:
        tokens = "".join(f"{_count(row[key]):>11}" for key in ("prompt_tokens", "computed_tokens", "new_tokens"))
        hours = f"{row['rank_hours']:>11.2f}{_time(row['seconds']):>11}"
        requests = f"{row['requests']:,}" if row["requests"] else "-"
        lines.append(f"{row['name']:20}{requests:>11}{tokens}{hours}")
    lines.append(f"{'in all':64}{document['rank_hours']:>11.2f}{_time(document['seconds']):>11}")
    parts = (f"{name} {hours:.1f}" for name, hours in _by_part(document["stages"]).items())
    lines += [*_wrapped(f"{columns[-2]} of each part", ", ".join(parts)), ""]
    if document["pairs"]:
        pairs = (f"iter{t} {row['actor']} actor, {row['judge']} judge" for t, row in enumerate(document["pairs"], 1))
        lines += _wrapped("pairs expected", "; ".join(pairs))
    for use, parts in (document["memory"] | {"disk": document["disk"]}).items():
        title = "disk" if use == "disk" else f"{use}, memory a {'machine' if cpu else 'GPU'}"
        lines += _wrapped(title, f"{_sizes(parts)}; in all {sum(parts.values()) / 1e9:.1f} GB")
    lines += [
        "",
        *_wrapped("assumed ([plan])", _listed(document["assumptions"])),
        *_wrapped("machine", _listed(document["machine"])),
    ]
    lines += [*_wrapped("counted", f"{COUNTED} {TIMES}"), ""]
    for check in document["checks"]:
        change = f": {check['change']}" if check["change"] else ""
        lines += textwrap.wrap(f"{check['status']:14}{check['what']}{change}", 118, subsequent_indent=" " * 14)
    return "\n".join(lines)


def _by_part(stages: list[dict[str, Any]]) -> dict[str, float]:
    """Hours of the pool, of SFT and of each iteration."""
    hours: dict[str, float] = {}
    for row in stages:
        part = row["name"].split("/")[0]
        hours[part] = hours.get(part, 0.0) + row["rank_hours"]
    return hours


def _wrapped(title: str, text: str) -> list[str]:
    return textwrap.wrap(f"{title}: {text}", 118, subsequent_indent="  ", break_long_words=False)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return " ".join(f"{x:.3g}" for x in value) if isinstance(value, list | tuple) else f"{value:.4g}"


def _sizes(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts.items())


def _count(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f}" if count else "-"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def choose_machine(arguments: argparse.Namespace, settings: Settings, config: LlamaConfig) -> tuple[Roofline, str, int]:
    """The machine, its name and the number of ranks.

    Raises `UserError` for an unknown GPU, for a number of GPUs below 1 and for a model too large for a CPU.
    """
    card = arguments.gpu or ("cpu" if arguments.gpus is None else "h100")
    if card == "cpu":
        if arguments.gpus is not None:
            raise UserError(f"--gpus {arguments.gpus}: a CPU has none; name a GPU with --gpu, or leave --gpus out")
        if config.parameter_count() > CPU_PARAMETERS:
            raise UserError(
                f"{arguments.config}: {config.parameter_count() / 1e9:.1f} billion parameters are too many for a CPU; "
                f"plan for GPUs: make plan CONFIG={arguments.config} GPUS={settings.nproc_per_node} GPU=h100"
            )
        figures, ranks = this_cpu(settings), settings.nproc_per_node
    elif card not in CARDS:
        raise UserError(f"--gpu {card}: unknown; choose cpu, {', '.join(CARDS)}")
    else:
        figures, ranks = CARDS[card], settings.nproc_per_node if arguments.gpus is None else arguments.gpus
    if ranks < 1:
        raise UserError(f"--gpus {ranks}: must be at least 1")
    recompute = settings.trainer.activation_checkpointing
    return Roofline(config, settings.plan, figures, ranks, recompute), card, ranks


def main() -> None:
    parser = argparse.ArgumentParser(description="What a run will cost, and whether it will fit.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--gpus", type=int, help="GPUs in all; default: the config's nproc_per_node")
    parser.add_argument("--gpu", help=f"cpu, {', '.join(CARDS)}; default: h100 with --gpus, else cpu")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    settings = load_settings(arguments.config)
    if settings.model.prepare:
        prepare(settings.model)
    config = LlamaConfig.load(settings.model.shape)
    machine, card, ranks = choose_machine(arguments, settings, config)
    folder = Path("runs") if Path("runs").is_dir() else Path(".")
    document = report(plan(settings, config, machine, ranks), card, folder)
    print(json.dumps(document, indent=2) if arguments.json else table(document))
    if any(check["status"] == "will not fit" for check in document["checks"]):
        raise SystemExit(1)


if __name__ == "__main__":
    command(main)
