"""The benchmarks of generation and training, on the tiny model and with a few tokens: what they count."""

import json
import sys
from pathlib import Path

import pytest
from processes import free_port

from prepare.seed_model import make_tiny
from stages.command import UserError
from tools.bench import load_module, sampler, trainer, workload

OWN = """
from tools.bench.workload import SAMPLING
def prompts(count):
    return [f"Tell me something about the number {i}." for i in range(count)]
FLAT = {"prompts": 64, "new_tokens": 4}
LOOP = {"prompts": 2, "responses": 3, "response_tokens": 4, "judgments": 2, "judgment_tokens": 5}
JUDGE = "Q: {prompt} R: {response}"
def pairs():
    return [{"prompt": "What is rain? " * (3 + i), "chosen": "Water.", "rejected": "A stone."} for i in range(6)]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small model and a workload."""
    folder = tmp_path_factory.mktemp("bench")
    make_tiny(folder / "model")
    (folder / "workload.py").write_text(OWN)
    return folder


def run(module, place: Path, monkeypatch, capsys, *words: str) -> list[dict]:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["bench", "--model", "model", *words])
    module.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_generation(place, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sampler, "product_flops", lambda device, dtype: 1e12)
    product, flat, loop, *unshared = run(
        sampler, place, monkeypatch, capsys, "--workload", "workload.py", "--repeats", "1"
    )
    assert (product["workload"], product["ranks"]) == ("product", 1)
    assert (flat["workload"], flat["new_tokens"]) == ("flat", 64 * 4)
    assert (loop["workload"], loop["new_tokens"]) == ("loop", 2 * 3 * (4 + 2 * 5))
    for row in (flat, loop, *unshared):
        assert row["computed_tokens"] == row["prefill_tokens"] + row["new_tokens"]
        assert row["tokens_per_second"] > 0 and 0 < row["share_of_limit"] < 1
    for shared, row in zip((flat, loop), unshared, strict=True):
        assert (row["workload"], row["ablation"]) == (shared["workload"], "sharing off")
        assert row["prefill_tokens"] > shared["prefill_tokens"]


def test_training(place, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "product_flops", lambda device, dtype: 1e12)
    [row] = run(trainer, place, monkeypatch, capsys, "--pairs", "workload.py")
    assert row["pairs"] == 6 and row["pairs_per_second"] == pytest.approx(6 / row["seconds"], rel=0.2)
    assert 0 < row["share_of_limit"] < 1 and row["peak_memory_mib"] > 0 and 0 < row["last_loss"] < 1
    examples = trainer.read_pairs(place / "workload.py", place / "model")
    once = sum(len(e.prompt) + sum(len(ids) - 1 for ids in e.completions) for e in examples)
    assert row["tokens"] == 2 * once, "prompts are shared; the reference's pass and the updates"


def test_each_rank_takes_every_nth_prompt(place, monkeypatch):
    assert len(load_module(Path(workload.__file__)).pairs()) == 32
    own = load_module(place / "workload.py")
    bench, parts = sampler.Bench(None, None, own, 1, 1.0), []
    monkeypatch.setattr(sampler.dist, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(sampler.dist, "get_rank", lambda rank=rank: rank)
        parts.append(bench.texts(5))
    assert parts == [own.prompts(5)[::2], own.prompts(5)[1::2]]
    own.prompts = lambda count: ["one"]
    with pytest.raises(UserError, match=r"prompts\(5\) gives 1; let it give 5"):
        bench.texts(5)
