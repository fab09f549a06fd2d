"""AlpacaEval 2's numbers as the alpaca_eval package has them (`make_alpaca_reference.py`)."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from make_alpaca_reference import CASES, INSTRUCTIONS, REFERENCE, annotations, write_data
from questions import annotation, refused, written

from evaluation import alpaca
from evaluation.alpaca import OFFICIAL_ANNOTATOR, OFFICIAL_BASELINE, annotated, notes, read_annotations, read_csv

PUBLISHED = json.loads(REFERENCE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alpaca")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def gamed(data):
    return alpaca.read_gamed(data / "df_gamed.csv")


def coins(path: Path, *preferences, **more) -> Path:
    return written(path, [annotation(place, value, **more) for place, value in enumerate(preferences)])


def measured(path: Path, *preferences, **more) -> dict:
    return annotated(read_annotations(coins(path, *preferences, **more)), None)


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_the_packages(name, tmp_path, gamed, monkeypatch):
    given = read_annotations(written(tmp_path / "annotations.json", annotations(name, **CASES[name])))
    predictions, weights = alpaca.length_controlled(given, gamed)
    monkeypatch.setattr(alpaca, "length_controlled", lambda *_: (predictions, weights))
    result = annotated(given, gamed) | {"weights": weights.tolist()}
    for key, value in PUBLISHED["cases"][name].items():
        assert result[key] == pytest.approx(value, abs=1e-9), key


def test_predictions_from_weights_are_the_packages(data):
    for model, baseline, rate in PUBLISHED["predictions"]:
        rows = alpaca.predicted(data / "weights.csv", baseline, data / "instruction_difficulty.csv")
        rates = {row["model"]: row["length_controlled_winrate"] for row in rows}
        assert rates[model] == pytest.approx(rate, abs=1e-9) and rates[baseline] == 50


@pytest.mark.parametrize(
    ("lengths", "position", "complaint"),
    [
        ([[5, 5], [7, 7]], 1, r"a\.json: no LC: all outputs must be texts, of lengths that differ"),
        ([[5, 8], [7, math.nan]], 1, "no LC"),
        ([[1, 2], [4, 1]], INSTRUCTIONS, "no difficulty of number 805, only of 805"),
    ],
)
def test_without_its_data_there_is_no_lc(gamed, lengths, position, complaint):
    names = {"model": "m", "baseline": "b"}
    given = alpaca.Annotations(Path("a.json"), names, np.array([0.1, 0.1]), np.array(lengths), [0, position])
    with refused(complaint):
        alpaca.length_controlled(given, gamed)


HEADER = "index,preference,std_delta_len,instruction_difficulty,more\n"


def test_a_difficulty_stands_where_its_index_is_first(tmp_path):
    """Rows 0 to 3 have indices 5, 5, 6, 5: position 0 and 2 have a difficulty, 1 and 3 have none."""
    path = tmp_path / "g.csv"
    path.write_text(HEADER + "5,0.5,0,1,x\n5,,1.5,2,x\n6,1,0,3,x\n5,0,0,4,x")
    own = alpaca.read_gamed(path)
    assert own.difficulties == {0: 1, 2: 3}
    np.testing.assert_allclose(own.features, [[0, 1, 0], [math.tanh(1.5), 2, 0], [0, 3, 0], [0, 4, 0]])
    np.testing.assert_equal(own.preferences, [0.5, math.nan, 1, 0])


def test_bad_data_are_one_line(tmp_path):
    (tmp_path / "f.csv").write_text("index,preference\n0,1\n")
    with refused(r"f\.csv: .*\('std_delta_len'\); name F of the data set tatsu-lab"):
        read_csv(tmp_path / "f.csv", ("preference", "std_delta_len"), "F")
    for row, complaint in (("inf,1", "index is inf; it must be a number"), ("3,17", "preference is 17.0; it must be")):
        (tmp_path / "f.csv").write_text(f"index,preference\n0,\n{row}\n")
        with refused(rf"f\.csv, row 2: {complaint}"):
            read_csv(tmp_path / "f.csv", ("preference", "index"), "F")
    for content in ("index\n", "index\n" + "1" * 200_000):
        (tmp_path / "f.csv").write_text(content)
        with refused(r"f\.csv: .*; name F"):
            read_csv(tmp_path / "f.csv", (), "F")


def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with refused("needs scikit-learn 1.8, .*; pip install"):
        alpaca.fit(np.ones((9, 1)), np.ones(9), np.ones(9))


def test_what_the_package_does_not_say(tmp_path):
    """Outputs of 20, 23, 26 and 29 characters. Nearly a tie is none, and a row without a preference has a length."""
    row = measured(tmp_path / "a.json", 1.5000001, 1.4999999, None, "0.0")
    assert [row[key] for key in ("n_wins", "n_wins_base", "n_draws", "without_preference")] == [1, 1, 1, 1]
    assert [row[key] for key in ("model", "baseline", "annotator", "avg_length")] == ["model", "base", "a coin", 24]
    row = measured(tmp_path / "a.json", 1.75, output_2=None)
    assert (row["standard_error"], row["avg_length"], row["without_text"]) == (None, None, 1)


def test_a_pool_of_annotators_and_characters_of_several_bytes(tmp_path):
    who = ("A", None, "B", "B")
    rows = [annotation(place, 1, index=float(place), annotator=name) for place, name in enumerate(who)]
    own = read_annotations(written(tmp_path / "a.json", [row | {"output_1": "漢🙂"} for row in rows]))
    assert (own.positions, own.lengths[0].tolist(), own.names["annotator"]) == ([0, 1, 2, 3], [2, 20], "A, B")


def test_whose_number_is_official(tmp_path):
    who = {"annotator": OFFICIAL_ANNOTATOR, "generator_1": OFFICIAL_BASELINE}
    changes = ({}, {"annotator": "M1"}, {"annotator": "M1"}, {"generator_1": "M0"})
    official, *others = (measured(tmp_path / "a.json", 1, 2, **who | change) for change in changes)
    assert not any("official" in note for note in notes([official]))
    unofficial = [note.split(":")[0] for note in notes([official, *others]) if "not the official" in note]
    assert unofficial == [f"judged by M1 against {OFFICIAL_BASELINE}", f"judged by {OFFICIAL_ANNOTATOR} against M0"]


def test_the_command(call, data, tmp_path, monkeypatch):
    files = [coins(tmp_path / "a.json", 1, 2, 1.25), coins(tmp_path / "b.json", 2, 2, None, generator_2="M2")]
    _, _, first, second, *remarks = call(alpaca.main, "--annotations", *files).out.splitlines()
    assert first.split()[:5] == ["model", "41.67", "30.05", "33.33", "23"]
    assert second.split()[:6] == ["M2", "100.00", "0.00", "100.00", "23", "1"]
    assert len(remarks) == 4 and remarks[2] == "M2: a preference on 2 instructions; AlpacaEval has 805"
    assert "df_gamed.csv, of the data set tatsu-lab/alpaca_eval" in remarks[3]
    monkeypatch.setattr(alpaca, "fit", lambda *_: np.zeros(3))
    table = call(alpaca.main, "--annotations", *files, "--gamed", data / "df_gamed.csv").out.splitlines()
    assert table[2].split()[:3] == ["model", "50.00", "0.00"]


def test_the_command_predicts_from_weights(call, data, tmp_path):
    folder = tmp_path / OFFICIAL_ANNOTATOR / "length_controlled_v1"
    folder.mkdir(parents=True)
    path = Path(shutil.copy(data / "weights.csv", folder))
    difficulty = ("--difficulty", data / "instruction_difficulty.csv")
    table = call(alpaca.main, "--weights", path, *difficulty, "--baseline", "base")
    _, _, first, *_, remark = table.out.splitlines()
    assert first.split() == ["base", "50.00", OFFICIAL_ANNOTATOR, "base"]
    assert remark.startswith(f"judged by {OFFICIAL_ANNOTATOR} against base: not the official")
    with refused(f"'{OFFICIAL_BASELINE}' must be one of its 3 models, such as base"):
        call(alpaca.main, "--weights", path, *difficulty)
