"""AlpacaEval 2's numbers: worked by hand, and against the alpaca_eval package, frozen and live where it is installed.

`make_alpaca_reference.py` made the frozen numbers.
"""

import importlib.util
import json
import math
import statistics
import sys
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

from evaluation.alpaca import (
    OFFICIAL_ANNOTATOR,
    OFFICIAL_BASELINE,
    Annotations,
    Gamed,
    annotated,
    fit,
    length_controlled,
    main,
    notes,
    predicted,
    read_annotations,
    read_difficulties,
    read_gamed,
)
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


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["alpaca", *map(str, words)])
        main()
        return capsys.readouterr().out

    return call


def annotation(place: int, preference, **more) -> dict:
    outputs = {"output_1": "b" * (10 + place), "generator_1": "base", "output_2": "m" * (20 + 3 * place)}
    row = {"instruction": f"Say {place}."} | outputs | {"generator_2": "model", "annotator": "a coin"}
    return row | {"preference": preference} | more


def written(path: Path, *preferences, **more) -> Path:
    write_json(path, [annotation(place, value, **more) for place, value in enumerate(preferences)])
    return path


def measured(path: Path, *preferences, **more) -> dict:
    return annotated(read_annotations(written(path, *preferences, **more)), None)


def assert_equal(name: str, folder: Path, gamed: Gamed, wanted: dict) -> None:
    write_json(folder / "annotations.json", annotations(name))
    result = annotated(read_annotations(folder / "annotations.json"), gamed)
    for key, value in wanted.items():
        own = list(result[key].values()) if key == "weights" else result[key]
        assert own == pytest.approx(value, abs=1e-9), key


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_the_packages(name, tmp_path, gamed, reference):
    assert_equal(name, tmp_path, gamed, reference["cases"][name])


def test_predictions_from_weights_are_the_packages(data, reference, tmp_path):
    for model, baseline, rate in reference["predictions"]:
        rows = predicted(data / "weights.csv", baseline, read_difficulties(data / "instruction_difficulty.csv"))
        rates = {row["model"]: row["length_controlled_winrate"] for row in rows}
        assert rates[model] == pytest.approx(rate, abs=1e-9) and rates[baseline] == 50
    (tmp_path / "twice.csv").write_text((data / "weights.csv").read_text() + "good,1,2,3\n")
    with pytest.raises(UserError, match="must be one of its 4 models, such as base, named once"):
        predicted(tmp_path / "twice.csv", "base", np.zeros(1))


@pytest.mark.peers
def test_the_package_says_so_now(tmp_path, data, gamed):
    pytest.importorskip("patsy")
    if importlib.util.find_spec("alpaca_eval") is None:
        pytest.skip("alpaca_eval is not installed")
    with package(data) as glm_winrate:
        outcome = outcomes(data, glm_winrate)
    for name, wanted in outcome["cases"].items():
        assert_equal(name, tmp_path, gamed, wanted)


def rows(lengths, preferences, **more) -> Annotations:
    known = {"names": {"model": "m", "baseline": "b"}, "positions": np.arange(len(preferences))} | more
    return Annotations(path=Path("a.json"), lengths=np.array(lengths), preferences=np.array(preferences), **known)


@pytest.mark.parametrize(
    ("lengths", "more", "complaint"),
    [
        ([[5, 5], [7, 7]], {}, r"a\.json: no two outputs differ in length"),
        ([[3, 4]], {}, r"a\.json: no two outputs differ in length"),
        ([[5, 8], [7, math.nan]], {}, r"a\.json, entry 1: an output is no text"),
        ([[1, 2], [4, 1]], {"positions": np.array([3, INSTRUCTIONS])}, "no difficulty of number 805, only of 805"),
        ([[1, 2], [4, 1]], {"positions": np.array([3, -1])}, "no difficulty of number -1"),
    ],
)
def test_without_its_data_there_is_no_lc(gamed, lengths, more, complaint):
    with pytest.raises(UserError, match=complaint):
        length_controlled(rows(lengths, [0.1] * len(lengths), **more), gamed)


HEADER = "index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,more\n"


def test_a_difficulty_stands_where_its_index_is_first(tmp_path, gamed):
    """Rows 0 to 3 have indices 5, 5, 6, 5: position 0 and 2 have a difficulty, 1 and 3 have none."""
    path = tmp_path / "g.csv"
    path.write_text(HEADER + "5,0.5,0,1,False,x\n5,,1.5,2,False,x\n6,1,0,3,False,x\n5,0,0,4,False,x")
    own = read_gamed([path])
    np.testing.assert_equal(own.difficulties, [1, math.nan, 3, math.nan])
    np.testing.assert_allclose(own.features, [[0, 1, 0], [math.tanh(1.5), 2, 0], [0, 3, 0], [0, 4, 0]])
    np.testing.assert_equal(own.preferences, [0.5, math.nan, 1, 0])
    assert gamed.features.shape == (2 * INSTRUCTIONS, 3) and np.isnan(gamed.preferences).sum() == 4


def test_difficulties_by_name_or_as_the_one_column(tmp_path):
    path = tmp_path / "d.csv"
    for text in (",0\n0,1.5\n1,-2\n", "index,instruction_difficulty,more\n0,1.5,x\n1,-2,y\n"):
        path.write_text(text)
        assert read_difficulties(path).tolist() == [1.5, -2]


def test_the_gamed_baselines_own_annotations_do_as_well(data, tmp_path):
    """Rows as df_gamed.csv would have them, worked out one by one, and the annotations that they come from."""
    file, paths, table = data / "instruction_difficulty.csv", [], HEADER.replace(",more", "")
    difficulties = read_difficulties(file)
    for name in ("floats", "shorter is better"):
        own = annotations(name)
        gaps = [len(row["output_1"]) - len(row["output_2"]) for row in own]
        spread = statistics.stdev(gaps)
        for place, (row, gap) in enumerate(zip(own, gaps, strict=True)):
            table += f"{place},{float(row['preference']) - 1!r},{gap / spread!r},{float(difficulties[place])!r},False\n"
        paths.append(tmp_path / f"{name}.json")
        write_json(paths[-1], own)
    (tmp_path / "df_gamed.csv").write_text(table)
    one, two = read_gamed([tmp_path / "df_gamed.csv"]), read_gamed(paths, file)
    np.testing.assert_allclose(two.features, one.features, atol=1e-12)
    np.testing.assert_allclose(two.preferences, one.preferences, atol=1e-12)
    np.testing.assert_allclose(two.difficulties, one.difficulties[:INSTRUCTIONS])
    for given in ((paths[:1], file), (paths,), ([tmp_path / "df_gamed.csv", *paths], file)):
        with pytest.raises(UserError, match=r"--gamed: name df_gamed\.csv alone, or both baselines' annotations"):
            read_gamed(*given)


def read_gamed_file(path: Path) -> Gamed:
    return read_gamed([path])


@pytest.mark.parametrize(
    ("read", "text", "complaint"),
    [
        (read_gamed_file, "index,preference\n0,1\n", "f.csv: no std_delta_len; name df_gamed.csv of the data set"),
        (read_gamed_file, "", "f.csv: no std_delta_len"),
        (read_gamed_file, HEADER + "0,1,x,1,False,\n", "line 2: std_delta_len is 'x'"),
        (read_gamed_file, HEADER + "0,1,,1,False,\n", "line 2: std_delta_len is ''"),
        (read_gamed_file, HEADER + "0,high,0,1,False,\n", "line 2: preference is 'high'"),
        (read_difficulties, "a,b,c\n0,1,2\n", "f.csv: no instruction_difficulty; name instruction_diff"),
        (read_difficulties, "index,instruction_difficulty\n", "f.csv: no row"),
        (read_difficulties, "index,instruction_difficulty\n0,1\n1\n", "line 3: instruction_difficulty is ''"),
        (read_difficulties, "index,instruction_difficulty\n0,nan\n", "line 2: instruction_difficulty is 'nan'"),
        (
            read_difficulties,
            "\udce9,1\n",
            r"f\.csv: no such file in UTF-8; name instruction_difficulty\.csv of the data",
        ),
    ],
)
def test_bad_data_are_one_line(tmp_path, read, text, complaint):
    path = tmp_path / "f.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=complaint):
        read(path)


@pytest.mark.parametrize(("version", "complaint"), [(None, "needs scikit-learn; pip install"), ("1.7.2", "too old")])
def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch, version, complaint):
    if version:
        monkeypatch.setattr("sklearn.__version__", version)
    else:
        monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=complaint):
        fit(np.ones((9, 1)), np.ones(9), np.ones(9))


def test_a_hand_worked_file(tmp_path):
    """Shares 0, 1, 1/2 and 1/4: mean 0.4375; squares about it 0.19140625, 0.31640625, 0.00390625 and 0.03515625, in
    all 0.546875, over 3 and 4. One win, two losses and a tie: 1.5 of 4. Outputs of 20, 23, 26 and 29 characters."""
    row = measured(tmp_path / "a.json", 1, 2, 1.5, 1.25)
    assert row["win_rate"] == pytest.approx(43.75, abs=1e-9)
    assert row["standard_error"] == pytest.approx(100 * math.sqrt(0.546875 / 12), abs=1e-9)
    assert row["discrete_win_rate"] == pytest.approx(37.5, abs=1e-9)
    assert [row[key] for key in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length")] == [1, 2, 1, 4, 24]
    assert (row["model"], row["baseline"], row["annotator"]) == ("model", "base", "a coin")
    assert row["length_controlled_winrate"] is None
    row = measured(tmp_path / "a.json", 1.5000001, 1.4999999, 1.5, "0.0")
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"]) == (1, 1, 2)  # nearly a tie is none


def test_rows_without_preference_or_text_count_nowhere(tmp_path):
    """Of 2, null and 1 two count: a half, deviations 1/2, over 1 and 2."""
    row = measured(tmp_path / "a.json", 2, None, 1)
    assert (row["n_total"], row["without_preference"], row["avg_length"]) == (2, 1, 23)
    assert row["win_rate"] == 50 == row["discrete_win_rate"]
    assert row["standard_error"] == pytest.approx(50, abs=1e-9)
    assert measured(tmp_path / "a.json", 1.75)["standard_error"] is None
    row = measured(tmp_path / "a.json", 1, output_2=None)
    assert (row["avg_length"], row["without_text"]) == (None, 1)
    assert "model: 1 outputs are no texts, and not in its length" in notes([row])


def without(key: str, **more) -> dict:
    return {name: value for name, value in annotation(1, 1, **more).items() if name != key}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([annotation(0, 1), annotation(1, 2), annotation(0, 2)], r"entry 2: 'Say 0.' came before \(.*entry 0\)"),
        ([annotation(0, 1), without("preference")], "entry 1: preference is missing"),
        ([without("annotator")], "entry 0: annotator is missing"),
        ([annotation(0, 1), annotation(1, 2.5)], "entry 1: preference is 2.5; it must be from 1 to 2, 0 for a tie"),
        *(([annotation(0, bad)], "entry 0: preference is ") for bad in (0.5, -1, "m", "", True, [1])),
        ([annotation(0, None), annotation(1, None)], "a.json: no row has a preference"),
        ([annotation(0, 1), annotation(1, 1, generator_2="m2")], "a.json: generator_2 is model, m2; name one"),
        ([annotation(0, 1), annotation(1, 1, generator_1="b2")], "a.json: generator_1 is base, b2; name one"),
        ([annotation(0, 1, annotator=None)], "a.json: annotator is None; name one"),
        ([annotation(0, 1, index=4), annotation(1, 2)], "entry 1: index is missing"),
        *(([annotation(0, 1, index=bad)], "entry 0: index is ") for bad in ("4", 0.5, math.inf, None)),
        ([annotation(0, 1), "text"], "entry 1: expected a JSON object"),
        (annotation(0, 1), "a.json: not a JSON list"),
    ],
)
def test_bad_annotations_are_one_line(tmp_path, rows, complaint):
    write_json(tmp_path / "a.json", rows)
    with pytest.raises(UserError, match=complaint) as error:
        read_annotations(tmp_path / "a.json")
    assert "\n" not in str(error.value) and str(tmp_path / "a.json") in str(error.value)


def test_files_of_all_kinds(tmp_path):
    """From Windows; with characters that are not bytes, an index that is a whole float, and a pool of annotators."""
    who = ({"annotator": OFFICIAL_ANNOTATOR}, {"annotator": None}, {"annotator": "B"}, {"annotator": "B"})
    given = [annotation(place, 1, index=float(place), generator_1=OFFICIAL_BASELINE) for place in range(4)]
    text = json.dumps([row | own | {"output_1": "漢🙂"} for row, own in zip(given, who, strict=True)], indent=1)
    (tmp_path / "a.json").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    own = read_annotations(tmp_path / "a.json")
    assert (own.positions.tolist(), own.lengths[0].tolist()) == ([0, 1, 2, 3], [2, 20])
    row = annotated(own, None)
    assert row["annotator"] == f"{OFFICIAL_ANNOTATOR}, B" and "not the official" in notes([row])[0]


def test_whose_number_is_official(tmp_path, data):
    who = {"annotator": OFFICIAL_ANNOTATOR, "generator_1": OFFICIAL_BASELINE}
    official, judge, base = (
        measured(tmp_path / "a.json", 1, 2, **who | more) for more in ({}, {"annotator": "M1"}, {"generator_1": "M0"})
    )
    assert not any("official" in note for note in notes([official]))
    unofficial = [note for note in notes([official, judge, judge, base]) if "not the official" in note]
    assert [note.split(":")[0] for note in unofficial] == [
        f"judged by M1 against {OFFICIAL_BASELINE}",
        f"judged by {OFFICIAL_ANNOTATOR} against M0",
    ]
    folder = tmp_path / OFFICIAL_ANNOTATOR / "length_controlled_v1"
    folder.mkdir(parents=True)
    write_weights(folder / "baseline_base.csv")
    row = predicted(folder / "baseline_base.csv", "base", read_difficulties(data / "instruction_difficulty.csv"))[0]
    assert row["annotator"] == OFFICIAL_ANNOTATOR and "not the official" in notes([row])[0]  # another baseline


def test_the_command_makes_a_table_and_json(run, data, tmp_path):
    files = [written(tmp_path / "a.json", 1, 2, 1.25), written(tmp_path / "b.json", 2, 2, None, generator_2="M2")]
    _, header, first, second, *remarks = run("--annotations", *files).splitlines()
    assert header.split("  ")[0] == "model" and "LC" not in header
    assert first.split()[:5] == ["model", "41.67", "30.05", "33.33", "23"]
    assert second.split()[:8] == ["M2", "100.00", "0.00", "100.00", "23", "2", "0", "1"]
    assert len(remarks) == 4 and remarks[0].startswith("judged by a coin against base: not the official")
    assert remarks[2] == "M2: a preference on 2 instructions; AlpacaEval has 805"
    assert "df_gamed.csv, of the data set tatsu-lab/alpaca_eval" in remarks[3]
    [document] = json.loads(run("--annotations", *files, "--gamed", data / "df_gamed.csv", "--json"))
    row = document["rows"][0]
    assert 0 < row["length_controlled_winrate"] < 100 and list(row["weights"]) == ["length", "difficulty", "model"]
    text = run("--annotations", *files, "--gamed", data / "df_gamed.csv")
    assert f"{row['length_controlled_winrate']:.2f}  {row['lc_standard_error']:.2f}" in text


def test_the_command_predicts_from_weights(run, data):
    words = ("--weights", data / "weights.csv", "--difficulty", data / "instruction_difficulty.csv")
    _, header, *lines, remark = run(*words, "--baseline", "base").splitlines()
    assert header.split() == ["model", "LC", "annotator", "baseline"]
    assert [line.split()[0] for line in lines] == ["base", "good", "weak"] and lines[0].split()[1] == "50.00"
    assert remark.startswith("judged by an unknown annotator against base: not the official")
    with pytest.raises(UserError, match=f"'{OFFICIAL_BASELINE}' must be one of its 3 models, such as base"):
        run(*words)


def test_what_is_missing_is_said_with_its_source(run, data, tmp_path):
    path, weights, source = written(tmp_path / "a.json", 1, 2), data / "weights.csv", "of the data set tatsu-lab"
    difficulty = ("--difficulty", data / "instruction_difficulty.csv")
    for words, complaint in (
        (("--annotations", path, *difficulty), "--difficulty for --weights or --gamed"),
        (("--annotations", path, "--baseline", "base"), "--baseline is for --weights"),
        (
            ("--annotations", path, "--gamed", data / "none.csv"),
            f"none.csv: no such file .* name df_gamed.csv {source}",
        ),
        (("--weights", weights), f"--weights: needs --difficulty instruction_difficulty.csv, {source}"),
        (("--weights", weights, *difficulty, "--gamed", data / "df_gamed.csv"), "and no --gamed"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(*words)
