"""The length-controlled win rate against the alpaca_eval package: frozen numbers, and live where it is installed.

`make_alpaca_reference.py` made the numbers.
"""

import builtins
import importlib.util
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from make_alpaca_reference import (
    CASES,
    INSTRUCTIONS,
    REFERENCE,
    annotations,
    outcomes,
    package,
    write_data,
    write_weights,
)
from scipy.optimize import minimize

from evaluation.annotations import Annotations, read_annotations
from evaluation.length_controlled import (
    CS,
    Gamed,
    Weights,
    fit,
    length_controlled,
    predict,
    read_difficulties,
    read_gamed,
    read_weights,
)
from evaluation.winrate import annotated, predicted
from stages.files import UserError, write_json


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alpaca")
    write_data(folder)
    write_weights(folder / "weights.csv")
    return folder


@pytest.fixture(scope="module")
def gamed(data) -> Gamed:
    return read_gamed([data / "df_gamed.csv"])


@pytest.fixture(scope="module")
def reference() -> dict:
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


def case(name: str, folder: Path, gamed: Gamed) -> dict:
    write_json(folder / "annotations.json", annotations(name))
    return annotated(read_annotations(folder / "annotations.json"), gamed)


def assert_equal(result: dict, wanted: dict) -> None:
    for key, value in wanted.items():
        own = list(result[key].values()) if key == "weights" else result[key]
        assert own == pytest.approx(value, abs=1e-9), key


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_the_packages(name, tmp_path, gamed, reference):
    assert_equal(case(name, tmp_path, gamed), reference["cases"][name])


def test_predictions_from_weights_are_the_packages(data, reference):
    for model, baseline, rate in reference["predictions"]:
        [row] = predicted(data / "weights.csv", [model], baseline, data / "instruction_difficulty.csv")
        assert row["length_controlled_winrate"] == pytest.approx(rate, abs=1e-9)


@pytest.mark.peers
def test_the_package_says_so_now(tmp_path, data, gamed):
    pytest.importorskip("patsy")
    if importlib.util.find_spec("alpaca_eval") is None:
        pytest.skip("alpaca_eval is not installed")
    with package(data) as glm_winrate:
        outcome = outcomes(data, glm_winrate)
    for name, wanted in outcome["cases"].items():
        assert_equal(case(name, tmp_path, gamed), wanted)


def test_a_prediction_worked_by_hand():
    """Differences: difficulty 1 and model log 3 - log 2. At difficulty log 2 the odds are 3, at -log 3 they are 1/2."""
    model, baseline = Weights(-9.0, 1.5, math.log(3)), Weights(4.0, 0.5, math.log(2))
    difficulties = np.array([math.log(2), -math.log(3)])
    assert predict(model, baseline, difficulties) == pytest.approx(100 * (3 / 4 + 1 / 3) / 2, abs=1e-9)
    assert predict(model, model, difficulties) == 50


def test_the_fit_is_an_optimum_by_scipy():
    """C is one of the ten whose optimum of C times the weighted cross-entropy plus the L1 norm the fit is."""
    random = np.random.default_rng(3)
    features, masses = random.normal(size=(200, 3)), random.choice([0.1, 1.0], 200)
    targets = 1 / (1 + np.exp(-features @ np.array([1.0, -0.4, 0.02]) + random.normal(size=200)))

    def objective(w: np.ndarray, C: float) -> float:
        x = features @ w
        return C * float(masses @ (np.logaddexp(0, x) - targets * x)) + float(np.abs(w).sum())

    weights = fit(features, targets, masses)
    optima = [minimize(objective, weights, (C,), "Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x for C in CS]
    assert min(np.abs(optimum - weights).max() for optimum in optima) < 2e-3


def rows(path: Path, lengths, preferences, **more) -> Annotations:
    known = {"model": "m", "baseline": "b", "annotator": "a", "positions": np.arange(len(preferences))} | more
    return Annotations(path=path, lengths=np.array(lengths), preferences=np.array(preferences), **known)


def test_length_is_controlled(gamed):
    """A model of equal quality and longer outputs wins by their length alone: without it, about half."""
    random = np.random.default_rng(0)
    lengths = random.integers(50, 1000, (400, 2)) + np.array([0, 300])
    gap = lengths[:, 0] - lengths[:, 1]
    preferences = 1 / (1 + np.exp(2.5 * np.tanh(gap / gap.std(ddof=1))))
    assert preferences.mean() > 0.65
    result = length_controlled(rows(Path("a"), lengths, preferences), gamed)
    assert abs(result.win_rate - 50) < 5 and result.weights.length < -1.5


def test_a_model_against_itself_wins_half(gamed):
    itself = rows(Path("a"), [[1, 1], [2, 2], [3, 3]], [0.5, math.nan, 1.0], model="b")
    result = length_controlled(itself, gamed)
    assert (result.win_rate, result.standard_error, result.weights) == (50, 0, Weights(0, 0, 0))


@pytest.mark.parametrize("lengths", [[[5, 5], [7, 7]], [[3, 4]]])
def test_without_lengths_that_differ_there_is_no_number(gamed, lengths):
    with pytest.raises(UserError, match=r"a\.json: no two outputs differ in length"):
        length_controlled(rows(Path("a.json"), lengths, [0.1] * len(lengths)), gamed)


def test_an_output_without_a_length(gamed):
    with pytest.raises(UserError, match=r"a\.json, entry 1: an output is no text"):
        length_controlled(rows(Path("a.json"), [[5, 8], [7, math.nan]], [0.1, 0.2]), gamed)


def test_an_instruction_without_difficulty(gamed):
    unknown = rows(Path("a.json"), [[1, 2], [4, 1]], [0.1, 0.2], positions=np.array([3, INSTRUCTIONS]))
    with pytest.raises(
        UserError, match=f"a.json: the gamed rows have the difficulties of {INSTRUCTIONS} .*not of number 805"
    ):
        length_controlled(unknown, gamed)


def test_the_gamed_rows(gamed):
    assert gamed.features.shape == (2 * INSTRUCTIONS, 3) and not gamed.features[:, 2].any()
    assert np.isnan(gamed.preferences).sum() == 4
    assert sorted(gamed.difficulties) == list(range(INSTRUCTIONS))


def test_a_difficulty_stands_where_its_index_is_first(tmp_path):
    """Rows 0 to 3 have indices 5, 5, 6, 5: position 0 and 2 have a difficulty, 1 and 3 have none."""
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,more", "5,0.5,0,1,False,x",
             "5,,1.5,2,False,x", "6,1,0,3,True,x", "5,0,0,4,False,x"]  # fmt: skip
    path = tmp_path / "g.csv"
    path.write_text("\n".join(lines))
    gamed = read_gamed([path])
    assert gamed.difficulties == {0: 1.0, 2: 3.0}
    assert gamed.features.tolist() == [[0, 1, 0], [pytest.approx(math.tanh(1.5)), 2, 0], [0, 3, 1], [0, 4, 0]]
    assert gamed.preferences.tolist() == [0.5, pytest.approx(math.nan, nan_ok=True), 1, 0]


def test_difficulties_by_name_or_as_the_one_column(tmp_path, data):
    path = tmp_path / "d.csv"
    path.write_text(",0\n0,1.5\n1,-2\n")
    assert read_difficulties(path).tolist() == [1.5, -2]
    path.write_text("index,instruction_difficulty,more\n0,1.5,x\n1,-2,y\n")
    assert read_difficulties(path).tolist() == [1.5, -2]
    assert len(read_difficulties(data / "instruction_difficulty.csv")) == INSTRUCTIONS


def read_one_gamed(path: Path) -> Gamed:
    return read_gamed([path])


@pytest.mark.parametrize(
    ("read", "text", "complaint"),
    [
        (
            read_one_gamed,
            "index,preference\n0,1\n",
            "f.csv: no column 'std_delta_len'; name df_gamed.csv of the data set",
        ),
        (read_one_gamed, "", "f.csv: no column 'index'"),
        (read_difficulties, "a,b,c\n0,1,2\n", "f.csv: no column 'instruction_difficulty'; name instruction_diff"),
        (read_difficulties, "index,instruction_difficulty\n", "f.csv: no rows"),
        (read_difficulties, "index,instruction_difficulty\n0,1\n1,\n", "line 3: instruction_difficulty is '', not a"),
        (read_difficulties, "index,instruction_difficulty\n0,nan\n", "line 2: instruction_difficulty is 'nan'"),
        (read_weights, "a,b\n1,2\n", r"no column 'np.tanh\(std_delta_len\)'; name a file of alpaca_eval's folder"),
    ],
)
def test_bad_data_are_one_line(tmp_path, read, text, complaint):
    path = tmp_path / "f.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read(path)


def test_the_gamed_baselines_own_annotations_do_as_well(data, tmp_path):
    """Rows as df_gamed.csv would have them, worked out one by one, and the annotations that they come from."""
    difficulties, paths = read_difficulties(data / "instruction_difficulty.csv"), []
    table = "index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    for name in ("floats", "shorter is better"):
        rows = annotations(name)
        gaps = [len(row["output_1"]) - len(row["output_2"]) for row in rows]
        spread = statistics.stdev(gaps)
        for place, (row, gap) in enumerate(zip(rows, gaps, strict=True)):
            table += f"{place},{float(row['preference']) - 1!r},{gap / spread!r},{float(difficulties[place])!r},False\n"
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(rows))
    (tmp_path / "df_gamed.csv").write_text(table)
    one, other = read_gamed([tmp_path / "df_gamed.csv"]), read_gamed(paths, difficulties)
    np.testing.assert_allclose(other.features, one.features, atol=1e-12)
    np.testing.assert_allclose(other.preferences, one.preferences, atol=1e-12)
    assert other.difficulties == one.difficulties and len(one.features) == 1610
    with pytest.raises(UserError, match=r"floats\.json: the gamed baselines are two"):
        read_gamed(paths[:1], difficulties)
    with pytest.raises(UserError, match=r"floats\.json: annotations have no difficulties; add --difficulty"):
        read_gamed(paths)
    with pytest.raises(UserError, match=r"floats\.json: no difficulty of number 3; --difficulty has 3"):
        read_gamed(paths, difficulties[:3])
    with pytest.raises(UserError, match=r"df_gamed\.csv alone"):
        read_gamed([tmp_path / "df_gamed.csv", *paths], difficulties)


@pytest.mark.parametrize("read", [read_one_gamed, read_difficulties, read_weights])
def test_what_is_no_text(tmp_path, read):
    (tmp_path / "f.csv").write_bytes(b"\xe9,1\n")
    with pytest.raises(UserError, match=r"f\.csv: not a text in UTF-8"):
        read(tmp_path / "f.csv")


def test_gamed_rows_and_weights_are_checked(tmp_path):
    header = "index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    path = tmp_path / "f.csv"
    for line, complaint in (
        ("0,1,x,1,False", "line 2: std_delta_len is 'x', not a number"),
        ("0,1,,1,False", "line 2: std_delta_len is ''"),
        ("0,high,0,1,False", "line 2: preference is 'high'"),
        ("0,1,0,1,0", "line 2: not_gamed_baseline is '0'; it must be True or False"),
    ):
        path.write_text(header + line + "\n")
        with pytest.raises(UserError, match=complaint):
            read_gamed([path])
    write_weights(path)
    path.write_text(path.read_text() + "good,1,2,3\n")
    with pytest.raises(UserError, match="line 5: 'good' came before"):
        read_weights(path)


def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch):
    original = builtins.__import__

    def missing(name, *arguments, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"needs scikit-learn; pip install '\.\[evaluation\]'"):
        fit(np.ones((9, 1)), np.ones(9), np.ones(9))


def test_an_old_scikit_learn_is_refused(monkeypatch):
    monkeypatch.setattr("sklearn.__version__", "1.7.2")
    with pytest.raises(UserError, match=r"scikit-learn 1\.7\.2 is too old"):
        fit(np.ones((9, 1)), np.ones(9), np.ones(9))
