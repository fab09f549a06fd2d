"""tools/bench/kernels.py on tiny sizes: what is timed is the same work, done by the kernels and by PyTorch."""

import pytest
import torch

from kernels.compile import Shape
from tools.bench import kernels
from tools.bench.kernels import cases, measure

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:divide by zero")]


def test_both_sides_do_the_same(device, monkeypatch):
    torch.manual_seed(0)
    with device:
        rows = list(cases(Shape(4, 2, 64, 48, 40, 500), length=64, sequences=2, batch=3, dtype=torch.float16))
        for case in rows:
            ours, theirs = case.ours(), case.theirs()
            sides = ((ours,), (theirs,)) if isinstance(ours, torch.Tensor) else (ours, theirs)
            for mine, other in zip(*sides, strict=True):
                torch.testing.assert_close(mine, other, atol=5e-3, rtol=5e-3)
    assert len({case.name for case in rows}) == 15 and all(case.bytes > 0 for case in rows)
    attention = rows[0]
    row = measure(attention, (attention.operations, 1e30), lambda run: 4.0 if run is attention.ours else 6.0)
    assert (row["kernel"], row["milliseconds"], row["share"], row["times_as_fast"]) == ("attention", 4e3, 0.25, 1.5)
    # 2 x 64 tokens, 4 heads of 64: half of 2 products of 2 x 64 x 64 x 64 operations a head, and q, k, v, out in fp16.
    assert attention.operations == 2 * 4 * 2 * 64**3 and attention.bytes == 2 * 128 * 64 * (4 + 2 + 2 + 4)
    monkeypatch.setattr(kernels, "cases", lambda *sizes: [attention])
    with device:
        limits, timed = kernels.rows(tiny=True)
    assert limits["kernel"] == "limits" and limits["gigabytes_per_second"] > 0
    assert timed.keys() == row.keys() and timed["milliseconds"] > 0
