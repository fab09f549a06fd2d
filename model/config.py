"""The architecture's sizes and constants, read from Hugging Face's `config.json`."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from stages.command import UserError
from stages.config import Bounds, Positive, build, convert
from stages.files import read_json

FETCH = "fetch the file again"  # what users are told of a model's damaged files
Size = Annotated[int, Bounds(1, 2**24)]
Layers = Annotated[int, Bounds(1, 256)]
Theta = Annotated[float, Bounds(1, 1e12)]
QWEN = ("max_window_layers", "sliding_window")  # without effect where use_sliding_window is false
FAMILIES = {"llama": (), "mistral": ("sliding_window",), "qwen2": QWEN, "qwen3": QWEN}
"""The values of model_type that are implemented, dense models all, and keys of theirs that are no fields."""
MISTRAL_WINDOW = 4096  # transformers' default where the key is missing; null is no window
# Of these keys of config.json one value is implemented; HARMLESS ones change nothing; others may, and are errors.
ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
ONLY |= {"rope_interleaved": False, "use_sliding_window": False, "use_mrope": False}
HARMLESS = """_attn_implementation_autoset _name_or_path architectures bos_token_id dtype eos_token_id initializer_range
is_llama_config pad_token_id pretraining_tp torch_dtype transformers.js_config transformers_version unsloth_fixed
unsloth_version use_cache"""


@dataclass(frozen=True)
class RopeScaling:  # Llama 3.1's
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Size


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama or of its kin in `FAMILIES`; the names are those of Hugging Face's `config.json`."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    rms_norm_eps: Positive
    rope_theta: Theta
    max_position_embeddings: Size
    tie_word_embeddings: bool
    rope_scaling: RopeScaling | None = None
    model_type: str = "llama"

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have biases."""
        return self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether each head's query and key is normalised before it is rotated."""
        return self.model_type == "qwen3"

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
        vectors = self.qkv_bias * (self.q_size + 2 * self.kv_size) + self.qk_norm * 2 * self.head_dim
        vectors = self.num_hidden_layers * (2 * self.hidden_size + vectors) + self.hidden_size
        return self.block_weights + vectors + self.head_weights * (1 if self.tie_word_embeddings else 2)

    @classmethod
    def load(cls, folder: Path | str) -> "LlamaConfig":
        """Read `folder`/config.json; `UserError` if it is missing or damaged, or asks for what is not implemented."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise no_config(path.parent)
        check_links(path.parent)
        return cls.from_dict(read_json(path, FETCH), str(path))

    @classmethod
    def from_dict(cls, table: dict[str, Any], where: str = "config.json") -> "LlamaConfig":
        """The config of a table as in config.json, where null is no key; `UserError` for what is not implemented. A
        window of attention limits the positions: up to its length it is full attention."""
        if (family := table.get("model_type")) not in tuple(FAMILIES):
            raise UserError(f"{where}: model_type is {family!r}; implemented are {', '.join(FAMILIES)}")
        for key, only in ONLY.items():
            if (value := table.get(key)) not in (None, only):
                raise UserError(f"{where}: {key} is {value!r}; only {only!r} is implemented")
        window = table.get("sliding_window", MISTRAL_WINDOW) if family == "mistral" else None
        unused = {*ONLY, *HARMLESS.split(), *FAMILIES[family]}
        table = {k: v for k, v in table.items() if v is not None and k not in unused}
        kinds = convert(list[str], table.pop("layer_types", []), f"{where}: layer_types")
        if other := set(kinds) - {"full_attention"}:
            raise UserError(f"{where}: layer_types has {min(other)!r}; only 'full_attention' is implemented")
        if kinds and len(kinds) != table.get("num_hidden_layers"):
            raise UserError(f"{where}: layer_types is of {len(kinds)} layers, num_hidden_layers says otherwise")
        heads, hidden = (convert(Size, table.get(k), f"{where}: {k}") for k in ("num_attention_heads", "hidden_size"))
        table = {"num_key_value_heads": heads, "head_dim": hidden // heads, "tie_word_embeddings": False} | table
        config = build(cls, _with_rope(table, where), f"{where}: ")
        falling = (rope := config.rope_scaling) and rope.low_freq_factor >= rope.high_freq_factor
        if heads % config.num_key_value_heads or config.head_dim % 2 or falling:
            raise UserError(f"{where}: the numbers of heads, head_dim or RoPE's two frequencies do not fit one another")
        if window is not None:
            positions = min(config.max_position_embeddings, convert(Size, window, f"{where}: sliding_window"))
            config = replace(config, max_position_embeddings=positions)
        return config

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


def _with_rope(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The table with RoPE's constants in older files' place for them; newer ones have all in `rope_parameters`."""
    given = [table.pop(key) for key in ("rope_parameters", "rope_scaling") if key in table]
    rope = dict(convert(dict, given[0], f"{where}: rope_parameters")) if given else {"rope_type": "default"}
    kind = rope.pop("rope_type", rope.get("type"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{where}: rope type {kind!r} is unknown; 'default' and 'llama3' are implemented")
    theta = rope.pop("rope_theta", table.get("rope_theta", 10_000.0))
    same = rope.pop("type", kind) == kind and table.get("rope_theta", theta) == theta
    if given[1:] or not same or (rope and kind == "default"):
        raise UserError(f"{where}: RoPE is described twice, or with more than its type has; mend rope_parameters")
    return table | {"rope_theta": theta} | ({"rope_scaling": rope} if kind == "llama3" else {})


def check_links(folder: Path) -> None:
    """Raise `UserError` for a link out of a model's folder, except to the blobs that Hugging Face's cache links to."""
    home = folder.resolve()
    cache = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    for path in filter(Path.is_symlink, home.iterdir()):
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(home) and target.parent != cache:
            raise UserError(f"{path}: a link out of the model's folder; put the file itself there")


@contextmanager
def reading(path: Path, wrong: str = "damaged") -> Iterator[None]:
    """Errors of a library that reads `path` as a `UserError`; of any type, as panics of Rust are no `Exception`."""
    try:
        yield
    except (UserError, OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{path}: {wrong} ({error!r:.200}); {FETCH}") from None
