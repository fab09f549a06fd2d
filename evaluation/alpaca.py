"""AlpacaEval 2's numbers from files of annotations: win rate, length-controlled (LC) win rate, and counts.

`python -m evaluation.alpaca --annotations FILE ...` prints a row for each model, in percent as on the leaderboard. A
file is a JSON list as `alpaca_eval` or `evaluation/annotate.py` writes it: output_1 is the baseline's, output_2 the
model's; a preference goes from 1 (the baseline's) to 2 (the model's), also as a string; 1.5, or in older files 0, is a
tie; null is no preference, and such a row may have no annotator. A file may have several annotators.

LC (Dubois et al., arXiv 2404.04475; `length_controlled_v1` of `alpaca_eval` 0.6.6) estimates the win rate if both
outputs had the same length. A logistic regression without intercept predicts the preference q in [0, 1] of row i,

    q_i ~ sigmoid(w_length tanh(d_i / std(d)) + w_difficulty difficulty_i + w_model)

where d is the baseline's characters minus the model's, and std(d) is over all rows, with n - 1. The rows of two
baselines that game length are added, each with weight 0.1 and without w_model; they keep w_length small. `--gamed
df_gamed.csv` has these rows and the difficulties. LC is the mean of sigmoid(w_difficulty difficulty_i + w_model). A
soft label is two examples: label 1 with weight q, label 0 with weight 1 - q. The penalty is L1. Its C is the one of ten
with the lowest held-out cross-entropy, in five folds that keep both examples of a row together. Published weights
predict LC: `--weights FILE --difficulty instruction_difficulty.csv`.
"""

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks import Record, print_tables, read_rows, value
from stages.files import UserError, command

Array = NDArray[np.float64]

OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE, INSTRUCTIONS = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview", 805
SOURCE = "of the data set tatsu-lab/alpaca_eval on Hugging Face"
WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
GAMED_WEIGHT = 0.2 / 2  # of a row of the two gamed baselines
FOLDS, CS, SEED = 5, np.logspace(-4, 4, 10), 123  # liblinear's order of coordinates is drawn


class Annotations(NamedTuple):
    """A judge's preferences between a model and a baseline, n rows in the file's order."""

    path: Path
    names: dict[str, str]  # "model", "baseline", and "annotator", which may be several, separated by commas
    preferences: Array  # [n], from 0 (the baseline's output) to 1 (the model's); NaN for no preference
    lengths: Array  # [n, 2], characters of the baseline's and the model's output; NaN for an output that is no text
    positions: list[Any]  # [n], the number of the instruction's difficulty: "index" if rows have it, else the place


class Gamed(NamedTuple):
    """The gamed baselines' rows: features [m, 3] and preferences [m]; and the difficulties by position."""

    features: Array
    preferences: Array
    difficulties: Mapping[Any, float]


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file. Raises `UserError` naming file, entry and key of an invalid row."""
    rows = list(read_rows(path))
    lengths, preferences, names = [], [], dict[str, str]()
    for where, row in rows:
        outputs = [value(row, where, key) for key in ("output_1", "output_2")]
        lengths.append([len(output) if isinstance(output, str) else math.nan for output in outputs])
        preferences.append(_preference(value(row, where, "preference"), where))
    if len({value(row, where, "instruction") for where, row in rows}) < len(rows):
        raise UserError(f"{path}: an instruction comes twice; keep one row of each")
    if all(map(math.isnan, preferences)):
        raise UserError(f"{path}: no row has a preference; name a file that a judge has annotated")
    for name, key in (("model", "generator_2"), ("baseline", "generator_1"), ("annotator", "annotator")):
        own = dict.fromkeys(given for where, row in rows if (given := value(row, where, key)))
        names[name] = ", ".join(own)
        if not own or (len(own) > 1 and name != "annotator"):
            raise UserError(f"{path}: {key} is {names[name] or None}; name one in all rows")
    indexed = "index" in rows[0][1]
    positions = [value(row, where, "index") if indexed else place for place, (where, row) in enumerate(rows)]
    return Annotations(path, names, np.array(preferences), np.array(lengths), positions)


def _preference(given: Any, where: str) -> float:
    """A preference in [0, 1], or NaN."""
    try:
        number = math.nan if given is None else float(given) or 1.5
    except (TypeError, ValueError):
        number = math.inf
    if not (1 <= number <= 2 or math.isnan(number)):
        raise UserError(f"{where}: preference is {given!r}; it must be from 1 to 2, 0 for a tie, or null")
    return number - 1


def standard_error(values: Array) -> float | None:
    """The standard error of a mean, in percent; None of a single value."""
    return float(100 * values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def annotated(annotations: Annotations, gamed: Gamed | None) -> Record:
    """A model's row, with the leaderboard's names: rates and standard errors in percent, counts, and the mean length.

    The discrete win rate counts a preference as a win, a loss or, at exactly 1/2, half a win. `without_preference`
    counts the rows that are in nothing else.
    """
    names, given = annotations.names, annotations.preferences[np.isfinite(annotations.preferences)]
    lengths = annotations.lengths[np.isfinite(annotations.lengths[:, 1]), 1]
    wins, losses = int((given > 0.5).sum()), int((given < 0.5).sum())
    ties = len(given) - wins - losses
    predictions = length_controlled(annotations, gamed)[0] if gamed else None
    row = {
        "model": names["model"],
        "length_controlled_winrate": None if predictions is None else float(100 * predictions.mean()),
        "lc_standard_error": None if predictions is None else standard_error(predictions),
        "win_rate": float(100 * given.mean()),
        "standard_error": standard_error(given),
        "discrete_win_rate": 100 * (wins + ties / 2) / len(given),
        "avg_length": int(lengths.mean()) if len(lengths) else None,  # truncated, as on the leaderboard
        "without_preference": len(annotations.preferences) - len(given),
        "without_text": len(annotations.lengths) - len(lengths),
    }
    return row | {"n_wins": wins, "n_wins_base": losses, "n_draws": ties, "n_total": len(given)} | names


def length_controlled(annotations: Annotations, gamed: Gamed) -> tuple[Array, Array]:
    """The predicted preferences at equal lengths, whose mean is LC, and the weights of length, difficulty and model.

    Rows without a preference are predicted but not fitted; their lengths count in the standard deviation. A model that
    is its own baseline wins 50% by definition.
    """
    if annotations.names["model"] == annotations.names["baseline"]:
        return np.full(np.isfinite(annotations.preferences).sum(), 0.5), np.zeros(3)
    own = design(annotations, gamed.difficulties)
    features = np.concatenate([gamed.features, own])
    targets = np.concatenate([gamed.preferences, annotations.preferences])
    masses, preferred = np.where(features[:, 2] == 1, 1.0, GAMED_WEIGHT), np.isfinite(targets)
    weights = fit(features[preferred], targets[preferred], masses[preferred])
    return logistic(weights[1] * own[:, 1] + weights[2]), weights


def design(annotations: Annotations, difficulties: Mapping[Any, float]) -> Array:
    """The features [n, 3] of a file's rows. As in the package, length is -1 or 1 if all differences are equal.

    Raises `UserError` naming the file if lengths are missing or equal, or an instruction has no difficulty.
    """
    path, difference = annotations.path, annotations.lengths[:, 0] - annotations.lengths[:, 1]
    if len(difference) < 2 or not difference.any() or np.isnan(difference).any():
        raise UserError(f"{path}: no LC: all outputs must be texts, of lengths that differ")
    difficulty = np.array([difficulties.get(position, math.nan) for position in annotations.positions])
    if unknown := [position for position in annotations.positions if position not in difficulties]:
        raise UserError(
            f"{path}: no difficulty of number {unknown[0]!r}, only of {len(difficulties)}; name whole files"
        )
    with np.errstate(divide="ignore"):
        length = np.tanh(difference / difference.std(ddof=1))
    return np.column_stack([length, difficulty, np.ones_like(length)])


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
    rows, groups = np.tile(features, (2, 1)), np.tile(np.arange(len(features)), 2)
    labels, shares = np.repeat([1, 0], len(features)), np.concatenate([targets, 1 - targets])
    targets, masses = np.tile(targets, 2), np.tile(masses, 2)

    def regression(chosen: Any, C: float, random: np.random.RandomState) -> Any:
        model = LogisticRegression(C=C, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=random)
        return model.fit(rows[chosen], labels[chosen], sample_weight=(shares * masses)[chosen])

    losses = np.zeros(len(CS))
    for train, test in GroupKFold(FOLDS).split(rows, groups=groups):
        random = np.random.RandomState(SEED)  # all Cs of a fold share it, as in LogisticRegressionCV
        for i, C in enumerate(CS):
            chance = regression(train, C, random).predict_proba(rows[test])[:, 1].clip(1e-15, 1 - 1e-15)
            entropy = targets[test] * np.log(chance) + (1 - targets[test]) * np.log(1 - chance)
            losses[i] -= np.mean(entropy * masses[test])
    return regression(slice(None), CS[losses.argmin()], np.random.RandomState(SEED)).coef_[0]


def logistic(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def read_gamed(path: Path) -> Gamed:
    """The gamed baselines' rows and the difficulties, from df_gamed.csv.

    The file has the instructions in order, once for each baseline. So the difficulty of position p is that of row p,
    from 0, as long as the row is the first with its index.
    """
    columns = ("std_delta_len", "instruction_difficulty", "index", "preference")
    length, difficulties, index, preferences = read_csv(path, columns, "df_gamed.csv")[1].T
    features = np.column_stack([np.tanh(length), difficulties, np.zeros_like(length)])
    return Gamed(features, preferences, {int(p): difficulties[p] for p in np.unique(index, return_index=True)[1]})


def read_csv(path: Path, columns: Sequence[str], file: str) -> tuple[list[str], Array]:
    """A CSV file's first column as texts, and these columns (none: the last) [n, k] as numbers; preferences may be NaN.

    Raises `UserError` naming the path and what is wrong; `file` is the file to name instead.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), restval=""))
        names = columns or list(rows[0] if rows else ())[-1:]
        numbers = np.array([[float(row[name] or "nan") for name in names] for row in rows])
        if not rows or np.isnan(numbers[:, [name != "preference" for name in names]]).any():
            raise ValueError("a number is missing")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: missing, or not the right file ({error}); name {file} {SOURCE}") from None
    return [next(iter(row.values())) for row in rows], numbers


def predicted(path: Path, baseline: str, difficulty: Path) -> list[Record]:
    """Rows with the predicted LC of all models in a file of weights, whose folder ANNOTATOR/... names the annotator.

    `difficulty`: the file with the difficulties of all instructions.
    """
    names, weights = read_csv(path, WEIGHTS, "weights, as in alpaca_eval's folder metrics/weights, or a file")
    if baseline not in names:
        raise UserError(f"{path}: {baseline!r} must be one of its {len(names)} models, such as {names[0]}")
    difficulties = read_csv(difficulty, (), "instruction_difficulty.csv")[1]
    folder = path.absolute().parent
    annotator = folder.parent.name if folder.name == "length_controlled_v1" else "an unknown annotator"
    gaps = weights - weights[names.index(baseline)]
    rates = 100 * logistic(gaps[:, 1] * difficulties + gaps[:, 2]).mean(0)
    pairs, known = zip(names, rates.tolist(), strict=True), {"annotator": annotator, "baseline": baseline}
    return [{"model": name, "length_controlled_winrate": rate} | known for name, rate in pairs]


def notes(rows: Sequence[Record]) -> list[str]:
    """Notes on unofficial rows, on rows without all instructions, and on missing length control."""
    official = f"by {OFFICIAL_ANNOTATOR} against {OFFICIAL_BASELINE}"
    others = sorted({f"by {row['annotator']} against {row['baseline']}" for row in rows} - {official})
    lines = [f"judged {other}: not the official AlpacaEval 2 number, which is {official}" for other in others]
    for row in rows:
        if (count := row.get("n_total", INSTRUCTIONS)) != INSTRUCTIONS:
            lines.append(f"{row['model']}: a preference on {count} instructions; AlpacaEval has {INSTRUCTIONS}")
    if any(row["length_controlled_winrate"] is None for row in rows):
        lines.append(f"no length-controlled win rate: it needs --gamed df_gamed.csv, {SOURCE}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="AlpacaEval 2's win rates, from files of annotations or of weights.")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--annotations", type=Path, nargs="+", help="annotations.json, one file for each model")
    inputs.add_argument("--weights", type=Path, help="weights of many models, as published by alpaca_eval")
    parser.add_argument("--gamed", type=Path, help=f"with --annotations, for LC: df_gamed.csv, {SOURCE}")
    parser.add_argument("--difficulty", type=Path, help=f"with --weights: instruction_difficulty.csv, {SOURCE}")
    parser.add_argument("--baseline", default=OFFICIAL_BASELINE, help="baseline of --weights; default: %(default)s")
    given = parser.parse_args()
    if bool(given.weights) != bool(given.difficulty) or (given.weights and given.gamed):
        raise UserError(f"--weights needs --difficulty instruction_difficulty.csv, {SOURCE}; --annotations --gamed")
    if given.weights:
        rows = predicted(given.weights, given.baseline, given.difficulty)
    else:
        gamed = read_gamed(given.gamed) if given.gamed else None
        rows = [annotated(read_annotations(path), gamed) for path in given.annotations]
    print_tables([{"title": "AlpacaEval 2", "notes": notes(rows), "rows": rows}], 2)


if __name__ == "__main__":
    command(main)
