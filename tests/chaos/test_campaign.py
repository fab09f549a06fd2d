"""Twenty cases of the campaign on the tests' run; and its short form, of two minutes."""

import signal

import pytest

from tests.chaos import damage, fuzz, kills, place
from tests.chaos.campaign import campaign, parser

KILLS = {
    "within the pairs, and again": ("iter2/pairs", [(7, signal.SIGKILL, "self"), (12, signal.SIGKILL, "all")]),
    "within the responses": ("iter2/responses", [(9, signal.SIGKILL, "self")]),
}
DAMAGE = {
    "iter1/judgments/manifest.json": "replaced by b'[]'",
    "iter1/checkpoint/config.json": "a bit flipped",
    "judge_cases.jsonl": "half a character",
}
FUZZED = ("JSON lines", "a manifest", "config", "a chat format", "verdicts: scores", "rows: prompts", "rows: pairs")
FUZZED += ("rows: judged", "rows: instructions", "rows: rankings", "rows: labelled 0", "rows: labelled 9")
FUZZED += ("rows: games of v2.0", "rows: annotations", "rows: IFEval's prompts")


@pytest.mark.parametrize("name", KILLS)
def test_a_kill(tiny_run, tmp_path, name):
    step, strikes = KILLS[name]
    undone = [known for known in place.steps(tiny_run) if known.name == step]
    assert kills.disturbed(undone, strikes)(tiny_run, tmp_path / "work") == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(tiny_run, tmp_path, name):
    path = place.RUN / name if "/" in name else damage.Path(name)
    known = damage.damages(path, "/" not in name)
    case = damage.damaged(tiny_run, path, known[DAMAGE[name]], damage.random.Random(0))
    assert case(tiny_run, tmp_path / "work") == []


@pytest.mark.parametrize("name", FUZZED)
def test_fuzz(tiny_run, tmp_path, name):
    assert list(fuzz.fuzz(fuzz.readers(tiny_run)[name], tmp_path / "work", 20, "tests")) == []


@pytest.mark.slow
def test_the_short_form(tmp_path, capsys):
    counts = {"kills": 6, "damaged": 15, "limits": 5, "fuzz": 40, "seconds": 100, "seed": 1, "out": tmp_path}
    code = campaign(parser().parse_args([f"--{name}={value}" for name, value in counts.items()]))
    print(out := capsys.readouterr().out)
    assert code == 0, out.splitlines()[-1]
