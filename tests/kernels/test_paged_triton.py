"""Triton's attention over the paged cache against the formula in fp64, and against the eager version's error."""

from dataclasses import astuple

import pytest
import torch
from accuracy import assert_as_close

from kernels import paged, rope_triton
from kernels.metadata import AttentionMetadata, TileSizes, build_metadata, build_tiles
from kernels.paged_triton import DeviceTiles, TritonPagedAttention
from kernels.rope import apply_rope, rotate_and_store
from model.layers import HeadNorm

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:divide by zero")]
SIZE = 16


def step(shapes: list[tuple[int, int]], shared: int = 0) -> tuple[AttentionMetadata, int]:
    """A step of sequences of (new tokens, all tokens up to them), and its number of blocks. Sequences that are long
    enough have the same first `shared` blocks."""
    decode, prefill, fresh = [], [], shared
    for new, total in shapes:
        common = shared if (total - new) // SIZE >= shared else 0
        own = -(-total // SIZE) - common
        blocks = [*range(common), *range(fresh, fresh + own)]
        fresh += own
        (decode if new == 1 else prefill).append((total - new, total, blocks))
    return build_metadata(decode, prefill, SIZE), fresh


def tensors(metadata, blocks, h, k, d, dtype, device):
    """Cache, queries and keys, values, rotations."""
    generator = torch.Generator().manual_seed(h + d)
    rows = len(metadata.positions)
    cache = torch.randn(2, 2, blocks, k, SIZE, d, generator=generator).to(device, dtype)
    qk, v = (torch.randn(rows, n, d, generator=generator).to(device, dtype) for n in (h + k, k))
    angles = torch.randn(rows, 1, d // 2, generator=generator).to(device)
    rope = (torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1))
    return cache, qk, v, rope


def plain(cache, metadata, qk, v, rope, h):
    """softmax(q k^T / sqrt(d)) v of each token over its sequence, written out; the cache holds the step's keys."""
    q, outputs = apply_rope(qk, rope)[:, :h].double(), []
    for span in metadata.spans:
        own = (x[span.blocks].transpose(1, 2).flatten(0, 1)[: span.end].double() for x in cache)
        keys, values = (x.repeat_interleave(h // v.shape[1], 1) for x in own)
        x = q[span.row : span.row + len(span.positions)]
        scores = torch.einsum("ihd,jhd->hij", x, keys) / x.shape[2] ** 0.5
        hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(span.start + 1)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values))
    return torch.cat(outputs)


MIXED = [(1, 1), (1, 2), (1, 31), (1, 129), (1, 600), (2, 2), (31, 31), (5, 18), (66, 140)]
SHARED = [(1, 140 + 3 * i) for i in range(5)] + [(3, 150)]
MANY = [(1, 300 + 3 * i) for i in range(30)]


@pytest.mark.parametrize(
    ("h", "k", "d", "shapes", "shared", "dtype"),
    [
        (2, 2, 64, MIXED, 0, torch.float32),
        (3, 1, 128, MIXED, 1, torch.bfloat16),
        (8, 1, 64, SHARED, 8, torch.float32),  # a prefix of 128 tokens, 5 readers and a prompt
        (4, 1, 128, MANY, 16, torch.float16),  # of 256 tokens, 30 readers
        (3, 1, 64, [(1, 1500)], 0, torch.bfloat16),  # a long context, split
        (9, 3, 80, [(1, 40), (7, 90)], 0, torch.float16),
        (6, 2, 8, [(1, 140), (1, 140), (20, 90)], 3, torch.float32),
        (2, 1, 256, [(1, 20), (1, 70), (33, 40)], 1, torch.bfloat16),
    ],
)
def test_as_close_to_fp64_as_the_eager_version(h, k, d, shapes, shared, dtype, device):
    if device.type == "cuda" and dtype == torch.float32:
        dtype = torch.float16  # fp32 runs in the interpreter alone
    metadata, blocks = step(shapes, shared)
    cache, qk, v, rope = tensors(metadata, blocks, h, k, d, dtype, device)
    eager_cache = cache.clone()
    eager = paged.PagedAttention(eager_cache, metadata, h)(1, qk, v, rope)
    ours = TritonPagedAttention.build(cache, metadata, h)(1, qk, v, rope)
    torch.testing.assert_close(cache, eager_cache, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)
    assert_as_close([ours], [eager], [plain(eager_cache[1], metadata, qk, v, rope, h)])


@pytest.mark.parametrize(
    ("h", "k", "d", "dtype"), [(8, 1, 64, torch.float32), (3, 3, 12, torch.bfloat16), (9, 3, 128, torch.float16)]
)
def test_the_norm_before_the_rotation_is_the_models(h, k, d, dtype, device):
    """Queries' and keys' with weights of their own; values are stored as they are."""
    metadata, blocks = step([(1, 31), (6, 18)])
    cache, qk, v, rope = tensors(metadata, blocks, h, k, d, dtype, device)
    norm = HeadNorm(h, k, d, eps=0.1).to(device, dtype).requires_grad_(False)
    norm.weight += torch.linspace(-0.5, 2, 2 * d, device=device).to(dtype)
    slots, eager_cache = paged.PagedAttention(cache, metadata, h).slots_tk, cache.clone()
    eager = rotate_and_store(qk, v, rope, eager_cache[1], slots, norm)
    ours = rope_triton.rotate_and_store(qk, v, rope, cache[1], slots, norm)
    for mine, theirs in ((ours, eager), (cache, eager_cache)):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


def test_padded_tiles_are_the_same_work(device):
    """In a CUDA graph's bucket padding computes nothing, and writes to the spare block alone."""
    metadata, blocks = step([(1, 100), (1, 40), (1, 7), (1, 110)], 4)
    cache, qk, v, rope = tensors(metadata, blocks + 1, 6, 2, 64, torch.float16, device)
    padded_cache, tiles = cache.clone(), build_tiles(metadata, 6, 2)
    exact = TritonPagedAttention.build(cache, metadata, 6)(0, qk, v, rope)
    room = zip(astuple(tiles.sizes), (4, 3, 5, 2, 4), strict=True)
    sizes = TileSizes(*(needed + spare for needed, spare in room))
    integers = torch.tensor(tiles.integers(sizes, spare_block=blocks), dtype=torch.int32, device=device)
    qk, v, *rope = (torch.cat((x, x)) for x in (qk, v, *rope))
    result = TritonPagedAttention(padded_cache, DeviceTiles(integers, sizes, True))(0, qk, v, rope)
    assert torch.equal(result[:4], exact) and not result[4:].any()
    assert torch.equal(padded_cache[:, :, :-1], cache[:, :, :-1])


def test_offsets_past_2_31_elements(device):
    """The last blocks of a cache so large that their offsets do not fit 32 bits; its other pages are never touched."""
    k, d = 2, 128
    blocks = 2**31 // (k * SIZE * d) + 20
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of GPU memory")
    far = torch.empty(1, 2, blocks, k, SIZE, d, dtype=torch.float16, device=device)
    metadata, count = step([(1, 40), (1, 60), (20, 30)], 2)
    near, qk, v, rope = tensors(metadata, count, 2, k, d, torch.float16, device)
    far[0, :, -count:] = near[0]
    attend = TritonPagedAttention.build(near, metadata, 2)
    expected = attend(0, qk, v, rope)
    attend.cache = far
    attend.tiles.blocks_m += blocks - count
    attend.slots_tk += (blocks - count) * k * SIZE
    assert torch.equal(attend(0, qk, v, rope), expected) and torch.equal(far[0, :, -count:], near[0])
