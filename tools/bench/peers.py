"""The programs beside ours in `make bench-gpu --peers`, on the same tokens: vLLM generates, TRL trains."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from model.config import LlamaConfig
from prepare.layouts import config_document
from stages.files import write_json
from tools.bench import free


@contextmanager
def folder_of(config: LlamaConfig, dtype: torch.dtype) -> Iterator[str]:
    """A model's folder without weights."""
    ends = {"bos_token_id": 0, "eos_token_id": config.vocab_size - 1}
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", config_document(config, ends, dtype))
        yield folder


def generation(bench: Any) -> Iterator[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    options = {name: getattr(bench.settings.engine, name) for name in ("max_num_batched_tokens", "max_num_seqs")}
    with folder_of(bench.config, bench.dtype) as folder:
        engine = LLM(folder, load_format="dummy", skip_tokenizer_init=True, **options)
        for stage, requests in bench.requests.items():
            prompts = [{"prompt_token_ids": request.ids} for request in requests]
            given: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "ignore_eos": True, "detokenize": False}
            sampling = [SamplingParams(max_tokens=r.sampling.max_new_tokens, **given) for r in requests]
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
        with folder_of(bench.shape(name), bench.dtype) as folder:
            kind, extra = AutoConfig.from_pretrained(folder), {"peft_config": adapters, "callbacks": [Clock()]}
            with bench.world.device:
                model = AutoModelForCausalLM.from_config(kind, dtype=bench.dtype if adapters else torch.float32)
            extra["processing_class"] = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
            given = DPOConfig(folder, gradient_checkpointing=name == "recompute", **common)
            DPOTrainer(model, args=given, train_dataset=pairs, **extra).train()
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
