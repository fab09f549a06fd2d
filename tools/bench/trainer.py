"""Training speed: `python -m tools.bench.trainer --model DIR` prints a JSON line of DPO on 32 pairs in batches of 4.

`pairs_per_second` is over the reference's pass, with loading, and all updates; `peak_memory_mib` is the process's;
`tokens_per_second` counts the computed tokens of both. `share_of_limit` is the arithmetic of forward, backward and
reference pass over what the machine reaches in one large product, which is measured in the same minute.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dpo.checkpoint import Progress
from dpo.data import read_examples
from dpo.metrics import METRICS, forward_flops, peak_memory_mib, product_flops
from dpo.packing import micro_batches
from dpo.parallel import World, distributed, load_sharded, sharded_model
from dpo.reference import reference_logprob
from dpo.trainer import Trainer, make_optimizer
from model.chat import ChatFormat, load_chat
from model.config import LlamaConfig
from model.dtype import training_dtype
from stages.files import command, read_jsonl, write_jsonl
from stages.settings import Dpo, EngineOptions, Iteration, Model, Respond, Settings, TrainerOptions
from tools.bench.workload import load_module


def tokenized(pairs: list[dict[str, str]], chat: ChatFormat) -> list[dict[str, Any]]:
    """Pairs of texts as the trainer's records."""
    return [
        {
            "id": str(i),
            "prompt_ids": chat.prompt_ids([{"role": "user", "content": pair["prompt"]}]),
            "chosen_ids": chat.completion_ids(pair["chosen"]),
            "rejected_ids": chat.completion_ids(pair["rejected"]),
        }
        for i, pair in enumerate(pairs)
    ]


def measure(world: World, model_dir: Path, pairs: Path, settings: Settings, work: Path) -> dict[str, Any]:
    """One epoch of DPO on a file of pairs, with the reference's pass."""
    config, dtype = LlamaConfig.load(model_dir), training_dtype(settings.model.dtype, world.device)
    examples = read_examples([pairs], "dpo", config.vocab_size)
    limit = product_flops(world.device, dtype)
    model = sharded_model(config, world, dtype, settings.trainer)
    started = time.perf_counter()
    reference_e2 = reference_logprob(
        world, model, examples, model_dir, "", work / "reference", settings.trainer, dtype, settings.model.attention
    )
    reference_seconds = time.perf_counter() - started
    load_sharded(model, model_dir)
    trainer = Trainer(
        stage="dpo",
        settings=settings,
        world=world,
        model=model,
        optimizer=make_optimizer(model, settings.dpo),
        examples=examples,
        reference_e2=reference_e2,
        progress=Progress("bench"),
        work=work,
        source=model_dir,
        export_epoch=None,
        peak_flops=limit,
    )
    trainer.run()
    steps = world.agree(lambda: [row for row in read_jsonl(work / METRICS) if row["split"] == "train"])
    seconds = reference_seconds + sum(row["seconds"] for row in steps)
    batches = micro_batches(examples, range(len(examples)), settings.trainer)
    reference_flops = sum(forward_flops(config, batch) for batch in batches)
    flops = reference_flops + sum(row["mfu"] * row["seconds"] for row in steps) * limit * world.size
    tokens = sum(batch.tokens for batch in batches) + sum(row["tokens"] for row in steps)
    return {
        "pairs": len(examples),
        "seconds": round(seconds, 2),
        "reference_seconds": round(reference_seconds, 2),
        "pairs_per_second": round(len(examples) / seconds, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_mib": round(peak_memory_mib(world.device)),
        "share_of_limit": round(flops / seconds / (limit * world.size), 3),
        "limit_gigaflops": round(limit / 1e9, 1),
        "limit_pairs_per_second": round(len(examples) / flops * limit * world.size, 3),
        "dtype": str(dtype).removeprefix("torch."),
        "ranks": world.size,
        "last_loss": steps[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed, as a JSON line.")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--pairs", type=Path, default=Path(__file__).parent / "workload.py", help="file with pairs()")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--tokens-per-microbatch", type=int, default=4096)
    parser.add_argument("--no-sharing", action="store_true", help="compute a pair's prompt twice")
    parser.add_argument("--compile", action="store_true", help="torch.compile each block")
    arguments = parser.parse_args()
    settings = Settings(
        name="bench",
        model=Model(path=str(arguments.model), dtype=arguments.dtype),
        respond=Respond(prompts="", prompts_per_iteration=1),
        iteration=[Iteration()],
        engine=EngineOptions(threads=arguments.threads),
        dpo=Dpo(epochs=1, batch_size=4, learning_rate=5e-6, held_out=0.0),
        trainer=TrainerOptions(arguments.tokens_per_microbatch, not arguments.no_sharing, compile=arguments.compile),
    )
    with tempfile.TemporaryDirectory() as folder, distributed(arguments.threads) as world:
        work = Path(folder)
        pairs = load_module(arguments.pairs).pairs()
        write_jsonl(work / "pairs.jsonl", tokenized(pairs, load_chat(arguments.model)))
        row = measure(world, arguments.model, work / "pairs.jsonl", settings, work)
        if world.first:
            print(json.dumps({"workload": "dpo"} | row), flush=True)


if __name__ == "__main__":
    command(main)
