"""Makes tests/fixtures/alpaca_eval/reference.json: results of the alpaca_eval package on made-up annotations.

Run by hand, `python tests/support/make_alpaca_reference.py`, with

    pip install --no-deps alpaca-eval==0.6.6
    pip install pandas patsy scikit-learn==1.9.1

Tests read only the file, and make the annotations again from their seeds. The gamed rows and the difficulties, which
the package would download, are made up too.
"""

import contextlib
import csv
import importlib
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import MagicMock, patch

REFERENCE = Path(__file__).parents[1] / "fixtures" / "alpaca_eval" / "reference.json"
INSTRUCTIONS = 805


@dataclass(frozen=True)
class Case:
    """Parameters of made-up annotations."""

    rows: int = INSTRUCTIONS
    preferences: str = "float"
    """float: token probabilities; string: the same as strings; discrete: 1, 2 and the ties 0 and 1.5."""
    taste: float = 0.8
    """Preference for longer outputs."""
    quality: float = 0.0
    nulls: int = 0
    """Number of rows without a preference; the package writes some of them without annotator."""
    indexed: bool = False
    """Whether rows are shuffled, with their place as "index"."""
    constant: bool = False
    """Whether the model's output is always the same."""
    alike: bool = False
    """Whether all outputs of the model are longer by the same length."""
    itself: bool = False
    """Whether the model is its own baseline."""


CASES = {
    "floats": Case(),
    "strings": Case(preferences="string", quality=-1.5),
    "discrete": Case(preferences="discrete", quality=0.5, taste=2.0),
    "fewer": Case(rows=801, nulls=4),
    "fewer, discrete strings": Case(rows=640, preferences="discrete-string", nulls=1, quality=-3.0),
    "indexed": Case(rows=300, indexed=True, quality=1.0),
    "a dozen": Case(rows=12, quality=0.3),
    "two": Case(rows=2),
    "constant": Case(constant=True, quality=2.0, taste=0.0),
    "shorter is better": Case(taste=-1.5, quality=-0.5),
    "alike": Case(rows=50, alike=True),
    "itself": Case(rows=40, preferences="discrete", nulls=2, itself=True),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def instruction_difficulties() -> list[float]:
    random = Random("difficulties")
    return [random.gauss(-0.5, 1.2) for _ in range(INSTRUCTIONS)]


def write_data(folder: Path) -> None:
    """df_gamed.csv and instruction_difficulty.csv, in the form of the published ones."""
    random, difficulties = Random("gamed"), instruction_difficulties()
    with (folder / "instruction_difficulty.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "instruction_difficulty"])
        writer.writerows(enumerate(difficulties))
    with (folder / "df_gamed.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
        writer.writerow(columns)
        for model, shift in (("verbose", -1.0), ("concise", 1.0)):
            for index, difficulty in enumerate(difficulties):
                gap = random.gauss(shift, 1)
                preference: Any = sigmoid(random.gauss(-1.8 * math.tanh(gap), 1))
                if index in (7, 500):
                    preference = ""
                writer.writerow([preference, index, gap, difficulty, False, model])


def write_weights(path: Path) -> None:
    """Weights of three models, in the form of the published ones."""
    path.write_text(
        ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"
        "base,0.0000000000000000,0.0000000000000000,0.0000000000000000\n"
        "good,-1.1234567890123456,0.7654321098765432,0.9876543210987654\n"
        "weak one,-2.0000000000000000,1.0500000000000000,-2.2500000000000001\n",
        encoding="utf-8",
    )


def annotations(name: str) -> list[dict[str, Any]]:
    """The rows of a case; its name is the seed."""
    case, random = CASES[name], Random(name)
    difficulties = instruction_difficulties()
    rows: list[dict[str, Any]] = []
    for place in range(case.rows):
        lengths = [int(math.exp(random.gauss(mean, 0.6))) for mean in (5.0, 5.2)]
        if case.constant:
            lengths[1] = 60
        if case.alike:
            lengths[1] = lengths[0] + 7
        gap = (lengths[0] - lengths[1]) / 150
        index = place * 2 + 1 if case.indexed else place
        share = sigmoid(random.gauss(case.quality + 0.9 * difficulties[index] - case.taste * math.tanh(gap), 1.5))
        row: dict[str, Any] = {
            "instruction": f"Instruction {place}",
            "output_1": "é" * lengths[0],
            "generator_1": "base",
            "output_2": "x" * lengths[1],
            "generator_2": "base" if case.itself else "model",
            "annotator": "a coin",
            "preference": round(1 + share, 10),
        }
        if case.preferences.startswith("discrete"):
            row["preference"] = random.choice((0, 1.5)) if abs(share - 0.5) < 0.02 else 1 + round(share)
        if case.preferences.endswith("string"):
            row["preference"] = str(row["preference"])
        if case.indexed:
            row["index"] = index
        rows.append(row)
    for place in random.sample(range(case.rows), case.nulls):
        rows[place]["preference"] = None
        if place % 2:
            rows[place]["annotator"] = None
    if case.indexed:
        random.shuffle(rows)
    return rows


@contextlib.contextmanager
def package(folder: Path):
    """`alpaca_eval.metrics.glm_winrate` with files of `folder` as downloads and mocks for unneeded packages."""
    for name in ("pkg_resources", "datasets", "dotenv", "fire", "huggingface_hub", "openai", "tiktoken"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    with (
        sklearn.config_context(),  # the package changes the settings of scikit-learn
        patch.object(glm_winrate, "hf_hub_download", lambda filename, **_: str(folder / filename)),
    ):
        yield glm_winrate


def outcomes(folder: Path, glm_winrate: Any) -> dict[str, Any]:
    """Metrics and weights of each case by the package, and its predictions from weights."""
    import pandas

    cases: dict[str, Any] = {}
    for name in CASES:
        path = folder / "annotations.json"
        path.write_text(json.dumps(annotations(name)), encoding="utf-8")
        metrics = glm_winrate.get_length_controlled_winrate(
            pandas.read_json(path), save_weights_dir=folder / name, is_warn_extreme_changes=False
        )
        [weights] = (folder / name).rglob("*.csv")
        [coefficients] = pandas.read_csv(weights, index_col=0).to_dict(orient="split")["data"]
        cases[name] = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
        cases[name]["weights"] = coefficients
    write_weights(folder / "weights.csv")
    pairs = [("good", "base"), ("weak one", "base"), ("good", "weak one"), ("base", "base")]
    predictions = [
        [model, baseline, 100 * glm_winrate.predict_winrate(model, baseline, folder / "weights.csv").item()]
        for model, baseline in pairs
    ]
    return {"cases": cases, "predictions": predictions}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        with package(folder) as glm_winrate:
            reference = outcomes(folder, glm_winrate)
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE.write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
