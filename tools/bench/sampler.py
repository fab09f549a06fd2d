"""Generation speed: `torchrun --nproc-per-node auto -m tools.bench.sampler --model DIR` prints JSON lines.

`tokens_per_second` counts new tokens only, over the whole time from text to text; it is the median run's. `first_token`
is the median, over the first rank's requests, of the seconds until the first token. `prefill_tokens` are the computed
tokens beyond one for each new token. `share_of_limit` is the arithmetic of all matrix products with weights (2
operations a weight and token computed) over what the machine reaches in one large product, which is measured in the
same minute: timings on shared machines can only be compared with one another.

As in a run's stages, each core of a CPU is a rank with one thread; each rank takes every n-th prompt.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from dpo.metrics import best_rate, product_flops
from kernels.int8 import Int8Weight, int8_linear
from model.chat import ChatFormat, load_chat
from model.dtype import generation_dtype
from model.llama import Llama
from model.weights import load_packed
from sampling.engine import Engine
from sampling.request import Request, Sampling
from sampling.worker import local_device
from stages.files import UserError, command
from tools.bench.workload import WORKLOAD, load_module
from tools.roofline import read_weights

Run = Callable[[Engine], int]
"""A workload on an engine; gives the number of new tokens."""


@dataclass
class Bench:
    """One rank's model, and its part of all measurements."""

    model: Llama
    chat: ChatFormat
    workload: ModuleType
    repeats: int
    limit: float
    """Operations a second that the machine reaches."""
    first_tokens: list[float] = field(default_factory=list)

    def texts(self, count: int) -> list[str]:
        """This rank's of the workload's first `count` prompts."""
        texts = self.workload.prompts(count)
        if len(texts) < count:
            raise UserError(f"{self.workload.__file__}: prompts({count}) gives {len(texts)}; let it give {count}")
        return texts[dist.get_rank() :: dist.get_world_size()]

    def complete(self, engine: Engine, texts: list[str], new_tokens: int, copies: int = 1) -> tuple[int, list[str]]:
        """New tokens, and the texts of `copies` completions of each user message, in order."""
        sampling = Sampling(max_new_tokens=new_tokens, **self.workload.SAMPLING)
        prompts = [self.chat.prompt_ids([{"role": "user", "content": text}]) for text in texts for _ in range(copies)]
        requests = [Request(str(i), ids, sampling, seed=i) for i, ids in enumerate(prompts)]
        ids = {completion.id: completion.ids for completion in engine.run(requests)}
        self.first_tokens += engine.first_token_seconds
        return sum(map(len, ids.values())), [self.chat.text(ids[request.id]) for request in requests]

    def flat(self, texts: list[str], new_tokens: int, copies: int = 1) -> Run:
        return lambda engine: self.complete(engine, texts, new_tokens, copies)[0]

    def loop(self, engine: Engine) -> int:
        loop, texts = self.workload.LOOP, self.texts(self.workload.LOOP["prompts"])
        first, answers = self.complete(engine, texts, loop["response_tokens"], loop["responses"])
        shown = [self.judged(texts[i // loop["responses"]], answer) for i, answer in enumerate(answers)]
        return first + self.complete(engine, shown, loop["judgment_tokens"], loop["judgments"])[0]

    def judged(self, prompt: str, response: str) -> str:
        return self.workload.JUDGE.replace("{prompt}", prompt).replace("{response}", response)

    def report(self, run: Run, max_num_seqs: int = 128, share_prefixes: bool = True, **names: Any) -> None:
        """Print the median of several runs, each with an empty cache."""
        rows, (blocks, head) = [], read_weights(self.model.config)
        for _ in range(self.repeats):
            self.first_tokens = []
            engine = Engine(
                self.model,
                num_kv_blocks=4096,
                block_size=16,
                max_num_batched_tokens=2048,
                max_num_seqs=-(-max_num_seqs // dist.get_world_size()),
                share_prefixes=share_prefixes,
            )
            sums(0.0)  # ranks start together
            started = time.perf_counter()
            new, computed = sums(run(engine), engine.computed_tokens)
            seconds = time.perf_counter() - started
            row = {
                "new_tokens": int(new),
                "computed_tokens": int(computed),
                "prefill_tokens": int(computed - new),
                "seconds": round(seconds, 2),
                "tokens_per_second": round(new / seconds, 1),
                "first_token": round(statistics.median(self.first_tokens or [0.0]), 3),
                "share_of_limit": round(2 * (blocks * computed + head * new) / seconds / self.limit, 3),
            }
            rows.append(row)
        if dist.get_rank() == 0:
            rows.sort(key=lambda row: row["tokens_per_second"])
            print(json.dumps(names | rows[len(rows) // 2]), flush=True)

    def all(self, only: str | None) -> None:
        """Both workloads; without prefix sharing; numbers of sequences decoded together; numbers of judgments N."""
        tokens, length = self.workload.FLAT["new_tokens"], self.workload.LOOP["judgment_tokens"]
        workloads = {"flat": self.flat(self.texts(self.workload.FLAT["prompts"]), tokens), "loop": self.loop}
        for name, run in workloads.items():
            if only in (None, name):
                self.report(run, workload=name)
        if only:
            return
        for name, run in workloads.items():
            self.report(run, share_prefixes=False, workload=name, ablation="sharing off")
        for batch in (1, 8, 64, 128):
            run = self.flat(self.texts(min(batch, 64)), tokens, -(-batch // 64))
            self.report(run, max_num_seqs=batch, workload="batch", batch=batch)
        judged = [self.judged(text, text) for text in self.texts(8)]
        for N in (1, 2, 4, 8, 16):
            self.report(self.flat(judged, length, N), workload="judgments", N=N)


def sums(*numbers: float) -> list[float]:
    """The sum over ranks of each number; every rank gets it when all have come here."""
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def machine_limit(device: torch.device, products: torch.dtype, size: int = 2048) -> float:
    """Operations a second in a large product; in int8 including the rounding of the input."""
    if products != torch.int8:
        return product_flops(device, products)
    x, weight = torch.randn(size, size), Int8Weight.of(torch.randn(size, size))
    return best_rate(lambda: int8_linear(x, weight), 2 * size**3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation speed, as JSON lines.")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--workload", type=Path, default=WORKLOAD)
    parser.add_argument("--only", choices=["flat", "loop"], help="one workload, and nothing else")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "int8"], default="auto")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median is printed")
    arguments = parser.parse_args()
    alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **alone)
    device, ranks = local_device(), dist.get_world_size()
    dtype = generation_dtype(arguments.dtype, device)
    torch.set_num_threads(ranks)  # the first rank measures the whole machine, while the others wait
    [limit] = sums(machine_limit(device, dtype) if dist.get_rank() == 0 else 0.0)
    torch.set_num_threads(1)
    if dist.get_rank() == 0:
        row = {"workload": "product", "dtype": str(dtype), "ranks": ranks, "gigaflops": round(limit / 1e9, 1)}
        print(json.dumps(row), flush=True)
    model, chat = load_packed(arguments.model, dtype, device), load_chat(arguments.model)
    Bench(model, chat, load_module(arguments.workload), arguments.repeats, limit).all(arguments.only)
    dist.destroy_process_group()


if __name__ == "__main__":
    command(main)
