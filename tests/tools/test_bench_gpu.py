"""tools/bench/gpu.py on the tiny shape and this CPU: each part from its work to its table."""

import json
import sys

import pytest
from processes import ROOT

from stages.command import UserError
from tools.bench import gpu, peers


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> None:
    """Where the tiny model is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")


def test_every_part_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench-gpu"])
    with pytest.raises(UserError, match=r"^no CUDA device: speed is measured on a GPU; --tiny tries"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["bench-gpu", "--tiny", "--peers"])
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "peak_flops", lambda device, dtype: 1e10)
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    skipped, *generated, vllm, full, recompute, lora, trl = [json.loads(line) for line in lines if line.startswith("{")]
    assert skipped == {"kernels": "skipped", "reason": "without a GPU they need TRITON_INTERPRET=1"}
    assert vllm == {"generation": "skipped", "reason": "not installed: pip install vllm"}
    assert trl == {"training": "skipped", "reason": "not installed: pip install trl peft"}
    assert [row["generation"] for row in generated] == ["responses", "judgments", "comparisons"]
    for row, mean in zip(generated, (21, 37, 23), strict=True):  # [plan] of tiny.toml
        assert row["requests"] == 8 and row["new_tokens"] == pytest.approx(8 * mean, rel=0.2)
        assert row["new_a_second"] > 0 and 0 < row["prefill_tokens"] < 1000
    assert [row["training"] for row in (full, recompute, lora)] == ["full", "recompute", "LoRA"]
    for row in (full, recompute, lora):
        assert row["tokens"] == full["tokens"] <= 2048 and row["pairs"] <= 8 and row["layers"] == 2
    # Of 2 layers with 98,304 weights each, 6 operations a weight and token; besides, the head's and attention's.
    assert 1 < full["mfu"] / (6 * 2 * 98_304 * full["tokens_a_second"] / 1e10) < 1.7
    tables = [line.split()[0] for line in lines if line.startswith(("responses", "full", "LoRA"))]
    assert tables == ["responses", "full", "LoRA"]


@pytest.mark.peers
def test_trl_beside_ours(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench-gpu", "--tiny", "--peers", "--only", "training"])
    gpu.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["program"], row["training"]) for row in rows[3:]] == [
        ("TRL", n) for n in ("full", "recompute", "LoRA")
    ]
    assert len({row["tokens"] for row in rows}) == 1 and all(row["tokens_a_second"] > 0 for row in rows)
