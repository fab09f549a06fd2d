"""Generation speed: `torchrun --nproc-per-node auto -m tools.bench.sampler --model DIR` prints JSON lines.

`tokens_per_second` counts new tokens, over the whole time from text to text; it is the median run's. `prefill_tokens`
are the computed tokens beyond one a new token. `share_of_limit`: operations of all products with weights over those of
one large product in the same time, measured in the same minute, since timings on shared machines say little alone. As
in a run's stages, each core of a CPU is a rank with one thread; each rank takes every n-th prompt.
"""

import json
import time
from dataclasses import dataclass
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
from stages.command import UserError, arguments, command
from stages.shards import local_device
from tools.bench import WORKLOAD, load_module

ENGINE: dict[str, Any] = {"num_kv_blocks": 4096, "block_size": 16, "max_num_batched_tokens": 2048}
SEQUENCES = 128  # decoded together, over all ranks
PARTS = ("flat", "loop")  # of a workload


@dataclass
class Bench:  # one rank's model and its part of all measurements
    model: Llama
    chat: ChatFormat
    workload: Any  # the module
    repeats: int
    limit: float  # operations a second that the machine reaches
    new_tokens: int = 0  # of the current run

    def texts(self, count: int) -> list[str]:
        """This rank's of the workload's first `count` prompts."""
        texts = self.workload.prompts(count)
        if len(texts) < count:
            raise UserError(f"{self.workload.__file__}: prompts({count}) gives {len(texts)}; let it give {count}")
        return texts[dist.get_rank() :: dist.get_world_size()]

    def complete(self, texts: list[str], new_tokens: int, copies: int, engine: Engine) -> list[str]:
        """The texts of `copies` completions of each user message, in order."""
        sampling = Sampling(max_new_tokens=new_tokens, **self.workload.SAMPLING)
        prompts = [self.chat.prompt_ids([{"role": "user", "content": text}]) for text in texts for _ in range(copies)]
        requests = [Request(str(i), ids, sampling, seed=i) for i, ids in enumerate(prompts)]
        done = {completion.id: completion.ids for completion in engine.run(requests)}
        self.new_tokens += sum(map(len, done.values()))
        return [self.chat.text(done[request.id]) for request in requests]

    def loop(self, engine: Engine) -> None:
        """Responses, and judgments of them."""
        loop, texts = self.workload.LOOP, self.texts(self.workload.LOOP["prompts"])
        answers = self.complete(texts, loop["response_tokens"], loop["responses"], engine)
        asked = [self.workload.JUDGE.replace("{prompt}", text) for text in texts for _ in range(loop["responses"])]
        shown = [judge.replace("{response}", answer) for judge, answer in zip(asked, answers, strict=True)]
        self.complete(shown, loop["judgment_tokens"], loop["judgments"], engine)

    def flat(self, engine: Engine) -> None:
        """Responses alone."""
        flat = self.workload.FLAT
        self.complete(self.texts(flat["prompts"]), flat["new_tokens"], 1, engine)

    def report(self, part: str, sharing: bool) -> None:
        """Print the median of several runs of a part, each with an empty cache."""
        rows, config, each = list[dict[str, float]](), self.model.config, -(-SEQUENCES // dist.get_world_size())
        for _ in range(self.repeats):
            self.new_tokens = 0
            engine = Engine(self.model, **ENGINE, max_num_seqs=each, share_prefixes=sharing)
            sums(0.0)  # ranks start together
            started = time.perf_counter()
            getattr(self, part)(engine)
            new, computed = sums(self.new_tokens, engine.computed_tokens)
            seconds = time.perf_counter() - started
            rate = 2 * (config.block_weights * computed + config.head_weights * new) / seconds
            row = {"new_tokens": int(new), "computed_tokens": int(computed), "prefill_tokens": int(computed - new)}
            speeds = {"tokens_per_second": round(new / seconds, 1), "share_of_limit": float(f"{rate / self.limit:.3g}")}
            rows.append(row | {"seconds": round(seconds, 2)} | speeds)
        rows.sort(key=lambda row: row["tokens_per_second"])
        names = {"workload": part} | ({} if sharing else {"ablation": "sharing off"})
        say(names | rows[len(rows) // 2])


def say(row: dict[str, Any]) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(row), flush=True)


def sums(*numbers: float) -> list[float]:
    """The sum over ranks of each number; every rank gets it when all have come here."""
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def machine_limit(device: torch.device, products: torch.dtype) -> float:
    """Operations a second in a large product; in int8 including the rounding of the input."""
    if products != torch.int8:
        return product_flops(device, products)
    x, weight = torch.randn(2048, 2048), Int8Weight.of(torch.randn(2048, 2048))
    return best_rate(lambda: int8_linear(x, weight), 2 * 2048**3)


def main() -> None:
    only = {"choices": PARTS, "help": "one workload, and nothing else"}
    repeats = {"type": int, "default": 3, "help": "runs, of which the median is printed; default: 3"}
    given = arguments(__doc__, "model", workload=WORKLOAD, only=only, repeats=repeats)
    dist.init_process_group("gloo")
    device, ranks = local_device(), dist.get_world_size()
    dtype = generation_dtype("auto", device)
    torch.set_num_threads(ranks)  # the first rank measures the whole machine, while the others wait
    [limit] = sums(machine_limit(device, dtype) if dist.get_rank() == 0 else 0.0)
    torch.set_num_threads(1)
    say({"workload": "product", "dtype": str(dtype), "ranks": ranks, "gigaflops": round(limit / 1e9, 1)})
    model, chat = load_packed(given.model, dtype, device), load_chat(given.model)
    bench = Bench(model, chat, load_module(given.workload), given.repeats, limit)
    for sharing in [True] if given.only else [True, False]:
        for part in [given.only] if given.only else PARTS:
            bench.report(part, sharing)
    dist.destroy_process_group()


if __name__ == "__main__":
    command(main)
