"""Checkpoints in the layout of Meta's files, with drawn weights and small tokenizers."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import fairscale_one_rank  # noqa: F401
import sentencepiece
import torch
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer
from torch import Tensor

from kernels.attention import VarlenAttention
from kernels.segments import Segments
from model.llama import logits_head
from model.weights import load_model

PARAMS = {"dim": 64, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 516, "multiple_of": 32}
PARAMS |= {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 500000.0}
TEXTS = ["the cat sat on the mat and the dog", "to be or not to be that is the question"] * 20
COLUMN_SPLIT = ("wo.weight", "w2.weight")


def seeded(params: dict, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors for Meta's own model: norms near one, the rest large enough that errors show."""
    names = Transformer(ModelArgs(**params, max_seq_len=64)).state_dict()
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in names.items()}
    return {name: 1 + 0.1 * tensor if tensor.dim() == 1 else 0.1 * tensor for name, tensor in drawn.items()}


def shards(tensors: dict[str, Tensor], count: int, embedding: int = 0) -> list[dict[str, Tensor]]:
    """Shards of `count` ranks of Meta's model parallelism; the embedding is split along dimension `embedding`."""

    def part(name: str, tensor: Tensor, rank: int) -> Tensor:
        split = 1 if name.endswith(COLUMN_SPLIT) else embedding if name.startswith("tok_embeddings") else 0
        return tensor if tensor.dim() == 1 else tensor.chunk(count, dim=split)[rank].clone()

    return [{name: part(name, tensor, rank) for name, tensor in tensors.items()} for rank in range(count)]


def tiktoken_file(path: Path) -> None:
    """Ranks of the single bytes and four merges: 260 tokens and 256 control tokens."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", b" the"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)))


def sentencepiece_file(path: Path, texts: Sequence[str] = TEXTS, vocab_size: int = 320, **options) -> None:
    """A small model trained like Llama 2's: BPE with byte fallback, text not normalised."""
    plan = {"model_type": "bpe", "vocab_size": vocab_size, "byte_fallback": True, "remove_extra_whitespaces": False}
    plan |= {"normalization_rule_name": "identity", "minloglevel": 2, "model_prefix": str(path.with_suffix(""))}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), **plan, **options)


def written(folder: Path, params: dict, ranks: list[dict[str, Tensor]], tokenizer=tiktoken_file) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    for i, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{i:02}.pth")
    tokenizer(folder / "tokenizer.model")
    return folder


@torch.inference_mode()
def our_logits(folder: Path, ids: Tensor) -> Tensor:
    attend = VarlenAttention(Segments.make([len(ids)]))
    return load_model(folder, torch.float32)(ids, torch.arange(len(ids)), attend, logits_head)
