"""The benchmarks of generation and training, on the tiny model and with a few tokens: what they count."""

import json
import sys
from pathlib import Path

import pytest

from prepare.seed_model import prepare
from stages.settings import Model
from tools.bench import sampler, trainer

WORKLOAD = """
from tools.bench.workload import SAMPLING, prompts
FLAT = {"prompts": 64, "new_tokens": 8}
LOOP = {"prompts": 2, "responses": 3, "response_tokens": 4, "judgments": 2, "judgment_tokens": 5}
JUDGE = "Q: {prompt} R: {response}"
"""


PAIRS = """
def pairs():
    return [{"prompt": "What is rain? " * (3 + i), "chosen": "Water.", "rejected": "A stone."} for i in range(6)]
"""


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    (tmp_path / "data").symlink_to(Path(__file__).parents[2] / "data")
    monkeypatch.chdir(tmp_path)
    return prepare(Model(path="models/tiny", prepare="tiny", dtype="float32"))


@pytest.fixture(params=[1, 2])
def rows(request, model, monkeypatch, capfd) -> list[dict]:
    """Of one rank, and of two."""
    Path("workload.py").write_text(WORKLOAD)
    arguments = ["--model", str(model), "--workload", "workload.py", "--dtype", "float32", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["sampler", *arguments, "--threads", str(request.param)])
    sampler.main()
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_the_lines_count_what_was_done(rows):
    flat, loop = rows[1:3]
    assert (flat["workload"], flat["new_tokens"]) == ("flat", 64 * 8)
    assert (loop["workload"], loop["new_tokens"]) == ("loop", 2 * 3 * (4 + 2 * 5))
    for row in rows[1:5]:
        assert row["computed_tokens"] == row["prefill_tokens"] + row["new_tokens"]
        assert row["tokens_per_second"] > 0 and 0 < row["share_of_limit"] < 1 and row["first_token"] > 0
    unshared = [row for row in rows if row.get("ablation") == "sharing off"]
    assert [row["workload"] for row in unshared] == ["flat", "loop"]
    assert all(off["prefill_tokens"] > on["prefill_tokens"] for off, on in zip(unshared, (flat, loop), strict=True))
    batches = {row["batch"]: row["new_tokens"] for row in rows if row["workload"] == "batch"}
    assert batches == {1: 8, 8: 64, 64: 512, 128: 1024}
    judgments = {row["N"]: row["prefill_tokens"] for row in rows if row["workload"] == "judgments"}
    assert list(judgments) == [1, 2, 4, 8, 16] and len(set(judgments.values())) == 1


def train(monkeypatch, capsys, *options: str) -> dict:
    arguments = ["--model", "models/tiny", "--pairs", "pairs.py", "--dtype", "float32", "--threads", "1", *options]
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
    trainer.main()
    [line] = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_training(model, monkeypatch, capsys):
    Path("pairs.py").write_text(PAIRS)
    shared, twice = train(monkeypatch, capsys), train(monkeypatch, capsys, "--no-sharing")
    for row in (shared, twice):
        assert row["pairs"] == 6 and row["pairs_per_second"] == pytest.approx(6 / row["seconds"], rel=0.2)
        assert 0 < row["share_of_limit"] < 1 and row["peak_memory_mib"] > 0
        assert row["pairs_per_second"] < row["limit_pairs_per_second"]
    assert shared["tokens"] < twice["tokens"] and shared["last_loss"] == pytest.approx(twice["last_loss"], abs=1e-5)


def test_the_pairs_that_it_ships():
    pairs = trainer.load_module(Path(trainer.__file__).parent / "workload.py").pairs()
    assert len(pairs) == 32 and pairs[0].keys() == {"prompt", "chosen", "rejected"}
    assert all(20 <= len(pair["prompt"].split()) <= 60 for pair in pairs)
