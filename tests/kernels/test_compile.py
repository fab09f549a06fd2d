"""The kernels, compiled at their shipped settings for GPUs that are not present: some for sm_90, slowly all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import attention_triton
from kernels.compile import SHAPES, Shape, compile_kernels, faults, launch_all, recording
from kernels.launch import Launch, interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")

KERNELS = (
    "attention.backward_delta attention.backward_keys attention.backward_queries attention.forward logprob.forward "
    "logprob.slope logprob.target norm.backward norm.forward paged.merge paged.read rope.rotate "
    "swiglu.activate topp.chunk topp.draw"
)
ATTENTION = ("attention.forward", "attention.backward_keys", "attention.backward_queries", "paged.read")


def test_every_kernel_is_launched_and_some_are_compiled():
    """The paged one in narrow and wide tiles: it needs the most registers."""
    with recording(90) as launches:
        launch_all(SHAPES["Llama-3-8B"], torch.bfloat16)
    assert " ".join(sorted({launch.name for launch in launches})) == KERNELS
    for target, wide in ((90, "64x32"), (100, "64x64")):
        rows = compile_kernels("Llama-3-8B", torch.bfloat16, target, only="paged.read")
        assert [row["tile"] for row in rows] == ["16x64", wide] and not any(map(faults, rows))


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100])
def test_heads_of_256(target, monkeypatch):
    """On 8.0 prefill spills."""
    monkeypatch.setitem(SHAPES, "wide", Shape(8, 2, 256, 2048, 8192, 49_152))
    rows = [row for name in ATTENTION for row in compile_kernels("wide", torch.bfloat16, target, only=name)]
    bad = {(row["kernel"], row["tile"]): faults(row) for row in rows if faults(row)}
    assert len(rows) == 5 and bad == ({("paged.read", "64x32"): ["spills registers"]} if target == 80 else {})


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-m", "kernels.compile"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "kernels.json").is_file(), done.stderr
    assert done.stderr == "252 kernels: none spills, all products are matrix instructions\n"


def test_bad_settings_show_in_what_the_compiler_makes(monkeypatch):
    """128 rows in 4 warps are too much for the registers, and 16 rows too few for wgmma; fp32 has no instructions."""
    for tile, fault in ((Launch(128, 64, 4, 3), "spills registers"), (Launch(16, 64, 4, 3), "does not use wgmma")):
        monkeypatch.setitem(attention_triton.FORWARD, 90, {128: tile})
        [row] = compile_kernels("Llama-3-8B", torch.bfloat16, 90, only="attention.forward")
        assert (row["tile"], faults(row)) == (f"{tile.m}x64", [fault])
    [row] = compile_kernels("SmolLM2-135M", torch.float32, 80, only="logprob.target")
    assert faults(row) == ["has a product without matrix instructions", "does not use mma"]
    for target, kib in (("sm_80", 99), ("sm_90", 227)):
        assert "has too much shared memory" in faults(row | {"target": target, "shared_bytes": kib * 1024 + 1})
