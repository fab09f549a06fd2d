"""A stand-in for Llama-3 that speaks by a script: `python -m prepare.scripted FOLDER` writes one in Meta's layout.

For rehearsals of a run, whose judge must utter verdicts though nobody has taught it. Its blocks are random; embedding
and head make it a Markov chain: a token's kind is a direction of the residual stream, large beside what the blocks add,
and the head answers to each kind with what may follow. So all that it says has the form

    **Task9:** some words
    Score:3

(or `Winner:A`), which serves as a response, a new task, a judgment, a comparison alike, and means nothing.
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
"""Kinds of tokens: the tokens, and what may follow them with which probability."""

CERTAINTY = 20.0
"""Logit of what follows a token, where all others have about 0."""

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
"""Llama-3-8B's params.json, small: four query heads share a key-value head, as there."""

SHARDS = 2
SCORE_SHARE = 0.88
"""Of the texts that end with a score; the others end with a winner."""
WORDS = 200
STOP = 1 / 16
"""Probability that a text's words end after each of them."""


def follow(embedding_vd: Tensor, head_vd: Tensor, script: Script) -> None:
    """Make the weights, in place, those of a model that follows the script (at temperature 1)."""
    size = embedding_vd.shape[1]
    head_vd.zero_()
    for direction, (tokens, followers) in enumerate(script):
        embedding_vd[list(tokens)] = torch.eye(size)[direction].to(embedding_vd.dtype)
        for token, probability in followers.items():
            head_vd[token, direction] = (CERTAINTY + math.log(probability)) / math.sqrt(size)


def llama3_script(tokenizer: Tokenizer) -> Script:
    """What the stand-in says, in the tokens of Llama-3; each place of the text has tokens of its own."""

    def token(text: str) -> int:
        [found] = tokenizer.encode(text)
        return found

    def evenly(tokens: Sequence[int], share: float = 1.0) -> dict[int, float]:
        return dict.fromkeys(tokens, share / len(tokens))

    known = [(i, tokenizer.decode([i])) for i in range(1000, 60000)]
    words = random.Random(0).sample([i for i, text in known if re.fullmatch(" [a-z]{4,9}", text)], WORDS)
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
    """Llama-3's tokenizer.model, which the package llama-models carries. Raises `UserError` where it is missing."""
    try:
        found = [file for file in files("llama-models") or [] if str(file) == "llama_models/llama3/tokenizer.model"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise UserError("llama-models is not installed; pip install --no-deps llama-models==0.3.0")
    return Path(str(found[0].locate()))


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
    """A tensor's part in a shard: columns of what gathers, rows of all else, norms whole."""
    if tensor.dim() == 1:
        return tensor
    return tensor.chunk(SHARDS, dim=1 if name.endswith(("wo.weight", "w2.weight")) else 0)[shard].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small stand-in for Llama-3-8B-Instruct in Meta's layout.")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise UserError(f"{arguments.folder}: is there already; name a new folder")
    write_stand_in(arguments.folder)
    print(arguments.folder)


if __name__ == "__main__":
    command(main)
