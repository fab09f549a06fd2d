"""The experiments' numbers worked by hand, two runs that are recorded, and the page that is made of them."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from jinja2 import Environment
from processes import ROOT, fork, wait
from questions import refused
from scipy.stats import binom

from evaluation.statistics import crossed
from stages.files import read_json
from tools import results

MEASURES = {"verifiable": "followed", "characters": "characters", "score": "score"}
CHANGES = {"followed": 0.3333, "followed trained": 0.75, "followed untrained": 0.75, "score": 0.3333}
OURS = 'extends = "tiny.toml"\nname = "ours"\n[evaluation]\njudge = "initial"\nsamples = 2\n[[iteration]]\n'
COIN = 'extends = "ours.toml"\nname = "coin"\n[[iteration]]\nlabels = "coin"\n'


def test_runs_and_items_are_resampled_together():
    items = np.tile([0.0, 1.0], (20, 1))  # a quarter of the resamples has item 0 alone, in all runs
    for values in (items, items.T):
        assert crossed(values) == {"value": 0.5, "low": 0, "high": 1, "count": 40}
    assert crossed(np.array([[np.nan, 3], [1, np.nan]])) == {"value": 2, "low": 1, "high": 3, "count": 2}
    assert crossed(np.array([[np.nan]]))["value"] is None
    one_run = crossed(np.array([[1] * 90 + [0] * 210]))  # the number of ones in a resample is binomial
    assert [one_run["low"], one_run["high"]] == pytest.approx(binom.ppf([0.025, 0.975], 300, 0.3) / 300, abs=0.0034)


def model(name: str, followed: list[float], scores: list[float | None]) -> dict:
    rules = (["json"], ["lacks"], ["json", "lacks"])
    items = {f"v{i}": {"rules": rules[i], "followed": share, "leakage": 0} for i, share in enumerate(followed)}
    own = {"characters": 100, "cut_off": 0, "repetition": 0, "leakage": 1}
    items |= {f"e{i}": own | {"score": score} for i, score in enumerate(scores)}
    return {"kind": "model", "name": name, "items": items, "agreement": None, "meta_agreement": None}


def made(config: str, seed: int, last: str, settings: str = "") -> dict:
    row = {"pairs": {"actor": 3, "judge": 4}, "dpo": {"margin": 0.5}, "bias": {"selection": {"rules": None}}}
    run = {"kind": "run", "name": f"{config}-s{seed}", "config": config, "seed": seed, "control": config == "coin"}
    run |= {"models": {"M0": f"m0-{seed}", "M1": last}, "iterations": [row], "settings": settings, "minutes": 2.0}
    run |= {"file": f"{config}.toml", "base": "base.toml", "changes": {"dpo": {"beta": 0.125}}, "commits": ["abc"]}
    return run | {"processor": "P", "flags": ["avx512_bf16"], "threads": 2}


@pytest.fixture
def records(tmp_path, monkeypatch) -> None:
    """Two seeds of a config, one of which the control has, too."""
    monkeypatch.chdir(tmp_path)
    models = [model("m0-1", [0, 0, 1], [2, 3]), model("m0-2", [0.5, 0, 1], [2, None])]
    models += [model("m-1", [1, 0.5, 1], [4, 3]), model("m-2", [1, 1, 0], [1, 1]), model("c-1", [0.5, 0, 1], [2, 2])]
    results.keep([*models, made("ours", 2, "m-2"), made("ours", 1, "m-1"), made("coin", 1, "c-1")])


def test_changes_worked_by_hand(records):
    """Ours less M0, by prompt: 1, 0.5, 0 and, with seed 2, 0.5, 1, -1; scores 2, 0 and -1. The control: 0.5, 0, 0."""
    ours, coin = (own := results.Experiments()).configs
    changes = {name: own.mean(ours, "M1", name, "M0")["value"] for name in CHANGES}
    assert changes == CHANGES
    assert [own.mean(ours, "M1", name)["value"] for name in ("score", "leakage")] == [2.25, 0.4]
    assert own.control is coin and [run["seed"] for run in ours["runs"]] == [1, 2]
    assert own.over_control(ours, "M1", "followed") == {"value": 0.3333, "low": 0, "high": 0.5, "count": 3}


def test_rows_replace_those_of_the_same_run(records):
    results.keep([made("coin", 1, "m-1")])
    rows = results.read_records()
    assert [name for kind, name in rows if kind == "run"] == ["ours-s2", "ours-s1", "coin-s1"]
    assert rows["run", "coin-s1"]["models"]["M1"] == "m-1" and ("model", "c-1") not in rows
    results.keep([made("ours", 2, "m-2", settings="other")])
    with refused("runs of ours differ in settings"):
        results.Experiments()


def test_the_page_and_its_picture(records):
    own = results.Experiments()
    text, pictures = results.page(own), [results.draw(own) or results.PICTURE.read_bytes() for _ in range(2)]
    assert "**+33.3% [" in text and "| ours | M1 | +33.3% [+0.0%, +50.0%] |" in text
    assert "| coin | 1 | `abc` | 7 | 0.500 | 2.0 |" in text and '`dpo = {"beta": 0.125}`' in text
    assert pictures[0] == pictures[1]


def test_no_number_of_the_page_is_written_by_hand():
    """Outside of code and jinja's tags; sections have numbers."""
    source = (ROOT / "docs" / "results" / "results.md.j2").read_text()
    text = "".join(value for _, kind, value in Environment().lex(source) if kind == "data")
    text = re.sub(r"```.*?```|`[^`]*`|^#+ [0-9]+\.", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "# Results" in text and re.findall(r".*(?<![A-Za-z])[0-9].*", text) == []


@pytest.mark.skipif(not (ROOT / results.RECORDS).exists(), reason="no records yet")
def test_the_page_is_made_of_the_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = results.page(results.Experiments())
    assert page == results.PAGE.read_text(), "python -m tools.results write"
    told = re.split(r"\n## ", (ROOT / "README.md").read_text())[2]
    numbers = re.findall(r"\S+ \[[^]()]+\](?!\()", told)
    assert len(numbers) == 2 and all(number in page for number in numbers), "README.md tells other results"


@pytest.mark.slow
def test_two_runs_and_their_page(tiny_run, tmp_path, monkeypatch):
    """The page agrees with the summaries of the runs; a recorded run is not made again."""
    place = shutil.copytree(tiny_run, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(place)
    for name, text in {"ours.toml": OURS, "coin.toml": COIN, ".gitignore": "runs\nmodels\n*.txt\n"}.items():
        (place / name).write_text(text)
    subprocess.run("git init -q && git add . && git -c user.name=t -c user.email=t commit -qmt", shell=True, check=True)
    command = ("tools.results", "run", "ours.toml", "coin.toml", "--seeds", "0")
    assert wait(fork(place, *command)) == 0, (place / "err.txt").read_text()
    content, own = results.RECORDS.read_bytes(), results.Experiments()
    for config in own.configs:
        for row in read_json(place / "runs" / f"{config['config']}-s0" / "summary.json")["models"]:
            for key, name in MEASURES.items():
                assert row[key] is None or own.mean(config, row["name"], name)["value"] == row[key]["value"]
                if change := row["differences"].get(key):
                    assert own.mean(config, row["name"], name, "M0")["value"] == change["value"]
    assert own.control["changes"] == {
        "evaluation": {"judge": "initial", "samples": 2},
        "iteration": [{"labels": "coin"}],
    }
    assert len(own.models) == 4 and own.mean(own.control, "seed", "score")["count"] > 0
    assert {"ordered", "followed"} <= own.models[own.runs[0]["models"]["M0"]]["items"]["v000"].keys()
    (place / "ours.toml").write_text(OURS + "[plan]\nspread = 0.9\n")  # a forecast makes no other run
    assert wait(fork(place, *command)) == wait(fork(place, "tools.results", "write")) == 0
    assert results.RECORDS.read_bytes() == content and results.PAGE.read_text() == results.page(own)
    (place / "ours.toml").write_text(OURS)
    (place / "new.toml").write_text("")
    with refused("new.toml: not as in the commit"):
        results.make_run(place / "ours.toml", 1)
