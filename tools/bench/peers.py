"""The programs beside ours in `make bench-gpu --peers`, on the same tokens: vLLM generates, TRL trains."""

import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tools.bench import free


def generation(bench: Any) -> Iterator[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    options = {name: getattr(bench.settings.engine, name) for name in ("max_num_batched_tokens", "max_num_seqs")}
    engine = LLM(bench.settings.model.shape, load_format="dummy", skip_tokenizer_init=True, **options)
    given: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "ignore_eos": True, "detokenize": False}
    for stage, requests in bench.requests.items():
        prompts = [{"prompt_token_ids": request.ids} for request in requests]
        sampling = [SamplingParams(max_tokens=request.sampling.max_new_tokens, **given) for request in requests]
        for _ in range(2):
            engine.reset_prefix_cache()
            started = time.perf_counter()
            new = sum(len(done.outputs[0].token_ids) for done in engine.generate(prompts, sampling, use_tqdm=False))
            seconds = time.perf_counter() - started
        yield bench.generated(stage, "vLLM", new, seconds)


def training(bench: Any) -> Iterator[dict[str, Any]]:
    """Updates on the same pairs, one pair at a time, as the logits of several take much memory there."""
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize() if cuda else None
            seconds[-1] += time.perf_counter()

    last, cuda = bench.config.vocab_size - 1, bench.world.device.type == "cuda"
    words = Tokenizer(models.WordLevel({str(i): i for i in range(last)} | {"<end>": last}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    texts = [[" ".join(map(str, ids)) for ids in (p.prompt, *p.completions)] for p in bench.pairs]
    pairs = Dataset.from_list([{"prompt": f"{x} ", "chosen": y, "rejected": z} for x, y, z in texts])
    common = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(texts), "max_steps": bench.updates}
    common |= {"max_length": None, "precompute_ref_log_probs": True, "save_strategy": "no", "report_to": []}
    common |= {"bf16": cuda, "use_cpu": not cuda, "disable_tqdm": True, "logging_strategy": "no"}
    for name in ("full", "recompute", "LoRA"):
        adapters, seconds = LoraConfig(r=16, target_modules="all-linear") if name == "LoRA" else None, list[float]()
        shape = AutoConfig.from_pretrained(bench.settings.model.shape)
        shape.num_hidden_layers = bench.shape(name).num_hidden_layers
        with bench.world.device:
            model = AutoModelForCausalLM.from_config(shape, dtype=bench.dtype if adapters else torch.float32)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
        rest = {"train_dataset": pairs, "processing_class": tokenizer, "peft_config": adapters, "callbacks": [Clock()]}
        with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            given = DPOConfig(folder, gradient_checkpointing=name == "recompute", **common)
            DPOTrainer(model, args=given, **rest).train()
        yield bench.trained(name, "TRL", seconds)
        del model
        free()


PROGRAMS = {"generation": (generation, ["vllm"]), "training": (training, ["trl", "peft"])}


def rows(part: str, bench: Any) -> Iterator[dict[str, Any]]:
    """The other program's rows of a part, or one that says what is missing."""
    free()
    compute, packages = PROGRAMS.get(part, (lambda bench: (), []))
    if all(map(find_spec, packages)):
        yield from compute(bench)
    else:
        yield {part: "skipped", "reason": f"not installed: pip install {' '.join(packages)}"}
