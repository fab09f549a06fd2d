"""tools/bench/kernels.py on tiny sizes: what is timed is the same work, done by the kernels and by PyTorch."""

import time

import pytest
import torch
from torch import Tensor

from kernels.launch import interpreted
from tools.bench.kernels import BenchSizes, cases, measure

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:divide by zero")]

TINY = BenchSizes(
    heads=4, kv_heads=2, head_dim=64, hidden_size=48, vocabulary=500, sequences=2, length=64, batch=3, block_size=16
)


def tensors(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def test_both_sides_do_the_same(device):
    torch.manual_seed(0)
    names = []
    for case in cases(TINY, device, torch.float16):
        ours, theirs = tensors(case.ours()), tensors(case.theirs())
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=5e-3, rtol=5e-3, msg=lambda text, name=case.name: name + text)
        assert case.bytes > 0
        names.append(case.name)
    assert len(names) == len(set(names)) == 10


@pytest.mark.skipif(not interpreted(), reason="a GPU has its own clock")
def test_rows():
    def seconds(run) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    case = next(iter(cases(TINY, torch.device("cpu"), torch.float16)))
    row = measure(case, (1e12, 1e9), seconds)
    assert row["kernel"] == "attention" and row["milliseconds"] > 0 and 0 <= row["share"] < 1
    row = measure(case, (case.operations, 1e30), lambda run: 4.0)
    assert row["share"] == 0.25 and row["times_as_fast"] == 1.0
