"""AlpacaEval 2's win rates on annotations worked by hand, and what files of annotations are refused."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_alpaca_reference import write_data, write_weights

from evaluation.annotations import read_annotations
from evaluation.length_controlled import Gamed
from evaluation.winrate import (
    OFFICIAL_ANNOTATOR,
    OFFICIAL_BASELINE,
    annotated,
    main,
    notes,
    predicted,
    table,
    unequal,
    win_rate,
)
from stages.files import UserError, write_json


def annotation(place: int, preference, **more) -> dict:
    return {
        "instruction": f"Say {place}.",
        "output_1": "b" * (10 + place),
        "generator_1": "base",
        "output_2": "m" * (20 + 3 * place),
        "generator_2": "model",
        "annotator": "a coin",
        "preference": preference,
    } | more


def written(path: Path, *preferences, **more) -> Path:
    write_json(path, [annotation(place, value, **more) for place, value in enumerate(preferences)])
    return path


def measured(path: Path, *preferences) -> dict:
    return annotated(read_annotations(written(path, *preferences)), None)


def test_a_hand_worked_file(tmp_path):
    """Shares 0, 1, 1/2 and 1/4: mean 0.4375; squares about it 0.19140625, 0.31640625, 0.00390625 and 0.03515625, in
    all 0.546875, over 3 and 4. One win, two losses and a tie: 1.5 of 4. Outputs of 20, 23, 26 and 29 characters."""
    row = measured(tmp_path / "a.json", 1, 2, 1.5, 1.25)
    assert row["win_rate"] == pytest.approx(43.75, abs=1e-9)
    assert row["standard_error"] == pytest.approx(100 * math.sqrt(0.546875 / 12), abs=1e-9)
    assert row["discrete_win_rate"] == pytest.approx(37.5, abs=1e-9)
    assert [row[key] for key in ("n_wins", "n_wins_base", "n_draws", "n_total")] == [1, 2, 1, 4]
    assert row["avg_length"] == 24.5 and row["without_preference"] == 0
    assert (row["model"], row["baseline"], row["annotator"]) == ("model", "base", "a coin")
    assert row["length_controlled_winrate"] is None


def test_a_preference_is_read_in_every_form(tmp_path):
    """0, "0.0", 1.5 and "1.5" tie; "2.0" and 2 win: 4/2 + 2 of 6. Deviations: four times 1/6, twice 1/3."""
    row = measured(tmp_path / "a.json", 0, "0.0", 1.5, "1.5", "2.0", 2)
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"]) == (2, 0, 4)
    assert row["win_rate"] == pytest.approx(200 / 3, abs=1e-9) == row["discrete_win_rate"]
    assert row["standard_error"] == pytest.approx(100 * math.sqrt((4 / 36 + 2 / 9) / 30), abs=1e-9)


def test_nearly_a_tie_is_none(tmp_path):
    row = measured(tmp_path / "a.json", 1.5000001, 1.4999999, 1.5)
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"]) == (1, 1, 1)


def test_rows_without_preference_count_nowhere(tmp_path):
    """Of 2, null and 1 two count: a half, deviations 1/2, over 1 and 2."""
    row = measured(tmp_path / "a.json", 2, None, 1)
    assert (row["n_total"], row["without_preference"]) == (2, 1)
    assert row["win_rate"] == 50 == row["discrete_win_rate"]
    assert row["standard_error"] == pytest.approx(50, abs=1e-9)
    assert row["avg_length"] == 23  # all three


def test_all_tie_and_one_row(tmp_path):
    row = measured(tmp_path / "a.json", 1.5, 0, 1.5)
    assert (row["win_rate"], row["standard_error"], row["discrete_win_rate"]) == (50, 0, 50)
    one = measured(tmp_path / "a.json", 1.75)
    assert (one["win_rate"], one["standard_error"], one["discrete_win_rate"], one["n_total"]) == (75, None, 100, 1)
    assert "75.00" in table([one]) and "None" not in table([one])


def test_win_rate_of_an_array():
    assert win_rate(np.array([0.25, math.nan]))["win_rate"] == 25


def test_lengths_are_characters(tmp_path):
    write_json(tmp_path / "a.json", [annotation(0, 1.2, output_1="äé", output_2="漢字🙂")])
    assert read_annotations(tmp_path / "a.json").lengths.tolist() == [[2, 3]]


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([annotation(0, 1), annotation(1, 2), annotation(0, 2)], "entry 2: 'Say 0.' came before, in entry 0"),
        ([annotation(0, 1), without(annotation(1, 2), "preference")], "entry 1: key 'preference' is missing"),
        ([without(annotation(0, 1), "annotator")], "entry 0: key 'annotator' is missing"),
        ([annotation(0, 1), annotation(1, 2.5)], "entry 1: preference is 2.5; it must be from 1 to 2, 0 for a tie"),
        ([annotation(0, 0.5)], "entry 0: preference is 0.5"),
        ([annotation(0, -1)], "entry 0: preference is -1"),
        ([annotation(0, "m")], "entry 0: preference is 'm'"),
        ([annotation(0, "")], "entry 0: preference is ''"),
        ([annotation(0, True)], "entry 0: preference is True"),
        ([annotation(0, [1])], r"entry 0: preference is \[1\]"),
        ([annotation(0, None), annotation(1, None)], "a.json: no row has a preference"),
        ([annotation(0, 1), annotation(1, 1, generator_2="m2")], "entry 1: generator_2 is 'm2', and 'model' before"),
        ([annotation(0, 1), annotation(1, 1, generator_1="b2")], "entry 1: generator_1 is 'b2', and 'base' before"),
        ([annotation(0, 1, annotator=None)], "a.json: no row has an annotator; add the judge's name"),
        ([annotation(0, 1, index=4), annotation(1, 2)], "entry 1: key 'index' is missing"),
        ([annotation(0, 1, index="4")], "entry 0: index is '4'"),
        ([annotation(0, 1, index=0.5)], "entry 0: index is 0.5"),
        ([annotation(0, 1, index=math.inf)], "entry 0: index is inf"),
        ([annotation(0, 1, index=None)], "entry 0: index is None"),
        ([annotation(0, 1), "text"], "entry 1: expected a JSON object"),
        ([], "a.json: no row has a preference"),
        (annotation(0, 1), "a.json: not a JSON list"),
    ],
)
def test_bad_annotations_are_one_line(tmp_path, rows, complaint):
    write_json(tmp_path / "a.json", rows)
    with pytest.raises(UserError, match=complaint) as error:
        read_annotations(tmp_path / "a.json")
    assert "\n" not in str(error.value) and str(tmp_path / "a.json") in str(error.value)


def test_what_is_no_file_or_no_json(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_annotations(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("[\n{")
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_annotations(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(
        json.dumps([annotation(0, 1, annotator="é")], ensure_ascii=False).encode("cp1252")
    )
    with pytest.raises(UserError, match=r"a\.json: not UTF-8"):
        read_annotations(tmp_path / "a.json")


def test_a_file_from_windows(tmp_path):
    text = json.dumps([annotation(0, 1), annotation(1, 2)], indent=1).replace("\n", "\r\n")
    (tmp_path / "a.json").write_bytes(text.encode("utf-8-sig"))
    assert read_annotations(tmp_path / "a.json").preferences.tolist() == [0, 1]


def test_rows_that_were_not_judged_may_have_no_annotator(tmp_path):
    """As the package writes a row whose verdict it could not read."""
    write_json(tmp_path / "a.json", [annotation(0, None, annotator=None), annotation(1, 2), annotation(2, 1)])
    row = annotated(read_annotations(tmp_path / "a.json"), None)
    assert (row["annotator"], row["n_total"], row["without_preference"]) == ("a coin", 2, 1)


def test_a_pool_of_annotators_is_named_whole_and_is_not_official(tmp_path):
    who = {"generator_1": OFFICIAL_BASELINE}
    rows = [annotation(i, 1, annotator=name, **who) for i, name in enumerate((OFFICIAL_ANNOTATOR, "B", "B"))]
    write_json(tmp_path / "a.json", rows)
    row = annotated(read_annotations(tmp_path / "a.json"), None)
    assert (row["annotator"], row["official"]) == (f"{OFFICIAL_ANNOTATOR}, B", False)


def test_an_output_that_is_no_text_counts_and_has_no_length(tmp_path):
    write_json(tmp_path / "a.json", [annotation(0, 1, output_2=None), annotation(1, 2)])
    row = annotated(read_annotations(tmp_path / "a.json"), None)
    assert (row["win_rate"], row["avg_length"], row["without_text"]) == (50, 23, 1)
    assert "model: 1 outputs are no texts, and not in its length" in notes([row])
    write_json(tmp_path / "a.json", [annotation(0, 1, output_2=None)])
    row = annotated(read_annotations(tmp_path / "a.json"), None)
    assert row["avg_length"] is None and "nan" not in table([row])


def test_an_index_may_be_a_whole_float(tmp_path):
    write_json(tmp_path / "a.json", [annotation(0, 1, index=4.0), annotation(1, 2, index=2)])
    assert read_annotations(tmp_path / "a.json").positions.tolist() == [4, 2]


def test_equal_outputs_may_tie(tmp_path):
    rows = [annotation(place, value, output_1="x", output_2="x") for place, value in enumerate((0, 1.5, None))]
    write_json(tmp_path / "a.json", rows)
    assert read_annotations(tmp_path / "a.json").preferences[:2].tolist() == [0.5, 0.5]


def test_whose_number_is_official(tmp_path):
    who = {"annotator": OFFICIAL_ANNOTATOR, "generator_1": OFFICIAL_BASELINE}
    official = annotated(read_annotations(written(tmp_path / "a.json", 1, 2, **who)), None)
    judge = annotated(read_annotations(written(tmp_path / "b.json", 1, 2, **who | {"annotator": "M1"})), None)
    base = annotated(read_annotations(written(tmp_path / "c.json", 1, 2, **who | {"generator_1": "M0"})), None)
    assert [row["official"] for row in (official, judge, base)] == [True, False, False]
    assert not any("official" in note for note in notes([official]))
    unofficial = [note for note in notes([official, judge, judge, base]) if "not the official" in note]
    assert len(unofficial) == 2
    assert unofficial[0].startswith(f"judged by M1 against {OFFICIAL_BASELINE}: not the official AlpacaEval 2 number")
    assert unofficial[1].startswith(f"judged by {OFFICIAL_ANNOTATOR} against M0: not the official")


def test_the_difficulties_of_two_files_are_compared():
    gamed = Gamed(np.zeros((0, 3)), np.zeros(0), {0: 0.5, 1: -1.0})
    assert unequal(gamed, np.array([0.5, -1.0 + 1e-9])) == []
    assert "differ by up to 0.25" in unequal(gamed, np.array([0.5, -1.25]))[0]
    assert "--difficulty has 1 instructions, --gamed 2" in unequal(gamed, np.array([0.5]))[0]


@pytest.fixture
def data(tmp_path) -> Path:
    write_data(tmp_path)
    write_weights(tmp_path / "weights.csv")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["winrate", *map(str, words)])
        main()
        return capsys.readouterr().out

    return call


def test_the_command_makes_a_table_and_json(run, data):
    files = [written(data / "a.json", 1, 2, 1.25), written(data / "b.json", 2, 2, None, generator_2="M2")]
    header, first, second, *remarks = run("--annotations", *files).splitlines()
    assert header.split("  ")[0] == "model" and "LC" not in header
    assert first.split()[:5] == ["model", "41.67", "30.05", "33.33", "23"]
    assert second.split()[:8] == ["M2", "100.00", "0.00", "100.00", "23", "2", "0", "1"]
    assert len(remarks) == 4 and remarks[0].startswith("judged by a coin against base: not the official")
    assert remarks[2] == "M2: a preference on 2 instructions; AlpacaEval has 805"
    assert "df_gamed.csv, of the data set tatsu-lab/alpaca_eval" in remarks[3]
    both = ("--gamed", data / "df_gamed.csv", "--difficulty", data / "instruction_difficulty.csv")
    document = json.loads(run("--annotations", *files, *both, "--json"))
    assert [row["model"] for row in document["rows"]] == ["model", "M2"] and len(document["notes"]) == 3
    controlled = document["rows"][0]
    assert 0 < controlled["length_controlled_winrate"] < 100 and set(controlled["weights"]) == {
        "length",
        "difficulty",
        "model",
    }
    text = run("--annotations", *files, *both)
    assert f"{controlled['length_controlled_winrate']:.2f}  {controlled['lc_standard_error']:.2f}" in text


def test_the_command_predicts_from_weights(run, data):
    difficulty = ("--difficulty", data / "instruction_difficulty.csv")
    header, *rows, remark = run("--weights", data / "weights.csv", *difficulty, "--baseline", "base").splitlines()
    assert header.split() == ["model", "LC", "annotator", "baseline"]
    assert [row.split()[0] for row in rows] == ["base", "good", "weak"]
    assert rows[0].split()[1] == "50.00"
    assert remark.startswith("judged by an unknown annotator against base: not the official")
    one = run("--weights", data / "weights.csv", *difficulty, "--baseline", "good", "--model", "weak one", "--json")
    [row] = json.loads(one)["rows"]
    assert (row["model"], row["baseline"]) == ("weak one", "good")


def test_the_folder_of_weights_names_the_annotator(data):
    folder = data / OFFICIAL_ANNOTATOR / "length_controlled_v1"
    folder.mkdir(parents=True)
    write_weights(folder / "baseline_base.csv")
    [row] = predicted(folder / "baseline_base.csv", ["good"], "base", data / "instruction_difficulty.csv")
    assert row["annotator"] == OFFICIAL_ANNOTATOR and not row["official"]  # against another baseline


def test_what_is_missing_is_said_with_its_source(run, data):
    path = written(data / "a.json", 1, 2)
    source = "of the data set tatsu-lab/alpaca_eval on Hugging Face"
    with pytest.raises(UserError, match=f"--difficulty: .* needs --gamed df_gamed.csv too, {source}"):
        run("--annotations", path, "--difficulty", data / "instruction_difficulty.csv")
    with pytest.raises(UserError, match=f"--weights: .* needs --difficulty instruction_difficulty.csv, {source}"):
        run("--weights", data / "weights.csv")
    with pytest.raises(UserError, match=f"none.csv: no such file; name df_gamed.csv {source}"):
        run("--annotations", path, "--gamed", data / "none.csv")
    for unused in (("--model", "model"), ("--baseline", "base")):
        with pytest.raises(UserError, match="--model, --baseline: annotations name their models"):
            run("--annotations", path, *unused)
    given = ("--weights", data / "weights.csv", "--difficulty", data / "instruction_difficulty.csv")
    with pytest.raises(UserError, match="--gamed: a prediction from --weights doesn't use it"):
        run(*given, "--gamed", data / "df_gamed.csv")
    with pytest.raises(UserError, match="no weights of 'nobody'; it has 3 models, such as base"):
        run(*given, "--baseline", "base", "--model", "nobody")
    with pytest.raises(UserError, match=f"no weights of '{OFFICIAL_BASELINE}'"):
        run(*given)


def test_as_a_command_a_users_error_is_one_line(tmp_path):
    words = [sys.executable, "-m", "evaluation.winrate", "--annotations", str(tmp_path / "none.json")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
