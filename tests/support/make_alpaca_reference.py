"""Makes tests/fixtures/alpaca_eval/reference.json: results of the alpaca_eval package on made-up annotations.

Run by hand, `python tests/support/make_alpaca_reference.py`, with

    pip install --no-deps alpaca-eval==0.6.6
    pip install pandas patsy scikit-learn==1.9.1

Tests read only the file, and make the annotations again from their seeds.
"""

import contextlib
import csv
import importlib
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import MagicMock, patch

REFERENCE = Path(__file__).parents[1] / "fixtures" / "alpaca_eval" / "reference.json"
INSTRUCTIONS = 805
DIFFICULTIES = [draw.gauss(-0.5, 1.2) for draw in [Random("difficulties")] for _ in range(INSTRUCTIONS)]

CASES: dict[str, dict[str, Any]] = {  # parameters of `annotations`
    "floats": {},
    "fewer, discrete strings": {"count": 640, "discrete": True, "nulls": 1, "quality": -3.0},
    "indexed": {"count": 300, "indexed": True, "quality": 1.0},
    "alike": {"count": 50, "alike": True},
    "itself": {"count": 40, "discrete": True, "nulls": 2, "model": "base"},
}
WEIGHTS = """,np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)
base,0.0000000000000000,0.0000000000000000,0.0000000000000000
good,-1.1234567890123456,0.7654321098765432,0.9876543210987654
weak one,-2.0000000000000000,1.0500000000000000,-2.2500000000000001
"""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def write_data(folder: Path) -> None:
    """df_gamed.csv, instruction_difficulty.csv and weights of three models, in the form of the published ones."""
    columns = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")
    rows: list[Any] = [columns]
    random = Random("gamed")
    for model, shift in (("verbose", -1.0), ("concise", 1.0)):
        for index, difficulty in enumerate(DIFFICULTIES):
            gap = random.gauss(shift, 1)
            preference = sigmoid(random.gauss(-1.8 * math.tanh(gap), 1))
            rows.append(["" if index in (7, 500) else preference, index, gap, difficulty, False, model])
    difficulties: list[Any] = [("index", "instruction_difficulty"), *enumerate(DIFFICULTIES)]
    for name, table in (("df_gamed", rows), ("instruction_difficulty", difficulties)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
    (folder / "weights.csv").write_text(WEIGHTS, encoding="utf-8")


def annotations(
    name: str, count: int = INSTRUCTIONS, discrete: bool = False, nulls: int = 0, quality: float = 0.0,
    indexed: bool = False, alike: bool = False, model: str = "model",
) -> list[dict[str, Any]]:  # fmt: skip
    """`count` rows in which longer outputs win; the name is the seed.

    `discrete`: preferences are "1", "2" and the ties "0" and "1.5". `nulls`: the number of rows without a preference.
    `indexed`: rows are shuffled, with their place as "index". `alike`: all outputs are longer by the same length.
    """
    random, rows = Random(name), []
    for place in range(count):
        lengths = [int(math.exp(random.gauss(mean, 0.6))) for mean in (5.0, 5.2)]
        if alike:
            lengths[1] = lengths[0] + 7
        gap, index = (lengths[0] - lengths[1]) / 150, place * 2 + 1 if indexed else place
        share = sigmoid(random.gauss(quality + 0.9 * DIFFICULTIES[index] - 0.8 * math.tanh(gap), 1.5))
        preference: Any = round(1 + share, 10)
        if discrete:
            preference = str(random.choice((0, 1.5)) if abs(share - 0.5) < 0.02 else 1 + round(share))
        row = {"instruction": f"Instruction {place}", "output_1": "é" * lengths[0], "generator_1": "base"}
        row |= {"output_2": "x" * lengths[1], "generator_2": model, "annotator": "a coin", "preference": preference}
        rows.append(row | ({"index": index} if indexed else {}))
    for place in random.sample(range(count), nulls):
        rows[place] |= {"preference": None} | ({"annotator": None} if place % 2 else {})
    if indexed:
        random.shuffle(rows)
    return rows


def outcomes(folder: Path) -> dict[str, Any]:
    """The package's metrics and weights of each case, and predictions from weights; unneeded imports are mocked."""
    for name in ("pkg_resources", "datasets", "dotenv", "fire", "huggingface_hub", "openai", "tiktoken"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
        sys.modules.setdefault(name, MagicMock())
    import pandas
    import sklearn
    from alpaca_eval.metrics import glm_winrate as package

    cases: dict[str, Any] = {}
    downloads = patch.object(package, "hf_hub_download", lambda filename, **_: str(folder / filename))
    with sklearn.config_context(), downloads:  # the package changes the settings of scikit-learn
        for name, case in CASES.items():
            table = pandas.read_json(io.StringIO(json.dumps(annotations(name, **case))))
            options = {"save_weights_dir": folder / name, "is_warn_extreme_changes": False}
            metrics = package.get_length_controlled_winrate(table, **options)
            [weights] = (folder / name).rglob("*.csv")
            [coefficients] = pandas.read_csv(weights, index_col=0).to_dict(orient="split")["data"]
            cases[name] = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
            cases[name]["weights"] = coefficients
        pairs = [("good", "base"), ("weak one", "base"), ("good", "weak one"), ("base", "base")]
        rates = [package.predict_winrate(*pair, folder / "weights.csv").item() for pair in pairs]
    return {"cases": cases, "predictions": [[*pair, 100 * rate] for pair, rate in zip(pairs, rates, strict=True)]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        REFERENCE.write_text(json.dumps(outcomes(Path(name)), indent=1) + "\n", encoding="utf-8")
