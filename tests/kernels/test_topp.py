"""kernels/topp.py against the CPU sampler: the same tokens for the same noise.

The two round differently, so a draw may differ if its noise falls on the boundary between two tokens, or a token on the
boundary of the nucleus. These seeds avoid that: every token stays the same when noise or top-p moves by 2e-6.
"""

import pytest
import torch
from torch import Tensor

from kernels import topp
from sampling import sampler

pytestmark = pytest.mark.kernels


def normal(rows: int, vocabulary: int, scale: float, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def settings(seed: int = 0) -> tuple[Tensor, ...]:
    """Temperature, top-p, seed and position of eight rows."""
    temperature = torch.tensor([0.0, 0.1, 0.1, 0.8, 0.8, 0.8, 1.5, 1.5])
    top_p = torch.tensor([1.0, 0.95, 0.01, 1.0, 0.95, 0.5, 0.95, 0.5])
    return temperature, top_p, seed + torch.arange(8), torch.arange(8) * 7


def same(temperature: float, top_p: float, seeds: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    """The settings of rows with one temperature and top-p."""
    return *(torch.full((len(seeds),), value) for value in (temperature, top_p)), seeds, positions


def check(device: torch.device, logits: Tensor, *settings: Tensor, moved: Tensor | None = None):
    """Both samplers agree; returns their draws. `moved`: the logits on the device, in a layout of their own."""
    expected, expected_logprobs = sampler.sample(logits, *settings)
    moved = logits.to(device) if moved is None else moved
    ids, logprobs = topp.sample(moved, *(x.to(device) for x in settings))
    assert ids.dtype == torch.int64 and logprobs.dtype == torch.float32
    assert torch.equal(ids.cpu(), expected)
    torch.testing.assert_close(logprobs.cpu(), expected_logprobs, atol=1e-5, rtol=0)
    return expected, expected_logprobs


SIZES = [(1, torch.float32), (2, torch.float16), (257, torch.bfloat16), (1000, torch.float32)]
IMPOSSIBLE = torch.tensor([*range(256), *range(300, 512, 2), *range(512, 768)])  # whole chunks, and single tokens
WIDE = (torch.tensor([-1, -(2**63), 2**63 - 1, 2**32 + 1]), torch.tensor([2**32, 2**33 + 5, 0, 2**50]))
BORDER = torch.tensor([1.0, 0.5, 0.25, 0.25]).log()  # the first token's mass is exactly the nucleus


@pytest.mark.parametrize(
    ("logits", "given"),
    [
        *[(normal(8, size, scale).to(dtype), settings(100)) for size, dtype in SIZES for scale in (1.0, 4.0)],
        pytest.param(normal(4, 128_256, 3.0).bfloat16(), [x[[1, 4, 5, 6]] for x in settings()], id="a real vocabulary"),
        pytest.param(normal(8, 600, 1.0).round().bfloat16(), settings(), id="many equal logits"),
        pytest.param(normal(8, 1000, 1.0).index_fill(1, IMPOSSIBLE, -torch.inf), settings(), id="minus infinity"),
        pytest.param(BORDER.expand(40, -1), same(1.0, 0.5, torch.arange(40), torch.arange(40)), id="half above, half"),
        pytest.param(normal(1, 257, 2.0).expand(4, -1), same(1.0, 0.9, *WIDE), id="64-bit seeds and positions"),
    ],
)
def test_equals_the_cpu_sampler(logits, given, device):
    check(device, logits, *given)


def test_greedy_takes_the_first_of_equals_and_a_certain_token_has_log_probability_zero(device):
    zeros, logits = torch.zeros(4, dtype=torch.int64), torch.full((4, 1000), -300.0)
    for row, places in enumerate(([999], [300, 700], [0, 1], [255, 256])):
        logits[row, places] = 300.0
    ids, _ = check(device, logits, *same(0.0, 0.95, zeros, zeros))
    assert ids.tolist() == [999, 300, 0, 255]
    logits[1, 700] = logits[2, 1] = logits[3, 256] = -300.0
    ids, logprobs = check(device, logits, *same(1.0, 1.0, zeros, zeros))
    assert ids.tolist() == [999, 300, 0, 255] and not logprobs.any()


def test_rows_may_lie_apart_and_settings_may_be_columns_of_a_table(device):
    table, cut = normal(16, 331, 2.0).bfloat16(), (slice(1, None, 2), slice(7, 307))
    columns = [torch.stack((x, x), 1)[:, 0] for x in settings()]
    check(device, table[cut], *columns, moved=table.to(device)[cut])


def test_many_rejections_and_top_p_zero_leaves_the_most_probable(device):
    """Far beyond the attempts whose noise the CPU sampler makes at once."""
    logits, seeds, positions = normal(3, 520, 0.3), torch.arange(3), torch.zeros(3, dtype=torch.int64)
    ids, _ = check(device, logits, *same(1.0, 0.02, seeds, positions))
    assert (logits.gather(1, ids[:, None]) > logits.topk(30).values[:, -1:]).all()
    logits[:, [40, 480]] = 5.0
    ids, _ = check(device, logits, *same(1.0, 0.0, seeds, positions))
    assert set(ids.tolist()) <= {40, 480}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_without_a_distribution_end_and_no_rows_are_none(device):
    logits, zeros = torch.zeros(4, 300), torch.zeros(4, dtype=torch.int64)
    logits[0], logits[1, 270], logits[2, 5], logits[3] = -torch.inf, torch.nan, torch.inf, torch.nan
    for temperature, top_p in ((0.0, 1.0), (1.0, 0.5), (1.0, 0.0)):
        given = [x.to(device) for x in (logits, *same(temperature, top_p, zeros, zeros))]
        ids, logprobs = topp.sample(*given)
        assert ((ids >= 0) & (ids < 300)).all() and logprobs.isnan().all()
    assert [len(x) for x in topp.sample(*(x[:0] for x in given))] == [0, 0]
