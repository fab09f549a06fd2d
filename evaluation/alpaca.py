"""AlpacaEval 2: win rate, length-controlled (LC) win rate and counts, in percent as on the leaderboard.

`python -m evaluation.alpaca --annotations FILE ... [--gamed df_gamed.csv]`: files as `alpaca_eval` or annotate.py write
them, one for each model. `--weights FILE --difficulty instruction_difficulty.csv [--baseline NAME]`: the LC of all
models of published weights. LC needs the data set tatsu-lab/alpaca_eval on Hugging Face, which has the two CSV files.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.benchmarks import print_tables
from stages.command import UserError, arguments, command
from stages.records import Record
from stages.rows import NUMBER, TEXT, Kind, Row, read_rows

Array = NDArray[np.float64]

OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE, INSTRUCTIONS = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview", 805
SOURCE = "of the data set tatsu-lab/alpaca_eval on Hugging Face"
WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
GAMED_WEIGHT = 0.2 / 2  # of a row of the two gamed baselines
SHARE = Kind("a number from 0 to 1, or nothing", lambda value: math.isnan(value) or 0 <= value <= 1)
# Rows without a preference have perhaps no annotator.
NAMED = Kind("a text, a whole number or null", lambda value: type(value) in (str, int) or value is None)
FOLDS, CS, SEED = 5, np.logspace(-4, 4, 10), 123  # liblinear's order of coordinates is drawn


class Annotations(NamedTuple):  # a judge's preferences between a model and a baseline, n rows in the file's order
    path: Path
    names: dict[str, str]  # "model", "baseline", and "annotator", which may be several, separated by commas
    preferences: Array  # [n], from 0 (the baseline's output) to 1 (the model's); NaN for no preference
    lengths: Array  # [n, 2], characters of the baseline's and the model's output; NaN for an output that is no text
    positions: list[Any]  # [n], the number of the instruction's difficulty: "index" if rows have it, else the place


class Gamed(NamedTuple):  # the gamed baselines' features [m, 3] and preferences [m]; difficulties by position
    features: Array
    preferences: Array
    difficulties: Mapping[Any, float]


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file: output_1 is the baseline's. A preference is from 1 to 2, 0 for a tie, or null.

    Raises `UserError` naming file, entry and key of an invalid row.
    """
    rows, names, preferences = list(read_rows(path)), dict[str, str](), list[float]()
    outputs = [(row.value("output_1"), row.value("output_2")) for row in rows]
    for row in rows:
        given = row.value("preference")
        try:
            number = math.nan if given is None else float(given) or 1.5
        except (OverflowError, TypeError, ValueError):
            number = math.inf
        if isinstance(given, bool) or not (1 <= number <= 2 or math.isnan(number)):
            raise UserError(f"{row.where}: preference is {given!r}; it must be from 1 to 2, 0 for a tie, or null")
        preferences.append(number - 1)
    if len({row.value("instruction", kind=TEXT) for row in rows}) < len(rows):
        raise UserError(f"{path}: an instruction comes twice; keep one row of each")
    if all(map(math.isnan, preferences)):
        raise UserError(f"{path}: no row has a preference; name a file that a judge has annotated")
    for name, key in (("model", "generator_2"), ("baseline", "generator_1"), ("annotator", "annotator")):
        known = dict.fromkeys(str(given) for row in rows if (given := row.value(key, kind=NAMED)) not in (None, ""))
        names[name] = ", ".join(known)
        if not known or (len(known) > 1 and name != "annotator"):
            raise UserError(f"{path}: {key} is {names[name] or None}; name one in all rows")
    lengths = [[len(text) if isinstance(text, str) else math.nan for text in pair] for pair in outputs]
    numbered = any("index" in row.content for row in rows)
    positions = [row.value("index", kind=NUMBER) if numbered else place for place, row in enumerate(rows)]
    return Annotations(path, names, np.array(preferences), np.array(lengths), positions)


def annotated(annotations: Annotations, gamed: Gamed | None) -> Record:
    """A model's row: rates and standard errors in percent, and counts. In the discrete rate a tie is half a win."""

    def percent(values: Array) -> tuple[float, float | None]:  # the mean and its error, which a single value lacks
        error = float(100 * values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        return float(100 * values.mean()), error

    given = annotations.preferences[np.isfinite(annotations.preferences)]
    lengths = annotations.lengths[np.isfinite(annotations.lengths[:, 1]), 1]
    wins, losses = int((given > 0.5).sum()), int((given < 0.5).sum())
    ties = len(given) - wins - losses
    lc, lc_error = percent(length_controlled(annotations, gamed)[0]) if gamed else (None, None)
    rate, error = percent(given)
    row: Record = {"model": annotations.names["model"]}
    row |= {"length_controlled_winrate": lc, "lc_standard_error": lc_error}
    row |= {"win_rate": rate, "standard_error": error, "discrete_win_rate": 100 * (wins + ties / 2) / len(given)}
    row["avg_length"] = int(lengths.mean()) if len(lengths) else None  # truncated, as on the leaderboard
    row["without_preference"] = len(annotations.preferences) - len(given)
    row["without_text"] = len(annotations.lengths) - len(lengths)
    return row | {"n_wins": wins, "n_wins_base": losses, "n_draws": ties, "n_total": len(given)} | annotations.names


def length_controlled(annotations: Annotations, gamed: Gamed) -> tuple[Array, Array]:
    """The predicted preferences at equal lengths, whose mean is LC, and the weights of length, difficulty and model.

    As `length_controlled_v1` of `alpaca_eval` 0.6.6 (Dubois et al., arXiv 2404.04475), without intercept, with d the
    baseline's characters minus the model's:

        q_i ~ sigmoid(w_length tanh(d_i / std(d)) + w_difficulty difficulty_i + w_model)

    The rows of two baselines that game length, added with weight 0.1 and without w_model, keep w_length small. Rows
    without a preference are predicted but not fitted; their lengths count in std(d).
    """
    if annotations.names["model"] == annotations.names["baseline"]:  # 50% by definition
        return np.full(np.isfinite(annotations.preferences).sum(), 0.5), np.zeros(3)
    difference = annotations.lengths[:, 0] - annotations.lengths[:, 1]
    if len(difference) < 2 or not difference.any() or np.isnan(difference).any():
        raise UserError(f"{annotations.path}: no LC: all outputs must be texts, of lengths that differ")
    if unknown := [position for position in annotations.positions if position not in gamed.difficulties]:
        known = f"only of {len(gamed.difficulties)}; name whole files"
        raise UserError(f"{annotations.path}: no difficulty of number {unknown[0]!r}, {known}")
    with np.errstate(divide="ignore"):  # equal differences are infinite, as in the package, and tanh makes them -1 or 1
        length = np.tanh(difference / difference.std(ddof=1))
    difficulty = np.array([gamed.difficulties[position] for position in annotations.positions])
    features = np.concatenate([gamed.features, np.column_stack([length, difficulty, np.ones_like(length)])])
    targets = np.concatenate([gamed.preferences, annotations.preferences])
    masses, preferred = np.where(features[:, 2] == 1, 1.0, GAMED_WEIGHT), np.isfinite(targets)
    weights = fit(features[preferred], targets[preferred], masses[preferred])
    return logistic(weights[1] * difficulty + weights[2]), weights


def fit(features: Array, targets: Array, masses: Array) -> Array:
    """Coefficients [k] of the regression of soft labels [n] in [0, 1] on features [n, k], weighted by `masses` [n].

    A soft label q is two examples: label 1 with weight q, label 0 with weight 1 - q. The penalty is L1. Its C is the
    one of ten with the lowest held-out cross-entropy, in five folds that keep both examples of a row together.
    """
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold

        if tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8):
            raise ImportError
    except ImportError:
        raise UserError("LC needs scikit-learn 1.8, which has l1_ratio; pip install '.[evaluation]'") from None
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
    """The rows of df_gamed.csv. Row p, if it is the first with its index, has the difficulty of position p."""
    columns = ("std_delta_len", "instruction_difficulty", "index", "preference")
    length, difficulties, index, preferences = read_csv(path, columns, "df_gamed.csv")[1].T
    features = np.column_stack([np.tanh(length), difficulties, np.zeros_like(length)])
    return Gamed(features, preferences, {int(p): difficulties[p] for p in np.unique(index, return_index=True)[1]})


def read_csv(path: Path, columns: Sequence[str], file: str) -> tuple[list[str], Array]:
    """A CSV file's first column as texts, and these columns (none: the last) [n, k] as numbers; preferences may be NaN.
    Errors tell users to name `file`.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), restval=""))
        if not rows:
            raise ValueError("no rows")
        names = columns or list(rows[0])[-1:]
        numbers = [[float(row[name] or "nan") for name in names] for row in rows]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: missing, or not the right file ({error}); name {file} {SOURCE}") from None
    for place, values in enumerate(numbers, 1):
        for name, value in zip(names, values, strict=True):
            Row(f"{path}, row {place}", {name: value}).value(name, kind=SHARE if name == "preference" else NUMBER)
    return [next(iter(row.values())) for row in rows], np.array(numbers)


def predicted(path: Path, baseline: str, difficulty: Path) -> list[Record]:
    """The predicted LC of all models in a file of weights, whose folder ANNOTATOR/... names the annotator."""
    names, weights = read_csv(path, WEIGHTS, "weights, as in alpaca_eval's folder metrics/weights, or a file")
    if baseline not in names:
        raise UserError(f"{path}: {baseline!r} must be one of its {len(names)} models, such as {names[0]}")
    difficulties = read_csv(difficulty, (), "instruction_difficulty.csv")[1]
    folder = path.absolute().parent
    annotator = folder.parent.name if folder.name == "length_controlled_v1" else "an unknown annotator"
    gaps = weights - weights[names.index(baseline)]
    rates = 100 * logistic(gaps[:, 1] * difficulties + gaps[:, 2]).mean(0)
    facts, models = {"annotator": annotator, "baseline": baseline}, zip(names, rates.tolist(), strict=True)
    return [{"model": name, "length_controlled_winrate": rate} | facts for name, rate in models]


def notes(rows: Sequence[Record]) -> list[str]:
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
    file: Any = {"type": Path}
    given = arguments(
        __doc__, annotations=file | {"nargs": "+"}, gamed=file, weights=file, difficulty=file,
        baseline={"default": OFFICIAL_BASELINE, "help": "default: %(default)s"},
    )  # fmt: skip
    if len({bool(given.weights), bool(given.difficulty), not given.annotations}) > 1 or (given.weights and given.gamed):
        either = "--annotations, for LC with --gamed, or --weights with --difficulty instruction_difficulty.csv"
        raise UserError(f"name {either}, {SOURCE}")
    if given.weights:
        rows = predicted(given.weights, given.baseline, given.difficulty)
    else:
        gamed = read_gamed(given.gamed) if given.gamed else None
        rows = [annotated(read_annotations(path), gamed) for path in given.annotations]
    print_tables([{"title": "AlpacaEval 2", "notes": notes(rows), "rows": rows}], 2)


if __name__ == "__main__":
    command(main)
