"""Generation speed: `python -m tools.bench.sampler --model DIR` prints a JSON line for each workload and ablation.

`tokens_per_second` counts new tokens only, over the whole time from text to text; it is the median run's. `first_token`
is the median, over the first rank's requests, of the seconds until the first token. `prefill_tokens` are the computed
tokens beyond one for each new token. `share_of_limit` is the arithmetic of all matrix products with weights (2
operations a weight and token computed) over what the machine reaches in one large product, which is measured in the
same minute: timings on shared machines can only be compared with one another.

As in a run's stages, each core of a CPU is a rank with one thread; each rank takes every n-th prompt.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch

from dpo.metrics import best_rate, product_flops
from kernels.int8 import Int8Weight, int8_linear
from model.chat import ChatFormat, load_chat
from model.dtype import generation_dtype
from model.layers import Linear
from model.llama import Llama
from model.weights import load_packed
from sampling.engine import Engine
from sampling.request import Request, Sampling
from sampling.scheduler import Sequence
from sampling.worker import local_device
from stages.files import UserError, command
from tools.bench.workload import load_module


@dataclass
class Ranks:
    """This process among those that share a workload, and its means to meet the others."""

    rank: int
    size: int
    barrier: Barrier
    board: Any
    """Shared memory, `CELLS` numbers for each rank."""

    def sums(self, *numbers: float) -> list[float]:
        """The sum over ranks of each number; every rank must call this, and gets the same."""
        self.board[self.rank * CELLS : self.rank * CELLS + len(numbers)] = numbers
        self.barrier.wait()
        rows = [self.board[i * CELLS : i * CELLS + len(numbers)] for i in range(self.size)]
        self.barrier.wait()
        return [sum(column) for column in zip(*rows, strict=True)]

    def own(self, items: Any) -> Any:
        """This rank's part of a sequence."""
        return items[self.rank :: self.size]


CELLS = 2
"""Numbers that `Ranks.sums` takes at most."""


@dataclass
class Bench:
    """A model and its workload, measured with engines of different options."""

    ranks: Ranks
    model: Llama
    chat: ChatFormat
    workload: ModuleType
    num_kv_blocks: int
    max_num_batched_tokens: int
    repeats: int
    limit: float
    """Operations a second that the machine reaches."""
    layer_weights: int
    head_weights: int
    first_tokens: list[float] = field(default_factory=list)

    def engine(self, max_num_seqs: int = 128, share_prefixes: bool = True) -> "DrawTimedEngine":
        return DrawTimedEngine(
            self.model,
            num_kv_blocks=self.num_kv_blocks,
            block_size=16,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=-(-max_num_seqs // self.ranks.size),
            share_prefixes=share_prefixes,
        )

    def requests(self, texts: list[str], new_tokens: int, copies: int = 1) -> list[Request]:
        """`copies` requests for each user message."""
        sampling = Sampling(max_new_tokens=new_tokens, **self.workload.SAMPLING)
        prompts = [self.chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]
        return [
            Request(f"{i}/{copy}", ids, sampling, seed=copies * i + copy)
            for i, ids in enumerate(prompts)
            for copy in range(copies)
        ]

    def flat(self, engine: Engine) -> int:
        """Run this rank's part of `FLAT`; returns the number of new tokens."""
        flat = self.workload.FLAT
        texts = self.ranks.own(self.texts(flat["prompts"]))
        return self.complete(engine, self.requests(texts, flat["new_tokens"]))[0]

    def loop(self, engine: Engine) -> int:
        loop, responses = self.workload.LOOP, self.workload.LOOP["responses"]
        texts = self.ranks.own(self.texts(loop["prompts"]))
        first, answers = self.complete(engine, self.requests(texts, loop["response_tokens"], responses))
        shown = [
            self.workload.JUDGE.replace("{prompt}", texts[i // responses]).replace("{response}", answer)
            for i, answer in enumerate(answers)
        ]
        second, _ = self.complete(engine, self.requests(shown, loop["judgment_tokens"], loop["judgments"]))
        return first + second

    def texts(self, count: int) -> list[str]:
        texts = self.workload.prompts(count)
        if len(texts) < count:
            file = self.workload.__file__
            raise UserError(f"{file}: prompts({count}) gives only {len(texts)}; let it give {count}")
        return texts

    def complete(self, engine: Engine, requests: list[Request]) -> tuple[int, list[str]]:
        """New tokens, and the completions' texts in order."""
        ids = {completion.id: completion.ids for completion in engine.run(requests)}
        self.first_tokens += engine.first_token_seconds
        return sum(map(len, ids.values())), [self.chat.text(ids[request.id]) for request in requests]

    def count(self, engine: Engine, requests: list[Request]) -> int:
        """Run this rank's requests, which include all copies of a prompt; returns the number of new tokens."""
        prompts = {request.id: request.id.partition("/")[0] for request in requests}
        own = set(self.ranks.own(list(dict.fromkeys(prompts.values()))))
        return self.complete(engine, [request for request in requests if prompts[request.id] in own])[0]

    def measure(self, run: Callable[[Engine], int], **options: Any) -> dict[str, Any]:
        """The median of several runs, each with an empty cache."""
        runs = []
        for _ in range(self.repeats):
            engine, self.first_tokens = self.engine(**options), []
            self.ranks.barrier.wait()
            started = time.perf_counter()
            own_tokens = run(engine)
            self.ranks.barrier.wait()
            seconds = time.perf_counter() - started
            new_tokens, computed_tokens = map(int, self.ranks.sums(own_tokens, engine.computed_tokens))
            operations = 2 * (self.layer_weights * computed_tokens + self.head_weights * new_tokens)
            runs.append(
                {
                    "new_tokens": new_tokens,
                    "computed_tokens": computed_tokens,
                    "prefill_tokens": computed_tokens - new_tokens,
                    "seconds": round(seconds, 2),
                    "tokens_per_second": round(new_tokens / seconds, 1),
                    "first_token": round(statistics.median(self.first_tokens or [0.0]), 3),
                    "share_of_limit": round(operations / seconds / self.limit, 3),
                }
            )
        return sorted(runs, key=lambda row: row["tokens_per_second"])[len(runs) // 2]

    def report(self, **row: Any) -> None:
        if self.ranks.rank == 0:
            print(json.dumps(row), flush=True)

    def sampler(self, batch: int = 64) -> dict[str, Any]:
        """Seconds of a decode step of this rank's sequences, of its draw, and the draw's share."""
        engine = self.engine(max_num_seqs=batch)
        flat, batch = self.workload.FLAT, len(self.ranks.own(range(batch)))
        started = time.perf_counter()
        self.complete(engine, self.requests(self.texts(batch), flat["new_tokens"]))
        decoding = time.perf_counter() - started - max(engine.first_token_seconds)
        step = decoding / (flat["new_tokens"] - 1)
        draw = statistics.median(seconds for count, seconds in engine.draws if count == batch)
        return {"step_seconds": round(step, 4), "draw_seconds": round(draw, 4), "share": round(draw / step, 3)}


class DrawTimedEngine(Engine):
    """An engine that records each draw's number of sequences and seconds."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.draws: list[tuple[int, float]] = []

    def _draw(self, sequences: list[Sequence], logits_bv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        drawn = super()._draw(sequences, logits_bv)
        self.draws.append((len(sequences), time.perf_counter() - started))
        return drawn


def machine_limit(device: torch.device, products: torch.dtype, size: int = 2048) -> float:
    """Operations a second in a large product; in int8 including the rounding of the input."""
    if products != torch.int8:
        return product_flops(device, products)
    x, weight = torch.randn(size, size), Int8Weight.of(torch.randn(size, size))
    return best_rate(lambda: int8_linear(x, weight), 2 * size**3)


def ablations(bench: Bench) -> None:
    """Both workloads without prefix sharing, numbers of sequences decoded together, and numbers of judgments N."""
    for name, run in (("flat", bench.flat), ("loop", bench.loop)):
        bench.report(workload=name, ablation="sharing off", **bench.measure(run, share_prefixes=False))
    bench.report(workload="sampler", batch=64, vocabulary=bench.model.config.vocab_size, **bench.sampler(64))
    flat = bench.workload.FLAT
    requests = bench.requests(bench.texts(flat["prompts"]), flat["new_tokens"], 2)
    for batch in (1, 8, 64, 128):
        run = partial(bench.count, requests=requests[:: len(requests) // batch])
        bench.report(workload="batch", batch=batch, **bench.measure(run, max_num_seqs=batch))
    judged = [bench.workload.JUDGE.replace("{prompt}", text).replace("{response}", text) for text in bench.texts(8)]
    for copies in (1, 2, 4, 8, 16):
        run = partial(bench.count, requests=bench.requests(judged, bench.workload.LOOP["judgment_tokens"], copies))
        bench.report(workload="judgments", N=copies, **bench.measure(run))


def run_rank(ranks: Ranks, arguments: argparse.Namespace) -> None:
    """One rank's part of all measurements."""
    threads = max(arguments.threads // ranks.size, 1)
    torch.set_num_threads(arguments.threads)
    device = local_device()
    dtype = generation_dtype(arguments.dtype, device)
    limit = machine_limit(device, dtype) if ranks.rank == 0 else 0.0  # of the whole machine
    limit = ranks.sums(limit)[0]
    torch.set_num_threads(threads)
    model = load_packed(arguments.model, dtype, device)
    bench = Bench(
        ranks,
        model,
        load_chat(arguments.model),
        load_module(arguments.workload),
        arguments.num_kv_blocks,
        arguments.max_num_batched_tokens,
        arguments.repeats,
        limit,
        sum(part.in_features * part.out_features for part in model.layers.modules() if isinstance(part, Linear)),
        model.embed_tokens.weight.numel(),
    )
    bench.report(
        workload="product", dtype=str(dtype), ranks=ranks.size, threads=threads, gigaflops=round(limit / 1e9, 1)
    )
    bench.complete(bench.engine(), bench.requests(bench.texts(1), 4))  # warm
    for name, run in (("flat", bench.flat), ("loop", bench.loop)):
        if arguments.only in (None, name):
            bench.report(workload=name, **bench.measure(run))
    if arguments.only is None:
        ablations(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description="Generation speed, as JSON lines.")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face directory")
    parser.add_argument("--workload", type=Path, default=Path(__file__).parent / "workload.py")
    parser.add_argument("--only", choices=["flat", "loop"], help="one workload, and no ablations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all ranks")
    parser.add_argument("--ranks", type=int, help="default: one a thread on a CPU, one on a GPU")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "int8"], default="auto")
    parser.add_argument("--num-kv-blocks", type=int, default=4096)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median is printed")
    arguments = parser.parse_args()
    size = arguments.ranks or (1 if torch.cuda.is_available() else arguments.threads)
    context = multiprocessing.get_context("spawn")
    barrier, board = context.Barrier(size), context.Array("d", CELLS * size)
    started = {}
    for rank in range(size):
        run = partial(run_rank, Ranks(rank, size, barrier, board), arguments)
        process = context.Process(target=command, args=(run,), daemon=True)
        process.start()
        started[process.sentinel] = process
    while started:
        for sentinel in wait(list(started)):
            process = started.pop(cast(int, sentinel))
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)  # the others, daemons, end with this one


if __name__ == "__main__":
    command(main)
