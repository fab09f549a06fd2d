"""Training speed: `python -m tools.bench.trainer --model DIR` prints a JSON line of DPO on 32 pairs in batches of 4.

Seconds and tokens are those of the reference's pass, with loading, and of all updates; `share_of_limit` is the
arithmetic of both over what the machine reaches in one large product, which is measured in the same minute.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dpo.checkpoint import Progress
from dpo.data import Example
from dpo.metrics import METRICS, forward_flops, peak_memory_mib, product_flops
from dpo.packing import micro_batches
from dpo.parallel import World, distributed, load_sharded, sharded_model
from dpo.reference import reference_logprob
from dpo.trainer import Trainer, make_optimizer
from model.chat import load_chat
from model.config import LlamaConfig
from model.dtype import training_dtype
from stages.command import arguments, command
from stages.files import read_jsonl
from stages.settings import Dpo, EngineOptions, Iteration, Model, Respond, Settings
from tools.bench import WORKLOAD, load_module


def read_pairs(path: Path, model: Path) -> list[Example]:
    """The pairs that a workload's file makes, as the trainer's examples."""
    chat, examples = load_chat(model), list[Example]()
    for row in load_module(path).pairs():
        answers = (chat.completion_ids(row["chosen"]), chat.completion_ids(row["rejected"]))
        prompt = chat.prompt_ids([{"role": "user", "content": row["prompt"]}])
        examples.append(Example(str(len(examples)), prompt, answers))
    return examples


def measure(world: World, pairs: list[Example], settings: Settings, work: Path) -> dict[str, Any]:
    """One epoch of DPO, with the reference's pass, on one rank."""
    folder, options = Path(settings.model.path), settings.trainer
    config, dtype = LlamaConfig.load(folder), training_dtype(settings.model.dtype, world.device)
    limit, model = product_flops(world.device, dtype), sharded_model(config, world, dtype, options)
    started = time.perf_counter()
    reference_e2 = reference_logprob(world, model, pairs, folder, "", work / "reference", settings)
    seconds = time.perf_counter() - started
    load_sharded(model, folder)
    optimizer, progress = make_optimizer(model, settings.dpo), Progress("bench")
    Trainer("dpo", settings, world, model, optimizer, pairs, reference_e2, progress, work, folder, None, limit).run()
    steps = [row for row in read_jsonl(work / METRICS) if row["split"] == "train"]
    batches = micro_batches(pairs, range(len(pairs)), options)
    flops, tokens = sum(forward_flops(config, batch) for batch in batches), sum(batch.tokens for batch in batches)
    for step in steps:
        seconds, tokens = seconds + step["seconds"], tokens + step["tokens"]
        flops += step["mfu"] * step["seconds"] * limit
    row: dict[str, Any] = {"workload": "dpo", "pairs": len(pairs), "seconds": round(seconds, 2)}
    row |= {"pairs_per_second": round(len(pairs) / seconds, 3), "tokens": tokens}
    row |= {"tokens_per_second": round(tokens / seconds, 1), "peak_memory_mib": round(peak_memory_mib(world.device))}
    row |= {"share_of_limit": float(f"{flops / seconds / limit:.3g}"), "dtype": str(dtype).removeprefix("torch.")}
    return row | {"last_loss": steps[-1]["loss"]}


def main() -> None:
    given, threads = arguments(__doc__, "model", pairs=WORKLOAD), torch.get_num_threads()
    model, dpo = Model(str(given.model)), Dpo(epochs=1, batch_size=4, held_out=0.0)
    settings = Settings("bench", model, Respond(1), [Iteration()], engine=EngineOptions(threads), dpo=dpo)
    pairs = read_pairs(given.pairs, given.model)
    with tempfile.TemporaryDirectory() as folder, distributed(threads) as world:
        print(json.dumps(measure(world, pairs, settings, Path(folder))), flush=True)


if __name__ == "__main__":
    command(main)
