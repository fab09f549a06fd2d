"""The sampler against published noise vectors and the exact distribution."""

import pytest
import torch
from scipy.stats import chisquare

import sampling.sampler
from sampling.sampler import philox, sample


@pytest.mark.parametrize(
    ("counter", "key", "word"),
    [  # known answers of the authors' library (Random123, philox4x32-10)
        ((0, 0, 0, 0), (0, 0), 0x6627E8D5),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 0x408F276D),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), 0xD16CFE09),
    ],
)
def test_philox_known_answers(counter, key, word):
    assert philox([torch.tensor([w]) for w in counter], [torch.tensor([w]) for w in key]).item() == word


def draw(logits: torch.Tensor, count: int, temperature: float, top_p: float, seed: int = 7) -> torch.Tensor:
    """`count` draws of one distribution, at positions 0 ... count - 1."""
    temperatures, top_ps, seeds = (torch.full((count,), value) for value in (temperature, top_p, seed))
    return sample(logits.expand(count, -1), temperatures, top_ps, seeds, torch.arange(count))[0]


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The exact distribution, by a sort: the smallest set of most probable tokens that holds top_p."""
    p = (logits.double() / temperature).softmax(-1)
    ordered, order = p.sort(descending=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    q = torch.zeros_like(p)
    q[order[kept]] = ordered[kept]
    return q / q.sum()


@pytest.mark.parametrize(
    ("vocabulary", "scale", "draws"),
    [(11, 1.5, 40_000), (257, 2.0, 20_000), pytest.param(49_152, 3.5, 200_000, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.95), (1.3, 0.5), (1.0, 1.0)])
def test_draws_follow_the_exact_nucleus(vocabulary, scale, draws, temperature, top_p, monkeypatch):
    monkeypatch.setattr(sampling.sampler, "CPU_ROWS", 4096)  # rows of a small vocabulary are fast together
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * scale
    expected = nucleus(logits, temperature, top_p)
    chunk = 20_000 if vocabulary < 5000 else 512
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    for first in range(0, draws, chunk):
        ids = draw(logits, min(chunk, draws - first), temperature, top_p, first)
        counts += torch.bincount(ids, minlength=vocabulary)
    assert counts[expected == 0].sum() == 0
    frequent = expected * draws >= 5
    observed = torch.cat([counts[frequent], counts[~frequent].sum()[None]]).double()
    wanted = torch.cat([expected[frequent], expected[~frequent].sum()[None]]) * draws
    keep = wanted > 0
    assert chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue > 1e-4


def test_greedy_and_logprob():
    logits = torch.randn(5, 300)
    zeros = torch.zeros(5, dtype=torch.int64)
    ids, logprob = sample(logits, torch.zeros(5), torch.full((5,), 0.9), zeros, zeros)
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(logprob, logits.log_softmax(-1).max(-1).values)
    ids, logprob = sample(logits, torch.full((5,), 0.7), torch.full((5,), 0.9), torch.arange(5), zeros)
    torch.testing.assert_close(logprob, (logits / 0.7).log_softmax(-1)[torch.arange(5), ids])


def test_a_draw_depends_on_its_seed_and_position_alone():
    seeds, positions = torch.arange(40) + 2**40, torch.arange(40) * 3
    columns = (torch.randn(40, 1000), torch.full((40,), 1.0), torch.full((40,), 0.95), seeds, positions)
    together, _ = sample(*columns)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(together[order], sample(*(column[order] for column in columns))[0])
    alone = [sample(*(column[i : i + 1] for column in columns))[0] for i in range(40)]
    assert torch.equal(together, torch.cat(alone))


def test_tokens_outside_the_nucleus_are_never_drawn():
    """Not even probable ones; top-p 0 leaves the most probable token and its equals."""
    assert set(draw(torch.tensor([0.55, 0.3, 0.15]).log(), 300, temperature=1.0, top_p=0.5).tolist()) == {0}
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).clamp_(max=2)
    logits[:, [40, 280]] = 3.0
    ids, _ = sample(logits, torch.ones(64), torch.zeros(64), torch.arange(64), torch.zeros(64, dtype=torch.int64))
    assert set(ids.tolist()) == {40, 280}
