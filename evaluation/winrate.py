"""AlpacaEval 2's numbers, from files of annotations: win rate, length-controlled win rate, and counts.

`python -m evaluation.winrate --annotations FILE ...` prints a table with a row for each model. Names and units are
those of AlpacaEval's leaderboard: all rates and standard errors are in percent.

The length-controlled win rate needs AlpacaEval's gamed rows, `--gamed df_gamed.csv`. They also hold the instructions'
difficulties, which the package's fit uses, and so does this one; with `--difficulty` beside it, a note says if the two
differ. The annotations behind that file, of gpt4_1106_preview_verbose and _concise, can replace it: `--gamed A.json
B.json --difficulty instruction_difficulty.csv`.

Published weights, a file for each annotator and baseline, predict the rate: `--weights FILE --difficulty
instruction_difficulty.csv`.

The official number has one annotator and one baseline. All other numbers are shown with their judge's name.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.annotations import Annotations, read_annotations
from evaluation.length_controlled import (
    SOURCE,
    Gamed,
    length_controlled,
    predict,
    read_difficulties,
    read_gamed,
    read_weights,
)
from evaluation.statistics import columns
from stages.files import UserError, command

OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview"
INSTRUCTIONS = 805

Record = dict[str, Any]


def win_rate(preferences: NDArray[np.float64]) -> Record:
    """Win rate, standard error and discrete win rate, in percent, and counts, of preferences [n] in [0, 1].

    The win rate is the mean preference. The discrete win rate counts a preference as a win, a loss or, at exactly 1/2,
    half a win. NaN, no preference, is left out; there must be one preference. A single one has no standard error: None.
    """
    given = preferences[np.isfinite(preferences)]
    wins, losses = int((given > 0.5).sum()), int((given < 0.5).sum())
    ties = len(given) - wins - losses
    error = float(100 * given.std(ddof=1) / math.sqrt(len(given))) if len(given) > 1 else None
    return {
        "win_rate": float(100 * given.mean()),
        "standard_error": error,
        "discrete_win_rate": 100 * (wins + ties / 2) / len(given),
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": ties,
        "n_total": len(given),
    }


def annotated(annotations: Annotations, gamed: Gamed | None) -> Record:
    """A model's row: model, baseline, annotator and rates; with the gamed rows, the length-controlled win rate.

    `avg_length` is in characters, over the outputs that are texts; `without_text` counts the others.
    `without_preference` counts rows that are not in `n_total`.
    """
    lengths = annotations.lengths[:, 1]
    controlled = length_controlled(annotations, gamed) if gamed else None
    return (
        _who(annotations.model, annotations.baseline, annotations.annotator, annotations.path)
        | {
            "length_controlled_winrate": controlled.win_rate if controlled else None,
            "lc_standard_error": controlled.standard_error if controlled else None,
            "weights": vars(controlled.weights) if controlled else None,
        }
        | win_rate(annotations.preferences)
        | {
            "without_preference": int(np.isnan(annotations.preferences).sum()),
            "without_text": int(np.isnan(lengths).sum()),
            "avg_length": None if np.isnan(lengths).all() else float(np.nanmean(lengths)),
        }
    )


def predicted(path: Path, models: Sequence[str], baseline: str, difficulty: Path) -> list[Record]:
    """Rows with the predicted length-controlled win rate, of the named models, or of all models in a file of weights.

    The folder ANNOTATOR/length_controlled_v1, as in `alpaca_eval`, names the annotator. Raises `UserError` for a model
    without weights.
    """
    weights, difficulties = read_weights(path), read_difficulties(difficulty)
    for name in (baseline, *models):
        if name not in weights:
            raise UserError(
                f"{path}: no weights of {name!r}; it has {len(weights)} models, such as {next(iter(weights))}"
            )
    folder = path.absolute().parent
    annotator = folder.parent.name if folder.name == "length_controlled_v1" else "an unknown annotator"
    return [
        _who(name, baseline, annotator, path)
        | {"length_controlled_winrate": predict(weights[name], weights[baseline], difficulties)}
        for name in models or weights
    ]


def _who(model: str, baseline: str, annotator: str, path: Path) -> Record:
    official = (annotator, baseline) == (OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE)
    return {"model": model, "baseline": baseline, "annotator": annotator, "official": official, "file": str(path)}


def notes(rows: Sequence[Record]) -> list[str]:
    """Notes on unofficial rows, on rows without all instructions or texts, and on missing length control."""
    unofficial = sorted({(row["annotator"], row["baseline"]) for row in rows if not row["official"]})
    lines = [
        f"judged by {annotator} against {baseline}: not the official AlpacaEval 2 number, "
        f"which is by {OFFICIAL_ANNOTATOR} against {OFFICIAL_BASELINE}"
        for annotator, baseline in unofficial
    ]
    lines += [
        f"{row['model']}: a preference on {row['n_total']} instructions; AlpacaEval has {INSTRUCTIONS}"
        for row in rows
        if row.get("n_total", INSTRUCTIONS) != INSTRUCTIONS
    ]
    lines += [
        f"{row['model']}: {row['without_text']} outputs are no texts, and not in its length"
        for row in rows
        if row.get("without_text")
    ]
    if any(row["length_controlled_winrate"] is None for row in rows):
        lines.append(f"no length-controlled win rate: it needs --gamed df_gamed.csv, {SOURCE}")
    return lines


def unequal(gamed: Gamed, difficulties: NDArray[np.float64]) -> list[str]:
    """A note if the gamed rows' difficulties differ from those of --difficulty."""
    places = sorted(gamed.difficulties)
    if places == list(range(len(difficulties))):
        gap = float(np.abs(np.array([gamed.difficulties[place] for place in places]) - difficulties).max())
        if gap <= 1e-6:
            return []
        return [f"the difficulties of --difficulty and --gamed differ by up to {gap:.2g}; --gamed's are taken"]
    return [f"--difficulty has {len(difficulties)} instructions, --gamed {len(places)}; --gamed's are taken"]


COLUMNS = {
    "model": "model",
    "length_controlled_winrate": "LC",
    "lc_standard_error": "LC error",
    "win_rate": "win rate",
    "standard_error": "error",
    "discrete_win_rate": "discrete",
    "avg_length": "length",
    "n_total": "n",
    "n_draws": "ties",
    "without_preference": "unjudged",
    "annotator": "annotator",
    "baseline": "baseline",
}
"""The columns of a table, by key, with their titles."""


def table(rows: Sequence[Record]) -> str:
    """Rows as text, without empty columns."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    return "\n".join(
        columns([[COLUMNS[key] for key in keys], *([_cell(key, row[key]) for key in keys] for row in rows)])
    )


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "avg_length":
        return str(int(value))  # truncated, as on AlpacaEval's leaderboard
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="AlpacaEval 2's win rates, from files of annotations or of weights.")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--annotations", type=Path, nargs="+", help="annotations.json, one file for each model")
    inputs.add_argument("--weights", type=Path, help="weights of many models, as published by alpaca_eval")
    gamed = f"df_gamed.csv, {SOURCE}; or annotations of the gamed baselines, with --difficulty"
    parser.add_argument("--gamed", type=Path, nargs="+", help=gamed)
    parser.add_argument("--difficulty", type=Path, help=f"instruction_difficulty.csv, {SOURCE}")
    parser.add_argument("--model", nargs="+", default=[], help="models of --weights; default: all")
    parser.add_argument("--baseline", help=f"baseline of --weights; default: {OFFICIAL_BASELINE}")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    if arguments.weights and not arguments.difficulty:
        raise UserError(f"--weights: the prediction needs --difficulty instruction_difficulty.csv, {SOURCE}")
    if arguments.weights and arguments.gamed:
        raise UserError("--gamed: a prediction from --weights doesn't use it; leave it out")
    if arguments.annotations and (arguments.model or arguments.baseline):
        raise UserError("--model, --baseline: annotations name their models; leave them out, or name --weights")
    if arguments.annotations and arguments.difficulty and not arguments.gamed:
        raise UserError(f"--difficulty: a length-controlled win rate needs --gamed df_gamed.csv too, {SOURCE}")
    return arguments


def main() -> None:
    arguments = read_arguments()
    lines: list[str] = []
    if arguments.weights:
        baseline = arguments.baseline or OFFICIAL_BASELINE
        rows = predicted(arguments.weights, arguments.model, baseline, arguments.difficulty)
    else:
        difficulties = read_difficulties(arguments.difficulty) if arguments.difficulty else None
        gamed = read_gamed(arguments.gamed, difficulties) if arguments.gamed else None
        rows = [annotated(read_annotations(path), gamed) for path in arguments.annotations]
        if gamed and difficulties is not None:
            lines = unequal(gamed, difficulties)
    lines += notes(rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "notes": lines}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([table(rows), *lines]))


if __name__ == "__main__":
    command(main)
