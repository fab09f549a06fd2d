"""The kernels, compiled at their shipped settings for GPUs that are not present: one model for sm_90, slowly all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import attention_triton
from kernels.compile import SHAPES, compile_kernels, describe, faults, launch_all, recording, table
from kernels.launch import Launch, interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")

KERNELS = {
    *("attention.forward", "attention.backward_delta", "attention.backward_keys", "attention.backward_queries"),
    *("rope.rotate_and_store", "paged.read", "paged.merge"),
    *("logprob.forward", "logprob.target", "logprob.slope"),
    *("topp.chunk", "topp.draw"),
}


@pytest.fixture(scope="module")
def rows():
    return compile_kernels("SmolLM2-135M", torch.bfloat16, 90)


def test_every_kernel_meets_the_requirements(rows):
    """The paged one in narrow and wide tiles."""
    assert [(row, missed) for row in rows if (missed := faults(row))] == []
    assert {row["kernel"] for row in rows} == KERNELS
    assert [row["tile"] for row in rows if row["kernel"] == "paged.read"] == ["16x64", "64x64"]
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 1 and lines[0].split() == list(rows[0])


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-m", "kernels.compile"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "kernels.json").is_file(), done.stderr
    assert done.stderr == "156 kernels: none spills, all products are matrix instructions\n"


def test_each_fault_is_detected(rows):
    good = next(row for row in rows if row["kernel"] == "attention.forward")
    changes = {
        "spills registers": {"spills": 2},
        "has too much shared memory": {"shared_bytes": 227 * 1024 + 1},
        "has a product without matrix instructions": {"scalar_products": 1},
        "does not use wgmma": {"matrix_instructions": {"mma": 8}},
    }
    for fault, change in changes.items():
        assert faults(good | change) == [fault]
    ampere = good | {"target": "sm_80", "matrix_instructions": {"mma": 8}, "shared_bytes": 99 * 1024}
    assert faults(ampere) == [] and faults(ampere | {"shared_bytes": 100 * 1024}) == ["has too much shared memory"]


def test_a_bad_setting_shows_in_what_the_compiler_makes(monkeypatch):
    """128 rows in 4 warps are too much for the registers, and 16 rows too few for wgmma."""
    for tile, fault in ((Launch(128, 64, 4, 3), "spills registers"), (Launch(16, 64, 4, 3), "does not use wgmma")):
        monkeypatch.setitem(attention_triton.FORWARD, 90, {128: tile})
        [row] = compile_kernels("Llama-3-8B", torch.bfloat16, 90, only="attention.forward")
        assert (row["tile"], faults(row)) == (f"{tile.m}x64", [fault])


def test_products_in_fp32_are_seen_not_to_be_matrix_instructions():
    with recording(80) as launches:
        launch_all(SHAPES["SmolLM2-135M"], torch.float32)
    row = describe(next(launch for launch in launches if launch.name == "logprob.target"), 80)
    assert row["products"] == row["scalar_products"] > 0 and not row["matrix_instructions"]
