"""kernels/topp.py against the CPU sampler: the same tokens for the same noise.

The two round differently, so a draw may differ if its noise falls on the boundary between two tokens, or a token on the
boundary of the nucleus. These seeds avoid that: every token stays the same when noise or top-p moves by 2e-6.
"""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from scipy.stats import chisquare
from torch import Tensor
from triton.language.random import philox_impl

from kernels import topp
from kernels.topp import _uniform
from sampling import sampler

pytestmark = pytest.mark.kernels

TEMPERATURES = (0.0, 0.1, 0.8, 1.5)
TOP_P = (1.0, 0.95, 0.5, 0.01)


def normal(rows: int, vocabulary: int, scale: float, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def filled(rows: int, value: float) -> Tensor:
    return torch.full((rows,), value)


def check(device: torch.device, logits: Tensor, *settings: Tensor, moved: Tensor | None = None):
    """Both samplers agree; returns their draws. `moved`: the logits on the device, in a layout of their own."""
    expected, expected_logprobs = sampler.sample(logits, *settings)
    moved = logits.to(device) if moved is None else moved
    ids, logprobs = topp.sample(moved, *(x.to(device) for x in settings))
    assert ids.dtype == torch.int64 and logprobs.dtype == torch.float32
    assert torch.equal(ids.cpu(), expected)
    torch.testing.assert_close(logprobs.cpu(), expected_logprobs, atol=1e-5, rtol=0)
    return expected, expected_logprobs


def every_setting(rows: int, first_seed: int) -> tuple[Tensor, ...]:
    """Settings of each row: all pairs of a temperature and a top-p, over and over."""
    pairs = itertools.islice(itertools.cycle(itertools.product(TEMPERATURES, TOP_P)), rows)
    temperature, top_p = torch.tensor(list(pairs)).unbind(1)
    return temperature, top_p, first_seed + torch.arange(rows), torch.arange(rows) * 7


@triton.jit
def _noise_kernel(seed, position, attempt, noise, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(noise + lane, _uniform(tl.load(seed + lane), tl.load(position + lane), tl.load(attempt + lane)))


@triton.jit
def _philox_kernel(words, out):
    c0, c1, c2 = tl.load(words), tl.load(words + 1), tl.load(words + 2)
    c3, k0, k1 = tl.load(words + 3), tl.load(words + 4), tl.load(words + 5)
    word, _, _, _ = philox_impl(c0, c1, c2, c3, k0, k1)
    tl.store(out, word)


@pytest.mark.parametrize(
    "words",
    [
        (0, 0, 0, 0, 0, 0),
        (0xFFFFFFFF,) * 6,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0),
    ],
)
def test_the_philox_word(device, words):
    expected = sampler.philox(*torch.tensor(words)[:, None].split((4, 2)))
    out = torch.zeros(1, dtype=torch.uint32, device=device)
    _philox_kernel[(1,)](torch.tensor(words, dtype=torch.uint32).to(device), out)
    assert out.cpu().long().item() == expected.item()


def test_noise_of_every_seed_position_and_attempt(device):
    seeds = torch.tensor([0, 1, -1, 2**31, 2**32 + 5, -(2**63), 2**63 - 1, -(2**40) - 3])
    positions = torch.tensor([0, 2**32 - 1, 2**32, 2**40 + 7])
    seed, position = (x.flatten() for x in torch.meshgrid(seeds, positions, indexing="ij"))
    for attempt in (0, 5, 1000):
        expected = sampler.uniform(seed, position, attempt)[:, 0]
        noise = torch.empty(len(seed), dtype=torch.float64, device=device)
        attempts = torch.full((len(seed),), attempt, dtype=torch.int32).view(torch.uint32)
        _noise_kernel[(1,)](seed.to(device), position.to(device), attempts.to(device), noise, N=len(seed))
        assert torch.equal(noise.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 2, 131, 255, 257, 1000])
def test_equals_the_cpu_sampler(device, vocabulary, dtype):
    peaked, flat = normal(16, vocabulary, 4.0), normal(16, vocabulary, 0.5, seed=1)
    check(device, torch.cat((peaked, flat)).to(dtype), *every_setting(32, first_seed=100))


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(49_152, torch.bfloat16), (50_257, torch.float16), (128_256, torch.bfloat16)]
)
def test_equals_the_cpu_sampler_on_models_vocabularies(device, vocabulary, dtype):
    check(device, normal(16, vocabulary, 3.0).to(dtype), *every_setting(16, first_seed=0))


def test_equal_logits_are_in_or_out_together(device):
    logits = normal(32, 600, 1.0).round().bfloat16()
    assert len(logits.unique()) < 12
    check(device, logits, *every_setting(32, first_seed=0))


def test_greedy_takes_the_first_of_equals(device):
    logits = torch.zeros(4, 1000)
    for row, places in enumerate(([999], [300, 700], [0, 1], [255, 256])):
        logits[row, places] = 1.0
    none = torch.zeros(4, dtype=torch.int64)
    ids, _ = check(device, logits, filled(4, 0.0), filled(4, 0.95), none, none)
    assert ids.tolist() == [999, 300, 0, 255]


def test_tokens_of_logit_minus_infinity_are_never_drawn(device):
    logits = normal(32, 1000, 1.0)
    logits[:, :256] = -torch.inf
    logits[:, 300::2] = -torch.inf
    logits[1::2, 512:] = -torch.inf
    check(device, logits, *every_setting(32, first_seed=0))


def test_a_certain_token(device):
    logits = torch.full((3, 700), -300.0)
    logits[torch.arange(3), torch.tensor([0, 256, 699])] = 300.0
    zeros = torch.zeros(3, dtype=torch.int64)
    ids, logprobs = check(device, logits, filled(3, 1.0), filled(3, 1.0), zeros, zeros)
    assert ids.tolist() == [0, 256, 699] and not logprobs.any()


def test_seeds_and_positions_of_64_bits(device):
    seeds = torch.tensor([-1, -(2**63), 2**63 - 1, 2**32, 2**32 + 1, -(2**35) + 11])
    positions = torch.tensor([2**32, 2**33 + 5, 2**40, 0, 2**32 - 1, 2**50])
    check(device, normal(1, 257, 2.0).expand(6, -1), filled(6, 1.0), filled(6, 0.9), seeds, positions)


@pytest.mark.parametrize("wide", [320, 331])
def test_rows_may_lie_apart(device, wide):
    table = normal(32, wide, 2.0).bfloat16()
    for cut in ((slice(16), slice(300)), (slice(1, None, 2), slice(7, 307))):
        check(device, table[cut], *every_setting(16, first_seed=0), moved=table.to(device)[cut])


def test_settings_may_be_columns_of_a_table(device):
    table = torch.tensor([[0.8, 0.9], [1.2, 0.5], [0.0, 1.0]])
    numbers = torch.tensor([[3, 10], [4, 11], [5, 12]])
    check(device, normal(3, 300, 2.0), table[:, 0], table[:, 1], numbers[:, 0], numbers[:, 1])


def test_many_rejections(device):
    """Far beyond the attempts whose noise the CPU sampler makes at once."""
    logits = normal(6, 520, 0.3)
    seeds, positions = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    ids, _ = check(device, logits, filled(6, 1.0), filled(6, 0.02), seeds, positions)
    unfiltered, _ = sampler.sample(logits, filled(6, 1.0), filled(6, 1.0), seeds, positions)
    assert not (ids == unfiltered).any()
    assert (logits.gather(1, ids[:, None]) > logits.topk(30).values[:, -1:]).all()


def test_top_p_zero_leaves_the_most_probable(device):
    logits = normal(8, 300, 0.5).bfloat16()
    logits[:, [40, 280]] = 5.0
    seeds, positions = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    expected, _ = check(device, logits, filled(8, 1.0), filled(8, 0.0), seeds, positions)
    assert set(expected.tolist()) == {40, 280}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_without_a_distribution_end(device):
    logits = torch.zeros(4, 300)
    logits[0], logits[1, 270], logits[2, 5], logits[3] = -torch.inf, torch.nan, torch.inf, torch.nan
    zeros = torch.zeros(4, dtype=torch.int64)
    for temperature, top_p in ((0.0, 1.0), (1.0, 0.5), (1.0, 0.0)):
        settings = (filled(4, temperature), filled(4, top_p), zeros, zeros)
        ids, logprobs = topp.sample(*(x.to(device) for x in (logits, *settings)))
        assert ((ids >= 0) & (ids < 300)).all() and logprobs.isnan().all()


def test_no_rows_and_wrong_layouts(device):
    whole = torch.empty(0, dtype=torch.int64, device=device)
    real = torch.empty(0, device=device)
    ids, logprobs = topp.sample(torch.empty(0, 300, device=device), real, real, whole, whole)
    assert ids.shape == logprobs.shape == (0,)
    assert ids.dtype == torch.int64 and logprobs.dtype == torch.float32
    for logits in (torch.empty(2, 0), torch.empty(300, 2).t(), torch.empty(2, 300)[:, ::2]):
        with pytest.raises(ValueError, match="contiguous"):
            topp.sample(logits, real, real, whole, whole)


def test_draws_follow_the_exact_nucleus(device):
    draws = 200_000 if device.type == "cuda" else 300
    logits = torch.tensor([0.3, -1.0, 1.2, 0.9, -2.5, 1.2, 0.0])
    p = (logits.double() / 0.8).softmax(-1)
    above = torch.stack([p[p > x].sum() for x in p])
    kept = torch.where(above < 0.8, p, 0.0)
    assert 0 < (kept > 0).sum() < len(logits)
    settings = (filled(draws, 0.8), filled(draws, 0.8), torch.arange(draws), torch.full((draws,), 17))
    ids, _ = topp.sample(logits.to(device).expand(draws, -1), *(x.to(device) for x in settings))
    counts = torch.bincount(ids.cpu(), minlength=len(logits))
    assert not counts[kept == 0].any()
    assert chisquare(counts[kept > 0], draws * (kept / kept.sum())[kept > 0]).pvalue > 1e-3


def test_a_cuda_graph_draws_from_what_its_inputs_hold(device):
    if device.type != "cuda":
        pytest.skip("graphs need CUDA")
    first, second = (
        (normal(16, 1000, 2.0, seed), filled(16, 0.8), filled(16, 0.95), torch.arange(16), torch.arange(16) * 7)
        for seed in (0, 1)
    )
    inputs = [x.to(device) for x in first]
    topp.sample(*inputs)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids, _ = topp.sample(*inputs)
    for case in (first, second):
        for here, new in zip(inputs, case, strict=True):
            here.copy_(new)
        graph.replay()
        assert torch.equal(ids.cpu(), sampler.sample(*case)[0])
