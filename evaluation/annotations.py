"""AlpacaEval's annotations: a judge's preference between two outputs, one row for each instruction.

The file is a JSON list as `alpaca_eval` writes and publishes it (annotations.json), or `evaluation/annotate.py` writes
it. output_1 is the baseline's, output_2 the model's. A preference is a number, or a string of one, from 1 (the
baseline's output) to 2 (the model's); 1.5, or in older files 0, is a tie; null is no preference, and such a row may
have no annotator. A file may have a pool of annotators.
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
    """For a pool, all names, separated by commas."""
    preferences: NDArray[np.float64]
    """[n], from 0 (the baseline's output) to 1 (the model's); NaN for no preference."""
    lengths: NDArray[np.float64]
    """[n, 2], characters of the baseline's and the model's output; NaN for an output that is no text."""
    positions: NDArray[np.int64]
    """[n], the index of the instruction's difficulty: the row's "index" if rows have one, else the row's place."""


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file.

    Raises `UserError` naming file and entry for a missing key, a repeated instruction, an invalid preference, and a
    second model or baseline.
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
        outputs = (row["output_1"], row["output_2"])
        lengths.append([len(output) if isinstance(output, str) else math.nan for output in outputs])
        preferences.append(_preference(row, where))
        positions.append(_position(row, place, where))
    if all(map(math.isnan, preferences)):
        raise UserError(f"{path}: no row has a preference; name a file that a judge has annotated")
    if not names["annotator"]:
        raise UserError(f"{path}: no row has an annotator; add the judge's name")
    model, baseline, annotator = (", ".join(names[key]) for key in ("generator_2", "generator_1", "annotator"))
    return Annotations(path, model, baseline, annotator, np.array(preferences), np.array(lengths), np.array(positions))


def _add_names(names: dict[str, list[str]], row: dict[str, Any], where: str) -> None:
    """Add a row's model, baseline and annotator, if they are new."""
    for key, values in names.items():
        # A row that the package could not judge has no annotator; a file may have several annotators.
        if str(row[key]) in values or (key == "annotator" and row[key] is None):
            continue
        if values and key != "annotator":
            raise UserError(f"{where}: {key} is {row[key]!r}, and {values[0]!r} before; keep one in a file")
        values.append(str(row[key]))


def _preference(row: dict[str, Any], where: str) -> float:
    """The preference in [0, 1], or NaN."""
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
