"""A TOML config as dataclasses; an unknown or missing key, a wrong type and a number out of bounds are errors."""

import math
import os
import tomllib
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from stages.command import UserError
from stages.files import read_text

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:  # of a setting, finite and in 64 bits: from `low` to `high`, both included; with `above`, without `low`
    low: float
    high: float = math.inf
    above: bool = False
    or_zero: bool = False  # whether 0 is within the bounds, too

    def __contains__(self, value: float) -> bool:
        within = self.low <= value <= min(self.high, 2**63 - 1) and not (self.above and value == self.low)
        return within or (self.or_zero and value == 0)

    def __str__(self) -> str:
        least = "0, or " * self.or_zero + (f"above {self.low:g}" if self.above else f"at least {self.low:g}")
        return least + (f" and at most {self.high:g}" if math.isfinite(self.high) else "")


Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
PositiveShare = Annotated[float, Bounds(0, 1, above=True)]
Amount = Annotated[float, Bounds(0)]
Temperature = Annotated[float, Bounds(1e-3, or_zero=True)]  # below, quotients of logits overflow
Positive = Annotated[float, Bounds(0, above=True)]


def read_config(cls: type[T], path: Path) -> T:
    """The config `path` as a `cls`. Raises `UserError`."""
    return build(cls, _read(path, ()), f"{path}: ")


def _read(path: Path, extended: tuple[str, ...]) -> dict[str, Any]:
    """A config's table. Its key `extends` names a config, relative to its own folder, whose keys it replaces."""
    try:
        table = tomllib.loads(read_text(path, "name a config such as configs/tiny.toml"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML ({error}); mend the line") from None
    if (name := table.pop("extends", None)) is None:
        return table
    base = path.parent / str(name)
    if os.path.abspath(base) in extended:
        raise UserError(f"{path}: extends: {name} extends this config again; take one of the two out")
    return overlaid(_read(base, (*extended, os.path.abspath(path))), table)


def overlaid(base: Any, value: Any) -> Any:
    """`value` in place of `base`; of two sections, key by key."""
    if not isinstance(base, dict) or not isinstance(value, dict):
        return value
    return base | {key: overlaid(base.get(key), item) for key, item in value.items()}


def build(cls: type[T], table: dict[str, Any], where: str) -> T:
    """The table as a dataclass `cls`, every value checked; errors put `where` before the key."""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    needed = [key for key, field in known.items() if field.default is field.default_factory is MISSING]
    if unknown := [key for key in table if key not in known]:
        raise UserError(f"{where}{unknown[0]}: unknown key; known here: {', '.join(known)}")
    if missing := [key for key in needed if key not in table]:
        raise UserError(f"{where}{missing[0]}: missing; add this key")
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{key: convert(hints[key], value, f"{where}{key}") for key, value in table.items()})


def changed(section: Any, *names: str) -> dict[str, Any]:
    """Those of a section's settings that are not at their default. With these alone in it, a key stays the same when
    the code learns a new setting."""
    return {name: value for name in names if (value := getattr(section, name)) != getattr(type(section), name)}


def convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number = convert(arguments[0], value, where)
        if number not in arguments[1]:
            raise UserError(f"{where} is {number}; it must be {arguments[1]}")
        return number
    if origin in (types.UnionType, typing.Union):  # None has no TOML value: the key is left out
        return convert(arguments[0], value, where)
    if is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, f"{where}.")
    if origin is list and isinstance(value, list):
        return [convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is hint or (origin is Literal and value in arguments):
        return value
    wanted = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{where}: expected {wanted}, got {value!r}; mend the value")
