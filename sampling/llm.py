"""The engine's front door, for people and notebooks:

llm = LLM("models/smollm2-135m-instruct")
print(llm.chat([{"role": "user", "content": "Name a fruit."}], SamplingParams(temperature=0.8, seed=1))[0].text)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.chat import ChatFormat, Message, load_chat, load_stop_ids
from model.dtype import generation_dtype
from model.llama import Llama
from model.tokenizer import load_tokenizer
from model.weights import load_packed
from sampling.engine import Engine
from sampling.request import FinishReason, Request, Sampling
from stages.command import UserError

BOS = ("<|begin_of_text|>", "<s>")  # names of beginning-of-sequence tokens
Messages = Sequence[Message]


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # 1 is the whole distribution
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        warm = self.temperature == 0 or 1e-3 <= self.temperature < float("inf")
        if not warm or not 0 <= self.top_p <= 1 or self.max_tokens < 1:
            rule = "temperature must be 0 or at least 0.001, top_p from 0 to 1, max_tokens at least 1"
            raise UserError(f"{self}: {rule}")


Params = SamplingParams | Sequence[SamplingParams]


@dataclass(frozen=True)
class Output:
    text: str
    token_ids: list[int]  # the text's, and the stop token
    finish_reason: FinishReason


class LLM:
    """A model with its tokenizer and an engine."""

    def __init__(self, path: Path | str, dtype: str = "auto", device: str | None = None, **engine_options: Any):
        """`path`: a Hugging Face directory; `device`: CUDA where there is one; `engine_options`: see `Engine`."""
        self.path, self.tokenizer = Path(path), load_tokenizer(path)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_packed(path, generation_dtype(dtype, place), place)
        options: dict[str, Any] = {"block_size": 16, "max_num_batched_tokens": 2048, "max_num_seqs": 128}
        options |= {"num_kv_blocks": _num_kv_blocks(model, engine_options.get("block_size", 16))} | engine_options
        self.engine = Engine(model, **options)
        try:  # before any text is encoded, since a chat format has tokens that no text is encoded to
            self.chat_format: ChatFormat | UserError = load_chat(self.path, self.tokenizer)
        except UserError as error:  # a base model has none
            self.chat_format = error
            self.tokenizer.reserve("")

    def generate(self, prompts: Sequence[str], params: Params) -> list[Output]:
        """Continue raw texts, each after a BOS where the vocabulary has one. Prompt i draws with seed `params.seed` +
        i, or with params of its own. Raises `UserError` for an empty prompt."""
        if isinstance(prompts, str):
            raise UserError("generate: prompts is a text; pass a list of texts")
        bos = [token for token in map(self.tokenizer.control, BOS) if token is not None][:1]
        ids = [bos + self.tokenizer.encode(prompt) for prompt in prompts]
        return self._complete(ids, params, load_stop_ids(self.path))

    def chat(self, messages: Messages | Sequence[Messages], params: Params) -> list[Output]:
        """Answer one conversation, or each of several, in the model's chat format; seeds as in `generate`."""
        if isinstance(self.chat_format, UserError):
            raise self.chat_format
        conversations: Any = [messages] if messages and isinstance(messages[0], dict) else messages
        ids = [self.chat_format.prompt_ids(conversation) for conversation in conversations]
        return self._complete(ids, params, self.chat_format.stop_ids)

    def _complete(self, prompts: list[list[int]], params: Params, stop_ids: frozenset[int]) -> list[Output]:
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=params.seed + i) for i in range(len(prompts))]
        if len(params) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(params)} params; pass one for all, or one for each")
        if [] in prompts:
            raise UserError(f"prompt {prompts.index([])} is empty; the model needs a token to continue")
        requests = [
            Request(str(i), ids, Sampling(own.temperature, own.top_p, own.max_tokens, stop_ids), own.seed)
            for i, (ids, own) in enumerate(zip(prompts, params, strict=True))
        ]
        completions = sorted(self.engine.run(requests), key=lambda completion: int(completion.id))
        texts = (self.tokenizer.decode(c.ids[:-1] if c.finish_reason == "stop" else c.ids) for c in completions)
        return [Output(text, c.ids, c.finish_reason) for text, c in zip(texts, completions, strict=True)]


def _num_kv_blocks(model: Llama, block_size: int) -> int:
    """Blocks of the KV cache: on CUDA they fill 80% of the free memory; a CPU's take memory only once written."""
    config, weight = model.config, model.embed_tokens.weight
    if not weight.is_cuda:
        return 4096
    size = 2 * config.num_hidden_layers * config.kv_size * block_size * weight.dtype.itemsize
    return int(0.8 * torch.cuda.mem_get_info(weight.device)[0] / size)
