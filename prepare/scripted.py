"""A stand-in for Llama-3 that speaks by a script: `python -m prepare.scripted FOLDER` writes one in Meta's layout.

Rehearsals need a judge that writes verdicts without training. The blocks are random; embedding and head make a Markov
chain: each kind of token is a direction of the residual stream, which the head maps to the tokens that may follow. Each
completion, "**Task9:** some words", newline, "Score:3", serves as response, new task, judgment and comparison alike.
"""

import argparse
import math
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from model.chat import load_chat
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer import Tokenizer, load_tokenizer
from model.weights import COPIED, random_weights, save_pretrained
from prepare.layouts import META, config_document, tensor_names
from stages.command import UserError, command
from stages.files import write_json

# For each kind of token: its tokens, and the probabilities of the tokens that may follow.
Script = Sequence[tuple[Sequence[int], Mapping[int, float]]]

CERTAINTY = 20.0  # logit of the tokens that may follow; those of all others are about 0
SCORE_SHARE = 0.88  # share of the texts that end with a score; the others end with a winner
STOP = 1 / 16  # probability that a word is the last one of a text

LAYERS, SHARDS = 2, 2
SIZES = {"hidden_size": 128, "q_size": 128, "kv_size": 32, "intermediate_size": 448, "vocab_size": 128256}
PARAMS: dict[str, Any] = {"dim": 128, "n_layers": LAYERS, "n_heads": 8, "n_kv_heads": 2, "vocab_size": 128256}
PARAMS |= {"multiple_of": 32, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 500000.0}
SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": LAYERS, "head_dim": 16}
SMALL |= {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False}


def follow(embedding_vd: Tensor, head_vd: Tensor, script: Script) -> None:
    """Change embedding and head in place so that the model follows the script at temperature 1."""
    size = embedding_vd.shape[1]
    head_vd.zero_()
    for direction, (tokens, followers) in enumerate(script):
        embedding_vd[list(tokens)] = torch.eye(size)[direction].to(embedding_vd.dtype)
        for token, probability in followers.items():
            head_vd[token, direction] = (CERTAINTY + math.log(probability)) / math.sqrt(size)


def evenly(tokens: Sequence[int], share: float = 1.0) -> dict[int, float]:
    return dict.fromkeys(tokens, share / len(tokens))


def llama3_script(tokenizer: Tokenizer) -> Script:
    def tokens(*texts: str) -> list[int]:
        return [token for text in texts for [token] in [tokenizer.encode(text)]]

    common = [i for i in range(1000, 60000) if re.fullmatch(" [a-z]{4,9}", tokenizer.decode([i]))]
    words = random.Random(0).sample(common, 200)
    fixed = [[token] for token in tokens("\n\n", "**", "Task", "9", ":**")]
    [newline, score, colon, winner] = tokens("\n", "Score", ":", "Winner")
    values, winners = tokens(*map(str, range(6))), tokens(":A", ":B")
    end = tokenizer.control("<|eot_id|>")
    assert end is not None
    return [
        *((token, evenly(following)) for token, following in zip(fixed, [*fixed[1:], words], strict=True)),
        (words, evenly(words, 1 - STOP) | {newline: STOP}),
        ([newline], {score: SCORE_SHARE, winner: 1 - SCORE_SHARE}),
        ([score], {colon: 1.0}),
        ([colon], evenly(values)),
        ([winner], evenly(winners)),
        ([*values, *winners], {end: 1.0}),
    ]


def packaged_file(package: str, ending: str, advice: str) -> Path:
    """The file of an installed package whose path ends so. Raises `UserError` where it is missing."""
    try:
        [file] = [file for file in files(package) or [] if str(file).endswith(ending)]
    except (PackageNotFoundError, ValueError):
        raise UserError(f"{package} is not installed, or without its {ending}; {advice}") from None
    return Path(str(file.locate()))


def write_stand_in(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder}: exists already; name a new folder")
    advice = "pip install --no-deps llama-models==0.3.0"
    tokenizer = packaged_file("llama-models", "llama_models/llama3/tokenizer.model", advice)
    folder.mkdir(parents=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    write_json(folder / "params.json", PARAMS)
    generator = torch.Generator().manual_seed(0)
    weights, splits = {}, {}
    for name, (_, fields) in tensor_names(META, LAYERS).items():
        shape = [SIZES[field] for field in fields]
        whole = torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)
        weights[name] = whole.bfloat16()
        splits[name] = int(fields[0] == "hidden_size")  # ranks share columns of wo and w2, rows of other matrices
    follow(weights["tok_embeddings.weight"], weights["output.weight"], llama3_script(load_tokenizer(folder)))
    for shard in range(SHARDS):
        parts = {
            name: weight if weight.dim() == 1 else weight.chunk(SHARDS, splits[name])[shard].contiguous()
            for name, weight in weights.items()
        }
        torch.save(parts, folder / f"consolidated.{shard:02}.pth")


@torch.no_grad()
def write_speaker(folder: Path, source: Path, config: LlamaConfig) -> None:
    """Write a small model of the config's family with the tokenizer and the template of the model at `source`. Each
    part of its texts is a token that is added for it, so that any tokenizer will do."""
    shutil.copytree(source, folder, ignore=lambda _, names: [name for name in names if not name.startswith(COPIED)])
    backend = tokenizers.Tokenizer.from_file(str(file := folder / "tokenizer.json"))
    texts = ["**Task9:**", ".\n", "Score:", "Winner:", *(f" {value}." for value in (*range(6), "A", "B"))]
    texts += [f" {first}a{last}o" for first in "bdfgklmnrt" for last in "bdfgklmnrt"]
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in texts])
    backend.save(str(file))
    chat, vocabulary = load_chat(folder), backend.get_vocab()
    small = replace(config, **SMALL, vocab_size=max(vocabulary.values()) + 1)
    random_weights(model := Llama(small).bfloat16(), seed=0)
    weights, tokens = dict(model.named_parameters()), [vocabulary[text] for text in texts]
    [task, newline, score, winner], values, words = tokens[:4], tokens[4:12], tokens[12:]
    script: Script = [
        (chat.prompt_ids([{"role": "user", "content": "Hi"}])[-1:], {task: 1.0}),
        ([task], evenly(words)),
        (words, evenly(words, 1 - STOP) | {newline: STOP}),
        ([newline], {score: SCORE_SHARE, winner: 1 - SCORE_SHARE}),
        ([score], evenly(values[:6])),
        ([winner], evenly(values[6:])),
        (values, {chat.end: 1.0}),
    ]
    follow(weights["embed_tokens.weight"], weights["lm_head.weight"], script)
    write_json(folder / "config.json", config_document(small, {"eos_token_id": chat.end}, torch.bfloat16))
    save_pretrained(weights.items(), small, folder, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small stand-in for Llama-3-8B-Instruct in Meta's layout.")
    parser.add_argument("folder", type=Path)
    write_stand_in(folder := parser.parse_args().folder)
    print(folder)


if __name__ == "__main__":
    command(main)
