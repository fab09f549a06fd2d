"""Every kernel, compiled at its shipped settings for GPUs that are not present."""

import os
from itertools import product

import pytest
import torch

from kernels import attention_triton
from kernels.compile import (
    CASES,
    COLUMNS,
    SHAPES,
    blocks_per_multiprocessor,
    compile_all,
    compile_case,
    describe,
    faults,
    recording,
    table,
)
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
    return compile_all(min(2, os.cpu_count() or 1))


def test_every_kernel_meets_the_requirements(rows):
    assert [(row, missed) for row in rows if (missed := faults(row))] == []


def test_all_are_there(rows):
    """The kernels of each model for both dtypes and the three targets, the paged one in narrow and wide tiles."""
    for model, dtype, target in product(SHAPES, ("bfloat16", "float16"), ("sm_80", "sm_90", "sm_100")):
        group = [row for row in rows if (row["model"], row["dtype"], row["target"]) == (model, dtype, target)]
        assert {row["kernel"] for row in group} == KERNELS
        assert [row["tile"] for row in group if row["kernel"] == "paged.read"] == ["16x64", "64x64"]
    lines = table(rows, COLUMNS).splitlines()
    assert len(lines) == len(rows) + 1 and lines[0].split() == COLUMNS


def test_each_fault_is_detected(rows):
    good = next(row for row in rows if row["kernel"] == "attention.forward" and row["target"] == "sm_90")
    changes = {
        "spills registers": {"spills": 2},
        "has too much shared memory": {"shared_bytes": 227 * 1024 + 1},
        "has a product without matrix instructions": {"scalar_dots": 1},
        "has a tile below 64x64": {"tile": "64x32"},
        "does not use wgmma": {"matrix_instructions": {"mma": 8}},
        "does not fit": {"blocks_per_multiprocessor": 0},
    }
    for fault, change in changes.items():
        assert faults(good | change) == [fault]
    assert "spills registers" in faults(good | {"stack": 8})
    ampere = next(row for row in rows if row["kernel"] == "attention.forward" and row["target"] == "sm_80")
    assert faults(ampere | {"shared_bytes": 100 * 1024}) == ["has too much shared memory for smaller cards"]
    assert faults(ampere | {"shared_bytes": 164 * 1024})[0] == "has too much shared memory"


def test_a_bad_setting_shows_in_what_the_compiler_makes(monkeypatch):
    """128 rows in 4 warps are too much for the registers, and 16 rows too few for wgmma."""
    fault_lists = {}
    for name, tile in {"spills": Launch(128, 64, 4, 3), "small": Launch(16, 64, 4, 3)}.items():
        monkeypatch.setitem(attention_triton.FORWARD, 90, {128: tile})
        row = compile_case("attention", "Llama-3-8B", torch.bfloat16, 90)[0]
        assert row["kernel"] == "attention.forward"
        fault_lists[name] = faults(row)
    assert fault_lists == {"spills": ["spills registers"], "small": ["has a tile below 64x64", "does not use wgmma"]}


def test_products_in_fp32_are_seen_not_to_be_matrix_instructions():
    with recording(80) as launches:
        CASES["logprob"](SHAPES["SmolLM2-135M"], torch.float32)
    launch = next(launch for launch in launches if launch.name == "logprob.target")
    row = describe(launch, "SmolLM2-135M", torch.float32, 80)
    assert row["dots"] and not row["matrix_instructions"]
    assert "has a product without matrix instructions" in faults(row)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [(32, 0, 4, 16), (255, 32 * 1024, 4, 2), (128, 48 * 1024, 4, 3), (128, 227 * 1024, 8, 1), (40, 0, 1, 32)],
)
def test_blocks_per_multiprocessor(registers, shared, warps, blocks):
    """Of compute capability 8.0 and 9.0, by hand: 2048 threads, 65,536 registers, 164 or 228 KiB, 32 programs."""
    assert blocks_per_multiprocessor(90 if shared > 163 * 1024 else 80, registers, shared, warps) == blocks
