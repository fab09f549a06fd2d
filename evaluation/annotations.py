"""AlpacaEval's annotations: which of two outputs a judge prefers, a row an instruction.

A JSON list as `alpaca_eval` writes it (annotations.json) and its repository publishes it, or `evaluation/annotate.py`:
output_1 is the baseline's, output_2 the model's, and a preference goes from 1, the baseline's, to 2, the model's. Ties
are 1.5, in older files 0; preferences may be strings; null is a row that the annotator gave none for, which then may
have no annotator either. A file may be of a pool of annotators.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.files import UserError, read_json_list

NAMES = ("generator_1", "generator_2", "annotator")
KEYS = ("instruction", "output_1", "output_2", *NAMES, "preference")


@dataclass(frozen=True)
class Annotations:
    """A judge's preferences between a model and a baseline, n rows in the file's order."""

    path: Path
    model: str
    baseline: str
    annotator: str
    """All names of a pool of annotators."""
    preferences: NDArray[np.float64]
    """[n], from 0, the baseline's output, to 1, the model's; NaN where there is none."""
    lengths: NDArray[np.float64]
    """[n, 2], characters of the baseline's and the model's output; NaN where it is no text."""
    positions: NDArray[np.int64]
    """[n], where an instruction's difficulty is found: the row's "index" where rows have one, else its place."""


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file.

    Raises `UserError` naming file and entry for a missing key, an instruction that came before, a preference that is
    none, and a second model or baseline.
    """
    places: dict[str, int] = {}
    names: dict[str, list[str]] = {key: [] for key in NAMES}
    preferences, lengths, positions = [], [], []
    rows = list(read_json_list(path, "AlpacaEval's annotations.json of a model"))
    indexed = any("index" in row for _, row in rows)
    for place, (where, row) in enumerate(rows):
        for key in (*KEYS, "index") if indexed else KEYS:
            if key not in row:
                raise UserError(f"{where}: key {key!r} is missing; add it, or name a file of annotations")
        instruction = str(row["instruction"])
        if instruction in places:
            before = f"{instruction[:60]!r} came before, in entry {places[instruction]}"
            raise UserError(f"{where}: {before}; an instruction counts once, remove one of the two")
        places[instruction] = place
        _add_names(names, row, where)
        lengths.append([_length(row[key]) for key in ("output_1", "output_2")])
        preferences.append(_preference(row, where))
        positions.append(_position(row, place, where))
    if all(map(math.isnan, preferences)):
        raise UserError(f"{path}: no row has a preference; name a file that a judge has annotated")
    if not names["annotator"]:
        raise UserError(f"{path}: no row has an annotator; say who judged")
    model, baseline, annotator = (", ".join(names[key]) for key in ("generator_2", "generator_1", "annotator"))
    return Annotations(path, model, baseline, annotator, np.array(preferences), np.array(lengths), np.array(positions))


def _add_names(names: dict[str, list[str]], row: dict[str, Any], where: str) -> None:
    """Add what a row says of who is compared and by whom, where it is new."""
    for key, known in names.items():
        # Rows that it could not judge may come out of the package without annotator, and it may have several.
        if str(row[key]) in known or (key == "annotator" and row[key] is None):
            continue
        if known and key != "annotator":
            raise UserError(f"{where}: {key} is {row[key]!r}, and {known[0]!r} before; keep one in a file")
        known.append(str(row[key]))


def _length(output: Any) -> float:
    return len(output) if isinstance(output, str) else math.nan


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
    if type(position) not in (int, float) or not float(position).is_integer():
        raise UserError(f"{where}: index is {position!r}; it must be the instruction's place, from 0, a whole number")
    return int(position)
