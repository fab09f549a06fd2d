"""AlpacaEval 2's numbers, from files of annotations: win rate, length-controlled win rate, and what they rest on.

`python -m evaluation.winrate --annotations FILE ...` makes a table, a row a model. Names and units are those of
AlpacaEval's leaderboard: all rates and their standard errors are in percent.

The length-controlled win rate needs AlpacaEval's gamed rows, `--gamed df_gamed.csv`. They hold the instructions'
difficulties too; the package's fit takes them from there, and so does this one: `--difficulty` beside it is compared,
and a difference told. In place of that file may stand the annotations from which it was made, those of
gpt4_1106_preview_verbose and _concise, `--gamed A.json B.json --difficulty instruction_difficulty.csv`.

From published weights, of which there is a file for each annotator and baseline, the rate is predicted: `--weights FILE
--difficulty instruction_difficulty.csv`.

The official number is that of one annotator against one baseline. What any other judge says has its name beside it.
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
    """Win rate, its standard error, and discrete win rate, in percent, and the counts, of preferences [n] in [0, 1].

    A preference counts as far as it goes; in the discrete win rate it is a win, a loss or, at exactly 1/2, half a win.
    NaN is no preference and counts nowhere; at least one must be known. The standard error of one preference is None.
    """
    known = preferences[np.isfinite(preferences)]
    wins, losses = int((known > 0.5).sum()), int((known < 0.5).sum())
    ties = len(known) - wins - losses
    error = float(100 * known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    return {
        "win_rate": float(100 * known.mean()),
        "standard_error": error,
        "discrete_win_rate": 100 * (wins + ties / 2) / len(known),
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": ties,
        "n_total": len(known),
    }


def annotated(annotations: Annotations, gamed: Gamed | None) -> Record:
    """A model's row: who was judged by whom, the rates, and with the gamed rows the length-controlled one.

    `avg_length` is in characters, of the outputs that are texts; `without_preference` counts rows, which are not in
    `n_total`, and `without_text` outputs of the model that are no texts.
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
    """A row for each of the models, or of all in a file of weights: its length-controlled win rate against another.

    The annotator is known by the file's folder, where it has that of `alpaca_eval`: ANNOTATOR/length_controlled_v1.
    Raises `UserError` for a name without weights.
    """
    weights, difficulties = read_weights(path), read_difficulties(difficulty)
    for name in (baseline, *models):
        if name not in weights:
            raise UserError(
                f"{path}: no weights of {name!r}; it has {len(weights)} models, such as {next(iter(weights))}"
            )
    folder = path.absolute().parent
    annotator = folder.parent.name if folder.name == "length_controlled_v1" else "an annotator that is not known"
    return [
        _who(name, baseline, annotator, path)
        | {"length_controlled_winrate": predict(weights[name], weights[baseline], difficulties)}
        for name in models or weights
    ]


def _who(model: str, baseline: str, annotator: str, path: Path) -> Record:
    official = (annotator, baseline) == (OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE)
    return {"model": model, "baseline": baseline, "annotator": annotator, "official": official, "file": str(path)}


def notes(rows: Sequence[Record]) -> list[str]:
    """Which rows are not AlpacaEval 2's official numbers, or not of all instructions, and what numbers are missing."""
    others = sorted({(row["annotator"], row["baseline"]) for row in rows if not row["official"]})
    found = [
        f"judged by {annotator} against {baseline}: not the official AlpacaEval 2 number, "
        f"which is by {OFFICIAL_ANNOTATOR} against {OFFICIAL_BASELINE}"
        for annotator, baseline in others
    ]
    found += [
        f"{row['model']}: a preference on {row['n_total']} instructions; AlpacaEval has {INSTRUCTIONS}"
        for row in rows
        if row.get("n_total", INSTRUCTIONS) != INSTRUCTIONS
    ]
    found += [
        f"{row['model']}: {row['without_text']} outputs are no texts, and not in its length"
        for row in rows
        if row.get("without_text")
    ]
    if any(row["length_controlled_winrate"] is None for row in rows):
        found.append(f"no length-controlled win rate: it needs --gamed df_gamed.csv, {SOURCE}")
    return found


def unequal(gamed: Gamed, difficulties: NDArray[np.float64]) -> list[str]:
    """Whether the difficulties that come with the gamed rows are those of a file of their own; as a note, if not."""
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
"""What a table shows of rows, and the columns' titles."""


def table(rows: Sequence[Record]) -> str:
    """Rows as text, without columns of which no row has anything."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    return "\n".join(
        columns([[COLUMNS[key] for key in keys], *([_cell(key, row[key]) for key in keys] for row in rows)])
    )


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "avg_length":
        return str(int(value))  # cut off, as AlpacaEval's leaderboard has it
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="AlpacaEval 2's win rates, of files of annotations or of weights.")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--annotations", type=Path, nargs="+", help="annotations.json of a model, a file a model")
    inputs.add_argument("--weights", type=Path, help="weights of many models, as alpaca_eval has them")
    gamed = f"df_gamed.csv, {SOURCE}; or annotations of the gamed baselines, with --difficulty"
    parser.add_argument("--gamed", type=Path, nargs="+", help=gamed)
    parser.add_argument("--difficulty", type=Path, help=f"instruction_difficulty.csv, {SOURCE}")
    parser.add_argument("--model", nargs="+", default=[], help="of --weights; default: all")
    parser.add_argument("--baseline", help=f"of --weights; default: {OFFICIAL_BASELINE}")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    if arguments.weights and not arguments.difficulty:
        raise UserError(f"--weights: the prediction needs --difficulty instruction_difficulty.csv, {SOURCE}")
    if arguments.weights and arguments.gamed:
        raise UserError("--gamed: a prediction from --weights has no use for it; leave it out")
    if arguments.annotations and (arguments.model or arguments.baseline):
        raise UserError("--model, --baseline: annotations say who is compared; leave them out, or name --weights")
    if arguments.annotations and arguments.difficulty and not arguments.gamed:
        raise UserError(f"--difficulty: a length-controlled win rate needs --gamed df_gamed.csv too, {SOURCE}")
    return arguments


def main() -> None:
    arguments = read_arguments()
    remarks: list[str] = []
    if arguments.weights:
        baseline = arguments.baseline or OFFICIAL_BASELINE
        rows = predicted(arguments.weights, arguments.model, baseline, arguments.difficulty)
    else:
        difficulties = read_difficulties(arguments.difficulty) if arguments.difficulty else None
        gamed = read_gamed(arguments.gamed, difficulties) if arguments.gamed else None
        rows = [annotated(read_annotations(path), gamed) for path in arguments.annotations]
        if gamed and difficulties is not None:
            remarks = unequal(gamed, difficulties)
    remarks += notes(rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "notes": remarks}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([table(rows), *remarks]))


if __name__ == "__main__":
    command(main)
