"""AlpacaEval 2's length-controlled win rate: an estimate of the win rate if both outputs had the same length.

From Dubois et al., "Length-Controlled AlpacaEval" (arXiv 2404.04475), as in the `alpaca_eval` package, version 0.6.6,
`length_controlled_v1`. A logistic regression without intercept predicts the preference q in [0, 1] of row i,

    q_i ~ sigmoid(w_length tanh(d_i / std(d)) + w_difficulty difficulty_i + w_model)

where d is the baseline's characters minus the model's, not centred, and std(d) is over all rows, with n - 1. The rows
of two baselines that game length are added, each with weight 0.1 and without w_model; they keep w_length small. The win
rate is the mean of sigmoid(w_difficulty difficulty_i + w_model), where the length's term is zero.

A soft label is two examples: label 1 with weight q, and label 0 with weight 1 - q. The penalty is L1. Its C is the one
of ten with the lowest held-out cross-entropy, in five folds that keep both examples of a row together. With the same
version of scikit-learn our number equals the package's to the last digits. Versions assign rows to different folds,
which changes both: from 1.4 to 1.9 by up to 0.06 points in the tests' cases.

The difficulties and the gamed rows don't come with this project: see `SOURCE`.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.annotations import Annotations, read_annotations
from stages.files import UserError

SOURCE = "of the data set tatsu-lab/alpaca_eval on Hugging Face"
"""The publisher of df_gamed.csv (the gamed rows) and instruction_difficulty.csv (the difficulties)."""

GAMED_WEIGHT = 0.2 / 2
"""Weight of a row of the two gamed baselines."""

FOLDS = 5
CS = np.logspace(-4, 4, 10)
SEED = 123
"""Seed of liblinear's order of coordinates."""

WEIGHT_COLUMNS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """The coefficients of a model's regression against a baseline."""

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True)
class Gamed:
    """The rows of the gamed baselines, in the file's order, and the difficulties in them."""

    features: Array
    """[m, 3], as `Weights` has them."""
    preferences: Array
    """[m], in [0, 1]; NaN for no preference."""
    difficulties: dict[int, float]
    """By an instruction's position."""


@dataclass(frozen=True)
class LengthControlled:
    win_rate: float
    """In percent."""
    standard_error: float | None
    """Standard error of the mean prediction, in percent; None for a single row."""
    weights: Weights


def length_controlled(annotations: Annotations, gamed: Gamed) -> LengthControlled:
    """The length-controlled win rate of a file of annotations.

    Rows without a preference are predicted but not fitted; their lengths count in the standard deviation. A model that
    is its own baseline wins 50% by definition.

    Raises `UserError` naming the file for a position without difficulty, an output that is no text, and lengths that
    don't differ.
    """
    preferences = annotations.preferences
    if annotations.model == annotations.baseline:
        return _summary(np.full(np.isfinite(preferences).sum(), 0.5), Weights(0.0, 0.0, 0.0))
    length = _length(annotations)
    if unknown := [place for place in annotations.positions.tolist() if place not in gamed.difficulties]:
        count = f"the gamed rows have the difficulties of {len(gamed.difficulties)} instructions"
        raise UserError(f"{annotations.path}: {count}, not of number {unknown[0]}; name whole files")
    difficulty = np.array([gamed.difficulties[place] for place in annotations.positions.tolist()])
    own = np.column_stack([length, difficulty, np.ones_like(difficulty)])
    features = np.concatenate([gamed.features, own])
    targets = np.concatenate([gamed.preferences, preferences])
    masses = np.where(features[:, 2] == 1, 1.0, GAMED_WEIGHT)
    preferred = np.isfinite(targets)
    weights = Weights(*map(float, fit(features[preferred], targets[preferred], masses[preferred])))
    return _summary(logistic(weights.difficulty * difficulty + weights.model), weights)


def fit(features: Array, targets: Array, masses: Array) -> Array:
    """Coefficients [k] of the regression of soft labels [n] in [0, 1] on features [n, k], weighted by `masses` [n].

    Raises `UserError` if scikit-learn, whose liblinear solves it, is missing or too old.
    """
    LogisticRegression, GroupKFold = _scikit_learn()
    rows = np.concatenate([features, features])
    labels = np.repeat([1, 0], len(features))
    shares = np.concatenate([targets, 1 - targets])
    copied = np.concatenate([masses, masses])
    groups = np.tile(np.arange(len(features)), 2)

    def regression(chosen: Any, C: float, random: np.random.RandomState) -> Any:
        model = LogisticRegression(C=C, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=random)
        return model.fit(rows[chosen], labels[chosen], sample_weight=(shares * copied)[chosen])

    losses = np.zeros((FOLDS, len(CS)))
    for fold, (train, test) in enumerate(GroupKFold(FOLDS).split(rows, groups=groups)):
        random = np.random.RandomState(SEED)  # all Cs of a fold share it, as in LogisticRegressionCV
        targets_of_1 = np.where(labels == 1, shares, 1 - shares)[test]
        for i, C in enumerate(CS):
            chance = regression(train, C, random).predict_proba(rows[test])[:, 1].clip(1e-15, 1 - 1e-15)
            entropy = targets_of_1 * np.log(chance) + (1 - targets_of_1) * np.log(1 - chance)
            losses[fold, i] = -np.mean(entropy * copied[test])
    best = CS[losses.sum(0).argmin()]
    return regression(slice(None), best, np.random.RandomState(SEED)).coef_[0]


def predict(model: Weights, baseline: Weights, difficulties: Array) -> float:
    """The length-controlled win rate, in percent, of a model against a baseline, by their weights against a third."""
    gap = (model.difficulty - baseline.difficulty) * difficulties + (model.model - baseline.model)
    return float(100 * logistic(gap).mean())


def logistic(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _summary(predictions: Array, weights: Weights) -> LengthControlled:
    error = float(100 * predictions.std(ddof=1) / math.sqrt(len(predictions))) if len(predictions) > 1 else None
    return LengthControlled(float(100 * predictions.mean()), error, weights)


def _scikit_learn() -> tuple[Any, Any]:
    install = "pip install '.[evaluation]'"
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise UserError(f"the length-controlled win rate needs scikit-learn; {install}") from None
    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8):  # older ones ignore l1_ratio alone
        raise UserError(f"scikit-learn {sklearn.__version__} is too old, l1_ratio needs 1.8; {install}")
    return LogisticRegression, GroupKFold


def read_gamed(paths: Sequence[Path], difficulties: Array | None = None) -> Gamed:
    """The gamed baselines' rows: the published df_gamed.csv, or annotations of both baselines with `difficulties` [n].

    df_gamed.csv has the instructions in order, once for each baseline. So the difficulty of position p is that of row
    p, from 0, as long as the row is the first with its index.

    Raises `UserError` naming file and line for a missing column, an invalid value, and a position without difficulty.
    """
    if all(path.suffix == ".json" for path in paths):
        if len(set(paths)) != 2:
            raise UserError(f"{paths[0]}: the gamed baselines are two, a verbose and a concise one; name both files")
        return _gamed_annotations([read_annotations(path) for path in paths], difficulties)
    if len(paths) > 1:
        raise UserError(
            f"{paths[1]}: --gamed is df_gamed.csv alone, or annotations of the gamed baselines, .json files"
        )
    path, features, preferences, by_place = paths[0], [], [], {}
    seen = set()
    columns = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")
    for place, (where, row) in enumerate(_rows(path, columns, f"name df_gamed.csv {SOURCE}")):
        index, difficulty = _number(row, "index", where), _number(row, "instruction_difficulty", where)
        if index not in seen:
            seen.add(index)
            by_place[place] = difficulty
        preferences.append(math.nan if row["preference"] == "" else _number(row, "preference", where))
        kind = row["not_gamed_baseline"].lower()
        if kind not in ("true", "false"):
            raise UserError(f"{where}: not_gamed_baseline is {kind!r}; it must be True or False")
        features.append([_number(row, "std_delta_len", where), difficulty, float(kind == "true")])
    table = np.array(features)
    table[:, 0] = np.tanh(table[:, 0])
    return Gamed(table, np.array(preferences), by_place)


def _gamed_annotations(gamed: Sequence[Annotations], difficulties: Array | None) -> Gamed:
    """The gamed rows from the gamed baselines' own annotations."""
    if difficulties is None:
        raise UserError(f"{gamed[0].path}: annotations have no difficulties; add --difficulty, {SOURCE}")
    features = []
    for own in gamed:
        if unknown := [place for place in own.positions.tolist() if not 0 <= place < len(difficulties)]:
            raise UserError(f"{own.path}: no difficulty of number {unknown[0]}; --difficulty has {len(difficulties)}")
        length = _length(own)
        features.append(np.column_stack([length, difficulties[own.positions], np.zeros_like(length)]))
    by_place = dict(enumerate(map(float, difficulties)))
    return Gamed(np.concatenate(features), np.concatenate([own.preferences for own in gamed]), by_place)


def _length(annotations: Annotations) -> Array:
    """The length feature [n]; as in the package, -1 or 1 if all differences are equal.

    Raises `UserError` naming the file for an output that is no text, for a single row, and for lengths that don't
    differ.
    """
    difference = annotations.lengths[:, 0] - annotations.lengths[:, 1]
    if (without := np.flatnonzero(np.isnan(difference))).size:
        raise UserError(f"{annotations.path}, entry {without[0]}: an output is no text and has no length; mend the row")
    if len(difference) < 2 or not difference.any():
        raise UserError(f"{annotations.path}: no two outputs differ in length; there is no length to control for")
    with np.errstate(divide="ignore"):
        return np.tanh(difference / difference.std(ddof=1))


def read_difficulties(path: Path) -> Array:
    """The difficulties [n] of all instructions, as published in instruction_difficulty.csv.

    They are the column "instruction_difficulty", or the second of two columns. Raises `UserError` naming file and line.
    """
    hint = f"name instruction_difficulty.csv {SOURCE}"
    rows = list(_rows(path, (), hint))
    header = list(rows[0][1])
    column = header[1] if len(header) == 2 else "instruction_difficulty"
    if column not in header:
        raise UserError(f"{path}: no column 'instruction_difficulty'; {hint}")
    return np.array([_number(row, column, where) for where, row in rows])


def read_weights(path: Path) -> dict[str, Weights]:
    """The weights of models by name, as `alpaca_eval` publishes them. Raises `UserError` naming file and line."""
    weights: dict[str, Weights] = {}
    hint = "name a file of alpaca_eval's folder metrics/weights, such as weighted_alpaca_eval_gpt4_turbo's"
    for where, row in _rows(path, WEIGHT_COLUMNS, hint):
        name = next(iter(row.values()))
        if name in weights:
            raise UserError(f"{where}: {name!r} came before; keep one of the two")
        weights[name] = Weights(*(_number(row, column, where) for column in WEIGHT_COLUMNS))
    return weights


def _rows(path: Path, columns: tuple[str, ...], hint: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A CSV file's rows, each with its file and line. Raises `UserError` for an empty file and a missing column."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text in UTF-8; {hint}") from None
    reader = csv.DictReader(io.StringIO(text), restval="")
    if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise UserError(f"{path}: no column {missing[0]!r}; {hint}")
    row = None
    for row in reader:
        yield f"{path}, line {reader.line_num}", row
    if row is None:
        raise UserError(f"{path}: no rows; {hint}")


def _number(row: dict[str, str], column: str, where: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {column} is {row[column]!r}, not a number; fetch the file again")
    return value
