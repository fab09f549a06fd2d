"""A stand-in for Llama-3 that speaks by a script: `python -m prepare.scripted FOLDER` writes one in Meta's layout.

Rehearsals of a run need a judge that writes verdicts without training. The stand-in's blocks are random; embedding and
head make it a Markov chain. Each kind of token is a direction of the residual stream, large beside what the blocks add,
and the head maps each kind to the tokens that may follow. So each completion has the form

    **Task9:** some words
    Score:3

(or `Winner:A`), which serves as response, new task, judgment and comparison alike, and means nothing.
"""

import argparse
import math
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.tokenizer import Tokenizer, load_tokenizer
from stages.files import UserError, command, write_json

Script = Sequence[tuple[Sequence[int], Mapping[int, float]]]
"""For each kind of token: its tokens, and the probabilities of the tokens that may follow."""

CERTAINTY = 20.0
"""Logit of the tokens that may follow; those of all others are about 0."""

PARAMS: dict[str, Any] = {
    "dim": 128,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 2,
    "vocab_size": 128256,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
"""A small params.json; four query heads share a key-value head, as in Llama-3-8B."""

SHARDS = 2
SCORE_SHARE = 0.88
"""Share of the texts that end with a score; the others end with a winner."""
WORDS = 200
STOP = 1 / 16
"""Probability that a word is the last one of a text."""


def follow(embedding_vd: Tensor, head_vd: Tensor, script: Script) -> None:
    """Change embedding and head in place so that the model follows the script at temperature 1."""
    size = embedding_vd.shape[1]
    head_vd.zero_()
    for direction, (tokens, followers) in enumerate(script):
        embedding_vd[list(tokens)] = torch.eye(size)[direction].to(embedding_vd.dtype)
        for token, probability in followers.items():
            head_vd[token, direction] = (CERTAINTY + math.log(probability)) / math.sqrt(size)


def llama3_script(tokenizer: Tokenizer) -> Script:
    """The stand-in's script in Llama-3's tokens; each position of the text has tokens of its own."""

    def token(text: str) -> int:
        [single] = tokenizer.encode(text)
        return single

    def evenly(tokens: Sequence[int], share: float = 1.0) -> dict[int, float]:
        return dict.fromkeys(tokens, share / len(tokens))

    texts = [(i, tokenizer.decode([i])) for i in range(1000, 60000)]
    words = random.Random(0).sample([i for i, text in texts if re.fullmatch(" [a-z]{4,9}", text)], WORDS)
    opening, mark, task, number, closed = (token(text) for text in ("\n\n", "**", "Task", "9", ":**"))
    newline, score, colon, winner = (token(text) for text in ("\n", "Score", ":", "Winner"))
    values, winners = [token(str(value)) for value in range(6)], [token(":A"), token(":B")]
    end = tokenizer.control("<|eot_id|>")
    assert end is not None
    return [
        ([opening], {mark: 1.0}),
        ([mark], {task: 1.0}),
        ([task], {number: 1.0}),
        ([number], {closed: 1.0}),
        ([closed], evenly(words)),
        (words, evenly(words, 1 - STOP) | {newline: STOP}),
        ([newline], {score: SCORE_SHARE, winner: 1 - SCORE_SHARE}),
        ([score], {colon: 1.0}),
        ([colon], evenly(values)),
        ([winner], evenly(winners)),
        ([*values, *winners], {end: 1.0}),
    ]


def packaged_tokenizer() -> Path:
    """Llama-3's tokenizer.model in the package llama-models. Raises `UserError` where it is missing."""
    try:
        models = [file for file in files("llama-models") or [] if str(file) == "llama_models/llama3/tokenizer.model"]
    except PackageNotFoundError:
        models = []
    if not models:
        raise UserError("llama-models is not installed; pip install --no-deps llama-models==0.3.0")
    return Path(str(models[0].locate()))


def write_stand_in(folder: Path) -> None:
    """Write `folder` in Meta's layout: consolidated.00.pth, consolidated.01.pth, params.json, tokenizer.model."""
    folder.mkdir(parents=True)
    shutil.copyfile(packaged_tokenizer(), folder / "tokenizer.model")
    write_json(folder / "params.json", PARAMS)
    weights = _weights(llama3_script(load_tokenizer(folder)))
    for shard in range(SHARDS):
        parts = {name: _part(name, tensor, shard) for name, tensor in weights.items()}
        torch.save(parts, folder / f"consolidated.{shard:02}.pth")


def _weights(script: Script) -> dict[str, Tensor]:
    """Whole tensors under Meta's names, bf16."""
    size, vocabulary = PARAMS["dim"], PARAMS["vocab_size"]
    keys = size * PARAMS["n_kv_heads"] // PARAMS["n_heads"]
    inner = PARAMS["multiple_of"] * math.ceil(PARAMS["ffn_dim_multiplier"] * 8 * size / 3 / PARAMS["multiple_of"])
    shapes = {"attention.wq": (size, size), "attention.wk": (keys, size), "attention.wv": (keys, size)}
    shapes |= {"attention.wo": (size, size), "feed_forward.w1": (inner, size), "feed_forward.w3": (inner, size)}
    shapes["feed_forward.w2"] = (size, inner)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    weights = {"tok_embeddings.weight": normal(vocabulary, size), "output.weight": normal(vocabulary, size)}
    follow(weights["tok_embeddings.weight"], weights["output.weight"], script)
    norms = ["norm.weight"]
    for layer in range(PARAMS["n_layers"]):
        weights |= {f"layers.{layer}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        norms += [f"layers.{layer}.{name}.weight" for name in ("attention_norm", "ffn_norm")]
    return weights | {name: torch.ones(size, dtype=torch.bfloat16) for name in norms}


def _part(name: str, tensor: Tensor, shard: int) -> Tensor:
    """A tensor's part in a shard: columns of wo and w2, rows of all other matrices, norms whole."""
    if tensor.dim() == 1:
        return tensor
    return tensor.chunk(SHARDS, dim=1 if name.endswith(("wo.weight", "w2.weight")) else 0)[shard].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small stand-in for Llama-3-8B-Instruct in Meta's layout.")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise UserError(f"{arguments.folder}: exists already; name a new folder")
    write_stand_in(arguments.folder)
    print(arguments.folder)


if __name__ == "__main__":
    command(main)
