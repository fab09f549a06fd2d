"""The architecture's sizes and constants, read from Hugging Face's `config.json`."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages.files import UserError

# Keys of config.json of which one value is implemented; all but `model_type` may be missing.
ONLY = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


@dataclass(frozen=True)
class RopeScaling:  # Llama 3.1's
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama model's shape; the names are those of Hugging Face's `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def block_weights(self) -> int:
        rows = 2 * self.q_size + 2 * self.kv_size + 3 * self.intermediate_size
        return self.num_hidden_layers * self.hidden_size * rows

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    def parameter_count(self) -> int:
        """Parameters of the model, a tied head counted once."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.block_weights + norms + self.head_weights * (1 if self.tie_word_embeddings else 2)

    @classmethod
    def load(cls, folder: Path | str) -> "LlamaConfig":
        """Read `folder`/config.json; `UserError` if it is missing or damaged, or asks for what is not implemented."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise no_config(path.parent)
        return cls.from_dict(read_table(path), str(path))

    @classmethod
    def from_dict(cls, table: dict[str, Any], where: str = "config.json") -> "LlamaConfig":
        for key, value in {**ONLY, "model_type": None, **table}.items():
            if key in ONLY and value != ONLY[key]:
                raise UserError(f"{where}: {key} is {value!r}; only {ONLY[key]!r} is implemented")
        rope = table.get("rope_parameters") or table.get("rope_scaling") or {}  # two spellings
        kind, scaling = rope.get("rope_type", rope.get("type", "default")), None
        if kind not in ("default", "llama3"):
            raise UserError(f"{where}: rope type {kind!r} is unknown; 'default' and 'llama3' are implemented")
        try:
            if kind == "llama3":
                scaling = RopeScaling(**{field.name: rope[field.name] for field in fields(RopeScaling)})
            heads = table["num_attention_heads"]
            values = {"num_key_value_heads": heads, "head_dim": table["hidden_size"] // heads}
            values |= {"tie_word_embeddings": False} | {key: value for key, value in table.items() if value is not None}
            theta = rope.get("rope_theta", table.get("rope_theta", 10_000.0))
            values |= {"rope_theta": float(theta), "rope_scaling": scaling}
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except KeyError as error:
            raise UserError(f"{where}: key {error} is missing; fetch the file again") from None

    def inverse_frequencies(self) -> list[float]:
        """RoPE's angular frequencies theta^(-2i/d); Llama 3.1 divides those of few turns in its context by `factor`."""
        frequencies = [self.rope_theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        if scaling := self.rope_scaling:
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            turns = [scaling.original_max_position_embeddings * f / (2 * math.pi) for f in frequencies]
            kept = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
            frequencies = [(1 - k) * f / scaling.factor + k * f for k, f in zip(kept, frequencies, strict=True)]
        return frequencies


def no_config(folder: Path) -> UserError:
    if any((source / "params.json").is_file() for source in (folder, folder / "original")):
        advice = f"run python -m prepare.meta {folder} {folder}-hf and point model.path at {folder}-hf"
        return UserError(f"{folder}: params.json but no config.json, so Meta's layout; {advice}")
    return UserError(f"{folder / 'config.json'}: no such file; point model.path at a Hugging Face directory")


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file. Raises `UserError` if the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from None
