"""AlpacaEval 2's numbers from files of annotations: win rate, length-controlled (LC) win rate, and counts.

`python -m evaluation.alpaca --annotations FILE ...` prints a row for each model, in percent as on the leaderboard. A
file is a JSON list as `alpaca_eval` or `evaluation/annotate.py` writes it: output_1 is the baseline's, output_2 the
model's; a preference goes from 1 (the baseline's) to 2 (the model's), also as a string; 1.5, or in older files 0, is a
tie; null is no preference, and such a row may have no annotator. A file may have several annotators.

LC (Dubois et al., arXiv 2404.04475; `length_controlled_v1` of `alpaca_eval` 0.6.6) estimates the win rate if both
outputs had the same length. A logistic regression without intercept predicts the preference q in [0, 1] of row i,

    q_i ~ sigmoid(w_length tanh(d_i / std(d)) + w_difficulty difficulty_i + w_model)

where d is the baseline's characters minus the model's, and std(d) is over all rows, with n - 1. The rows of two
baselines that game length are added, each with weight 0.1 and without w_model; they keep w_length small. LC is the mean
of sigmoid(w_difficulty difficulty_i + w_model). A soft label is two examples: label 1 with weight q, label 0 with
weight 1 - q. The penalty is L1. Its C is the one of ten with the lowest held-out cross-entropy, in five folds that keep
both examples of a row together. With the same version of scikit-learn LC equals the package's to the last digits;
versions assign rows to other folds, which changes both by up to 0.06 points.

The gamed rows are `--gamed df_gamed.csv`, which also has the difficulties; or the annotations that it comes from, of
gpt4_1106_preview_verbose and _concise, `--gamed A.json B.json --difficulty instruction_difficulty.csv`. Published
weights, a file for each annotator and baseline, predict LC: `--weights FILE --difficulty instruction_difficulty.csv`.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks import Record, once, print_tables, read_rows, value
from stages.files import UserError, command

Array = NDArray[np.float64]

OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE, INSTRUCTIONS = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview", 805
SOURCE = "of the data set tatsu-lab/alpaca_eval on Hugging Face"
"""The publisher of df_gamed.csv and instruction_difficulty.csv."""

GAMED_WEIGHT = 0.2 / 2
"""Weight of a row of the two gamed baselines."""
FOLDS, CS, SEED = 5, np.logspace(-4, 4, 10), 123
"""The seed is that of liblinear's order of coordinates."""

COLUMNS = {
    "model": "model", "length_controlled_winrate": "LC", "lc_standard_error": "LC error", "win_rate": "win rate",
    "standard_error": "error", "discrete_win_rate": "discrete", "avg_length": "length", "n_total": "n",
    "n_draws": "ties", "without_preference": "unjudged", "annotator": "annotator", "baseline": "baseline",
}  # fmt: skip
"""The columns of the table, by key, with their titles."""
WEIGHT_COLUMNS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")


@dataclass(frozen=True)
class Annotations:
    """A judge's preferences between a model and a baseline, n rows in the file's order."""

    path: Path
    names: dict[str, str]
    """"model", "baseline", and "annotator", which may be several names, separated by commas."""
    preferences: Array
    """[n], from 0 (the baseline's output) to 1 (the model's); NaN for no preference."""
    lengths: Array
    """[n, 2], characters of the baseline's and the model's output; NaN for an output that is no text."""
    positions: NDArray[np.int64]
    """[n], the index of the instruction's difficulty: the row's "index" if rows have one, else the row's place."""


@dataclass(frozen=True)
class Gamed:
    """The gamed baselines' rows: features [m, 3] and preferences [m]; and the difficulties [p] by position, or NaN."""

    features: Array
    preferences: Array
    difficulties: Array


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file. Raises `UserError` naming file, entry and key of an invalid row."""
    rows, places = list(read_rows(path)), dict[Any, str]()
    indexed = any("index" in row for _, row in rows)
    preferences, lengths, positions = [], [], []
    for place, (where, row) in enumerate(rows):
        instruction = str(value(row, where, "instruction"))
        once(places, instruction, instruction, where)
        outputs = [value(row, where, key) for key in ("output_1", "output_2")]
        lengths.append([len(output) if isinstance(output, str) else math.nan for output in outputs])
        preferences.append(_preference(value(row, where, "preference"), where))
        position = value(row, where, "index") if indexed else place
        if type(position) not in (int, float) or not float(position).is_integer():
            raise UserError(f"{where}: index is {position!r}; it must be the instruction's place, from 0")
        positions.append(int(position))
    if all(map(math.isnan, preferences)):
        raise UserError(f"{path}: no row has a preference; name a file that a judge has annotated")
    names = {}
    for name, key in (("model", "generator_2"), ("baseline", "generator_1"), ("annotator", "annotator")):
        judged = [entry for entry in rows if name != "annotator" or entry[1].get(key, "") is not None]
        own = list(dict.fromkeys(str(value(row, where, key)) for where, row in judged))
        if not own or (name != "annotator" and len(own) > 1):
            raise UserError(f"{path}: {key} is {', '.join(own) or None}; name one in all rows")
        names[name] = ", ".join(own)
    return Annotations(path, names, np.array(preferences), np.array(lengths), np.array(positions))


def _preference(given: Any, where: str) -> float:
    """A preference in [0, 1], or NaN."""
    try:
        number = math.nan if given is None else float(given) or 1.5
    except (TypeError, ValueError):
        number = math.inf
    if isinstance(given, bool) or not (1 <= number <= 2 or math.isnan(number)):
        raise UserError(f"{where}: preference is {given!r}; it must be from 1 to 2, 0 for a tie, or null")
    return number - 1


def standard_error(values: Array) -> float | None:
    """The standard error of a mean, in percent; None of a single value."""
    return float(100 * values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def annotated(annotations: Annotations, gamed: Gamed | None) -> Record:
    """A model's row: rates and standard errors in percent, counts, the mean length in characters; with `gamed`, LC.

    The win rate is the mean preference. The discrete win rate counts a preference as a win, a loss or, at exactly 1/2,
    half a win. `without_preference` counts the rows that are in nothing else, `without_text` outputs without a length.
    """
    given = annotations.preferences[np.isfinite(annotations.preferences)]
    lengths = annotations.lengths[np.isfinite(annotations.lengths[:, 1]), 1]
    wins, losses = int((given > 0.5).sum()), int((given < 0.5).sum())
    ties = len(given) - wins - losses
    rate, error, weights = length_controlled(annotations, gamed) if gamed else (None, None, None)
    return annotations.names | {
        "length_controlled_winrate": rate,
        "lc_standard_error": error,
        "weights": weights,
        "win_rate": float(100 * given.mean()),
        "standard_error": standard_error(given),
        "discrete_win_rate": 100 * (wins + ties / 2) / len(given),
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": ties,
        "n_total": len(given),
        "without_preference": len(annotations.preferences) - len(given),
        "without_text": len(annotations.lengths) - len(lengths),
        "avg_length": int(lengths.mean()) if len(lengths) else None,  # truncated, as on the leaderboard
    }


def length_controlled(annotations: Annotations, gamed: Gamed) -> tuple[float, float | None, dict[str, float]]:
    """LC and its standard error, in percent, and the weights.

    Rows without a preference are predicted but not fitted; their lengths count in the standard deviation. A model that
    is its own baseline wins 50% by definition.
    """
    if annotations.names["model"] == annotations.names["baseline"]:
        predictions, weights = np.full(np.isfinite(annotations.preferences).sum(), 0.5), np.zeros(3)
    else:
        own = design(annotations, gamed.difficulties, 1.0)
        features = np.concatenate([gamed.features, own])
        targets = np.concatenate([gamed.preferences, annotations.preferences])
        masses, preferred = np.where(features[:, 2] == 1, 1.0, GAMED_WEIGHT), np.isfinite(targets)
        weights = fit(features[preferred], targets[preferred], masses[preferred])
        predictions = logistic(weights[1] * own[:, 1] + weights[2])
    names = ("length", "difficulty", "model")
    by_name = dict(zip(names, weights.tolist(), strict=True))
    return float(100 * predictions.mean()), standard_error(predictions), by_name


def design(annotations: Annotations, difficulties: Array, model: float) -> Array:
    """The features [n, 3] of a file's rows. As in the package, length is -1 or 1 if all differences are equal.

    Raises `UserError` naming the file for an output that is no text, lengths that don't differ, and an instruction
    without difficulty.
    """
    path, difference = annotations.path, annotations.lengths[:, 0] - annotations.lengths[:, 1]
    if (without := np.flatnonzero(np.isnan(difference))).size:
        raise UserError(f"{path}, entry {without[0]}: an output is no text and has no length; mend the row")
    if len(difference) < 2 or not difference.any():
        raise UserError(f"{path}: no two outputs differ in length; there is no length to control for")
    known = set(np.flatnonzero(np.isfinite(difficulties)).tolist())
    if unknown := [place for place in annotations.positions.tolist() if place not in known]:
        raise UserError(f"{path}: no difficulty of number {unknown[0]}, only of {len(known)}; name whole files")
    with np.errstate(divide="ignore"):
        length = np.tanh(difference / difference.std(ddof=1))
    return np.column_stack([length, difficulties[annotations.positions], np.full(len(length), model)])


def fit(features: Array, targets: Array, masses: Array) -> Array:
    """Coefficients [k] of the regression of soft labels [n] in [0, 1] on features [n, k], weighted by `masses` [n].

    Raises `UserError` if scikit-learn, whose liblinear solves it, is missing or too old.
    """
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise UserError("LC needs scikit-learn; pip install '.[evaluation]'") from None
    if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8):  # older ones ignore l1_ratio alone
        raise UserError(f"scikit-learn {sklearn.__version__} is too old for l1_ratio; pip install '.[evaluation]'")
    rows, labels = np.concatenate([features, features]), np.repeat([1, 0], len(features))
    shares, copied = np.concatenate([targets, 1 - targets]), np.concatenate([masses, masses])
    targets_of_1, groups = np.concatenate([targets, targets]), np.tile(np.arange(len(features)), 2)

    def regression(chosen: Any, C: float, random: np.random.RandomState) -> Any:
        model = LogisticRegression(C=C, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=random)
        return model.fit(rows[chosen], labels[chosen], sample_weight=(shares * copied)[chosen])

    losses = np.zeros(len(CS))
    for train, test in GroupKFold(FOLDS).split(rows, groups=groups):
        random = np.random.RandomState(SEED)  # all Cs of a fold share it, as in LogisticRegressionCV
        for i, C in enumerate(CS):
            chance = regression(train, C, random).predict_proba(rows[test])[:, 1].clip(1e-15, 1 - 1e-15)
            entropy = targets_of_1[test] * np.log(chance) + (1 - targets_of_1[test]) * np.log(1 - chance)
            losses[i] -= np.mean(entropy * copied[test])
    return regression(slice(None), CS[losses.argmin()], np.random.RandomState(SEED)).coef_[0]


def logistic(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def read_gamed(paths: Sequence[Path], difficulty: Path | None = None) -> Gamed:
    """The gamed baselines' rows: df_gamed.csv, or annotations of both baselines with the file of difficulties.

    df_gamed.csv has the instructions in order, once for each baseline. So the difficulty of position p is that of row
    p, from 0, as long as the row is the first with its index.
    """
    if len(paths) == 1 and difficulty is None:
        columns = ("std_delta_len", "instruction_difficulty", "index", "preference")
        length, difficulties, index, preferences = read_csv(paths[0], columns, "df_gamed.csv")[1].T
        _, first = np.unique(index, return_index=True)
        features = np.column_stack([np.tanh(length), difficulties, np.zeros_like(length)])
        known = np.where(np.isin(np.arange(len(index)), first), difficulties, math.nan)
        return Gamed(features, preferences, known)
    if len(set(paths)) != 2 or difficulty is None:
        raise UserError(f"--gamed: name df_gamed.csv alone, or both baselines' annotations and --difficulty, {SOURCE}")
    gamed, difficulties = [read_annotations(path) for path in paths], read_difficulties(difficulty)
    features = np.concatenate([design(own, difficulties, 0.0) for own in gamed])
    return Gamed(features, np.concatenate([own.preferences for own in gamed]), difficulties)


def read_difficulties(path: Path) -> Array:
    """The difficulties [p] of all instructions: the column "instruction_difficulty", or the second of two columns."""
    return read_csv(path, ("instruction_difficulty",), "instruction_difficulty.csv")[1][:, 0]


def read_csv(path: Path, columns: Sequence[str], file: str) -> tuple[list[str], Array]:
    """A CSV file's first column as texts, and its named columns [n, k] as numbers; an empty preference is NaN.

    The second of two columns needs no name. Raises `UserError` naming file, line and column.
    """
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), restval="")
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no such file in UTF-8; name {file} {SOURCE}") from None
    header = list(reader.fieldnames or ())
    names = header[1:] if len(header) == 2 and len(columns) == 1 else columns
    if missing := [name for name in names if name not in header] or ([] if rows else ["row"]):
        raise UserError(f"{path}: no {missing[0]}; name {file} {SOURCE}")

    def number(row: dict[str, str], column: str, where: str) -> float:
        try:
            given = float(row[column] or "nan")
        except ValueError:
            given = math.inf
        if not math.isfinite(given) and (column, row[column]) != ("preference", ""):
            raise UserError(f"{where}: {column} is {row[column]!r}; fetch the file again")
        return given

    return [row[header[0]] for _, row in rows], np.array([[number(row, k, at) for k in names] for at, row in rows])


def predicted(path: Path, baseline: str, difficulties: Array) -> list[Record]:
    """Rows with the predicted LC of all models in a file of weights, whose folder ANNOTATOR/... names the annotator."""
    names, weights = read_csv(path, WEIGHT_COLUMNS, "weights, as in alpaca_eval's folder metrics/weights, or a file")
    if baseline not in names or len(set(names)) < len(names):
        raise UserError(f"{path}: {baseline!r} must be one of its {len(names)} models, such as {names[0]}, named once")
    folder = path.absolute().parent
    annotator = folder.parent.name if folder.name == "length_controlled_v1" else "an unknown annotator"
    gaps = weights - weights[names.index(baseline)]
    rates = [float(100 * logistic(own[1] * difficulties + own[2]).mean()) for own in gaps]
    pairs = zip(names, rates, strict=True)
    known = {"baseline": baseline, "annotator": annotator}
    return [{"model": name} | known | {"length_controlled_winrate": rate} for name, rate in pairs]


def notes(rows: Sequence[Record]) -> list[str]:
    """Notes on unofficial rows, on rows without all instructions or texts, and on missing length control."""
    official = f"by {OFFICIAL_ANNOTATOR} against {OFFICIAL_BASELINE}"
    others = sorted({f"by {row['annotator']} against {row['baseline']}" for row in rows} - {official})
    lines = [f"judged {other}: not the official AlpacaEval 2 number, which is {official}" for other in others]
    for row in rows:
        if (count := row.get("n_total", INSTRUCTIONS)) != INSTRUCTIONS:
            lines.append(f"{row['model']}: a preference on {count} instructions; AlpacaEval has {INSTRUCTIONS}")
        if count := row.get("without_text"):
            lines.append(f"{row['model']}: {count} outputs are no texts, and not in its length")
    if any(row["length_controlled_winrate"] is None for row in rows):
        lines.append(f"no length-controlled win rate: it needs --gamed df_gamed.csv, {SOURCE}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="AlpacaEval 2's win rates, from files of annotations or of weights.")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--annotations", type=Path, nargs="+", help="annotations.json, one file for each model")
    inputs.add_argument("--weights", type=Path, help="weights of many models, as published by alpaca_eval")
    gamed = f"df_gamed.csv, {SOURCE}; or annotations of the gamed baselines, with --difficulty"
    parser.add_argument("--gamed", type=Path, nargs="+", help=gamed)
    parser.add_argument("--difficulty", type=Path, help=f"instruction_difficulty.csv, {SOURCE}")
    parser.add_argument("--baseline", help=f"baseline of --weights; default: {OFFICIAL_BASELINE}")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    given = parser.parse_args()
    if given.weights:
        if given.gamed or not given.difficulty:
            raise UserError(f"--weights: needs --difficulty instruction_difficulty.csv, {SOURCE}, and no --gamed")
        rows = predicted(given.weights, given.baseline or OFFICIAL_BASELINE, read_difficulties(given.difficulty))
    else:
        if given.baseline or (given.difficulty and not given.gamed):
            raise UserError("--baseline is for --weights, --difficulty for --weights or --gamed; leave them out")
        gamed_rows = read_gamed(given.gamed, given.difficulty) if given.gamed else None
        rows = [annotated(read_annotations(path), gamed_rows) for path in given.annotations]
    shown = rows if given.json else [{title: row.get(key) for key, title in COLUMNS.items()} for row in rows]
    print_tables([{"title": "AlpacaEval 2", "notes": notes(rows), "rows": shown}], 2, given.json)


if __name__ == "__main__":
    command(main)
