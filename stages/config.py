"""A TOML config as dataclasses: strict, with bounds on the fields.

An unknown key, a missing one, a wrong type and a number out of its bounds are errors that name file, section and key.
"""

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from stages.files import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """The range of a setting, from `low` to `high`, both included."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is excluded."""

    def broken(self, value: float) -> str:
        """What the value must be, if it is out of range; else empty."""
        if math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low):
            return ""
        least = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return least + (f" and at most {self.high:g}" if math.isfinite(self.high) else "")


Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Amount = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
PositiveShare = Annotated[float, Bounds(0, 1, above=True)]


RENAMED = {
    "engine.blocks": "engine.num_kv_blocks",
    "engine.token_budget": "engine.max_num_batched_tokens",
    "engine.max_sequences": "engine.max_num_seqs",
    "engine.unit_requests": "engine.shard_requests",
    "trainer.token_budget": "trainer.tokens_per_microbatch",
    "judge.form": "judge.prompt_style",
    "judge.verdict": "judge.verdict_position",
    "metajudge.form": "metajudge.prompt_style",
    "metajudge.verdict": "metajudge.verdict_position",
    "sft.in_order": "sft.curriculum",
    "sft.decision_weight": "sft.verdict_token_weight",
    "sft.seed_judge": "sft.sft_delta",
    "sft.seed_judge_megabytes": "sft.sft_delta_megabytes",
    "evaluation.cases": "evaluation.judge_cases",
    "evaluation.way": "evaluation.protocol",
    "evaluation.duel_N": "evaluation.duel_samples",
    "limits.saturation": "limits.max_top_score_share",
}
"""Keys of older configs, and their present names."""


def read_config(cls: type[T], path: Path) -> T:
    """The config `path` as a `cls`. Raises `UserError`."""
    table = _read(path)
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        if isinstance(values := table.get(section), dict) and key in values:
            raise UserError(f"{path}: {old} is called {new} now; rename the key")
    return _build(cls, table, f"{path}: ")


def _read(path: Path, extended: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config's table. Its key `extends` names a config, relative to its own folder, whose keys it replaces."""
    if not path.is_file():
        raise UserError(f"{path}: no such config; choose one of configs/*.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error}); mend the line") from None
    if (name := table.pop("extends", None)) is None:
        return table
    base = path.parent / str(name)
    if base.resolve() in extended:
        raise UserError(f"{path}: extends: {name} extends this config again; take one of the two out")
    return _overlaid(_read(base, (*extended, path.resolve())), table)


def _overlaid(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `table` in place of its own, also within sections; a list is replaced as a whole."""
    merged = dict(base)
    for key, value in table.items():
        is_section = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _overlaid(base[key], value) if is_section else value
    return merged


def _build(cls: type[T], table: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in table:
        if key not in hints:
            raise UserError(f"{where}{key}: unknown key; known here: {', '.join(hints)}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in table:
            raise UserError(f"{where}{field.name}: missing; add this key")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in table.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number = _convert(arguments[0], value, where)
        if broken := arguments[1].broken(number):
            raise UserError(f"{where} is {number}; it must be {broken}")
        return number
    if origin in (types.UnionType, typing.Union):
        return _convert(arguments[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(typing.cast(type, hint), value, f"{where}.")
    if origin is list and isinstance(value, list):
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is Literal and value in arguments:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{where}: expected {wanted}, got {value!r}; mend the value")
