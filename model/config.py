"""The architecture's sizes and constants, read from Hugging Face's `config.json`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.files import UserError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`)."""

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

    def parameter_count(self) -> int:
        """Parameters of the model, a tied head counted once."""
        d, vocabulary = self.hidden_size, self.vocab_size * self.hidden_size
        block = d * (2 * self.q_size + 2 * self.kv_size + 3 * self.intermediate_size + 2)
        return self.num_hidden_layers * block + d + vocabulary * (1 if self.tie_word_embeddings else 2)

    @classmethod
    def load(cls, folder: Path | str) -> "LlamaConfig":
        """Read `folder`/config.json.

        Raises `UserError` for a missing or damaged file, another architecture, or a feature that is not implemented
        (biases, another activation, an unknown rope type).
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise no_config(Path(folder))
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from None
        return cls.from_dict(table, str(path))

    @classmethod
    def from_dict(cls, table: dict[str, Any], where: str = "config.json") -> "LlamaConfig":
        """Build from the parsed `config.json`; `where` names it in errors."""
        if table.get("model_type") != "llama":
            raise UserError(f"{where}: model_type is {table.get('model_type')!r}; only 'llama' is implemented")
        for key, expected in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
            if table.get(key, expected) != expected:
                raise UserError(f"{where}: {key} is {table[key]!r}; only {expected!r} is implemented")
        try:
            heads = table["num_attention_heads"]
            rope_theta, rope_scaling = _rope(table, where)
            return cls(
                vocab_size=table["vocab_size"],
                hidden_size=table["hidden_size"],
                intermediate_size=table["intermediate_size"],
                num_hidden_layers=table["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=table.get("num_key_value_heads") or heads,
                head_dim=table.get("head_dim") or table["hidden_size"] // heads,
                rms_norm_eps=table["rms_norm_eps"],
                rope_theta=rope_theta,
                rope_scaling=rope_scaling,
                max_position_embeddings=table["max_position_embeddings"],
                tie_word_embeddings=table.get("tie_word_embeddings", False),
            )
        except KeyError as error:
            raise UserError(f"{where}: key {error} is missing; fetch the file again") from None

    def inverse_frequencies(self) -> list[float]:
        """RoPE's angular frequencies, one for each pair of dimensions: theta^(-2i/d), scaled as in Llama 3.1."""
        plain = [self.rope_theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]
        scaling = self.rope_scaling
        if scaling is None:
            return plain
        context = scaling.original_max_position_embeddings

        def scaled(frequency: float) -> float:
            turns = context * frequency / (2 * math.pi)  # over the original context
            if turns < scaling.low_freq_factor:
                return frequency / scaling.factor
            if turns > scaling.high_freq_factor:
                return frequency
            share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            return (1 - share) * frequency / scaling.factor + share * frequency

        return [scaled(frequency) for frequency in plain]


def no_config(folder: Path) -> UserError:
    """The error for a folder without config.json: it is in Meta's layout, or no model."""
    if any((source / "params.json").is_file() for source in (folder, folder / "original")):
        converted = f"{folder}-hf"
        return UserError(
            f"{folder}: params.json but no config.json, so Meta's layout; "
            f"run python -m prepare.meta {folder} {converted} and point model.path at {converted}"
        )
    return UserError(f"{folder / 'config.json'}: no such file; point model.path at a Hugging Face directory")


def _rope(table: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """RoPE's base and scaling, from either spelling: `rope_theta` + `rope_scaling`, or `rope_parameters`."""
    rope = table.get("rope_parameters") or table.get("rope_scaling") or {}
    theta = rope.get("rope_theta", table.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(f"{where}: rope type {kind!r} is unknown; 'default' and 'llama3' are implemented")
    numbers = {name: rope[name] for name in RopeScaling.__dataclass_fields__}
    return float(theta), RopeScaling(**numbers)
