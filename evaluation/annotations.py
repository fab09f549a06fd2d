"""AlpacaEval's annotations: which of two outputs a judge prefers, a row an instruction.

A JSON list as `alpaca_eval` writes it (annotations.json) and its repository publishes it, or `evaluation/annotate.py`:
output_1 is the baseline's, output_2 the model's, and a preference goes from 1, the baseline's, to 2, the model's. Ties
are 1.5, in older files 0; preferences may be strings; null is a row that the annotator gave none for.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from files import UserError

KEYS = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "preference")


@dataclass(frozen=True)
class Annotations:
    """A judge's preferences between a model and a baseline, n rows in the file's order."""

    path: Path
    model: str
    baseline: str
    annotator: str
    preferences: NDArray[np.float64]
    """[n], from 0, the baseline's output, to 1, the model's; NaN where there is none."""
    lengths: NDArray[np.int64]
    """[n, 2], characters of the baseline's and the model's output."""
    positions: NDArray[np.int64]
    """[n], where an instruction's difficulty is found: the row's "index" where rows have one, else its place."""


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file.

    Raises `UserError` naming file and entry for a missing key, an output that is no text, an instruction that came
    before, a preference that is none, and a second model, baseline or annotator.
    """
    places: dict[str, int] = {}
    names: dict[str, str] = {}
    preferences, lengths, positions = [], [], []
    rows = _entries(path)
    indexed = any("index" in row for row in rows)
    for place, row in enumerate(rows):
        where = f"{path}, entry {place}"
        for key in (*KEYS, "index") if indexed else KEYS:
            if key not in row:
                raise UserError(f"{where}: key {key!r} is missing; add it, or name a file of annotations")
        instruction = str(row["instruction"])
        if instruction in places:
            before = f"{instruction[:60]!r} came before, in entry {places[instruction]}"
            raise UserError(f"{where}: {before}; an instruction counts once, remove one of the two")
        places[instruction] = place
        for key in ("generator_1", "generator_2", "annotator"):
            if str(row[key]) != names.setdefault(key, str(row[key])):
                raise UserError(f"{where}: {key} is {row[key]!r}, and {names[key]!r} before; keep one in a file")
        lengths.append([len(_text(row, key, where)) for key in ("output_1", "output_2")])
        preferences.append(_preference(row, where))
        positions.append(_position(row, place, where))
    if all(map(math.isnan, preferences)):
        raise UserError(f"{path}: no row has a preference; name a file that a judge has annotated")
    model, baseline, annotator = (names[key] for key in ("generator_2", "generator_1", "annotator"))
    arrays = (np.array(preferences), np.array(lengths), np.array(positions))
    return Annotations(path, model, baseline, annotator, *arrays)


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; name AlpacaEval's annotations.json of a model")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); fetch the file again") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not a JSON list with entries; name AlpacaEval's annotations.json of a model")
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, entry {place}: expected a JSON object; mend or remove the entry")
    return entries


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise UserError(f"{where}: {key} is {row[key]!r}, not a text; mend or remove the row")
    return row[key]


def _preference(row: dict[str, Any], where: str) -> float:
    """In [0, 1], or NaN."""
    given = row["preference"]
    if given is None:
        return math.nan
    try:
        value = math.inf if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.inf
    if value == 0:
        value = 1.5
    if not (1 <= value <= 2 or math.isnan(value)):
        raise UserError(f"{where}: preference is {given!r}; it must be from 1 to 2, 0 for a tie, or null")
    return value - 1


def _position(row: dict[str, Any], place: int, where: str) -> int:
    position = row.get("index", place)
    if type(position) is not int:
        raise UserError(f"{where}: index is {position!r}; it must be the instruction's place, from 0, a whole number")
    return position
