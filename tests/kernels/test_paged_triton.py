"""Triton's attention over the paged cache against the formula in fp64, and against the eager version's error."""

import pytest
import torch
from accuracy import assert_as_close

from kernels import paged
from kernels.metadata import AttentionMetadata, build_metadata
from kernels.paged_triton import DeviceTiles, TritonPagedAttention, paged_attention
from kernels.rope import apply_rope
from kernels.rope_triton import rotate_and_store
from kernels.tiles import Tiles, TileSizes, build_tiles

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:divide by zero")]
SIZE = 16


def step(shapes: list[tuple[int, int]], shared: int = 0) -> tuple[AttentionMetadata, int]:
    """A step of sequences of (new tokens, all tokens up to them), and its number of blocks. Sequences that are long
    enough have the same first `shared` blocks."""
    decode, prefill, fresh = [], [], shared
    for new, total in sorted(shapes, key=lambda shape: shape[0] > 1):
        count = -(-total // SIZE)
        common = shared if (total - new) // SIZE >= shared else 0
        blocks = [*range(common), *range(fresh, fresh + count - common)]
        fresh += count - common
        (decode if new == 1 else prefill).append((total - new, total, blocks))
    return build_metadata(decode, prefill, SIZE), fresh


def tensors(metadata, blocks, h, k, d, dtype, device):
    generator = torch.Generator().manual_seed(h + d)
    rows = len(metadata.positions)
    cache = torch.randn(2, 2, blocks, k, SIZE, d, generator=generator).to(device, dtype)
    qk, v = (torch.randn(rows, n, d, generator=generator).to(device, dtype) for n in (h + k, k))
    angles = torch.randn(rows, 1, d // 2, generator=generator).to(device)
    rope = (torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1))
    return cache, qk, v, rope


def plain(cache, metadata, qk, v, rope, h):
    """softmax(q k^T / sqrt(d)) v of each token over its sequence, written out; the cache holds the step's keys."""
    rotated, outputs = apply_rope(qk, rope), []
    group = h // v.shape[1]
    for span in metadata.spans:
        keys, values = (x[span.blocks].transpose(1, 2).flatten(0, 1)[: span.end] for x in cache)
        x = rotated[span.row : span.row + len(span.positions), :h].double()
        scores = torch.einsum("ihd,jhd->hij", x, keys.double().repeat_interleave(group, 1)) / x.shape[2] ** 0.5
        seen = torch.arange(span.end)[None, :] <= torch.tensor(span.positions)[:, None]
        weights = scores.masked_fill(~seen.to(scores.device), float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, values.double().repeat_interleave(group, 1)))
    return torch.cat(outputs)


MIXED = [(1, 1), (1, 2), (1, 31), (1, 129), (1, 1328), (2, 2), (31, 31), (5, 18), (129, 463), (1, 257)]


@pytest.mark.parametrize(
    ("h", "k", "d", "shapes", "shared"),
    [
        (2, 2, 64, MIXED, 0),
        (6, 2, 64, MIXED, 1),
        (8, 2, 128, MIXED, 0),
        (8, 1, 64, [(1, 200 + 3 * i) for i in range(12)] + [(3, 210)], 8),  # a prefix of 128 tokens, 13 readers
        (4, 1, 128, [(1, 300 + 3 * i) for i in range(30)], 16),  # of 256 tokens, 30 readers
        (3, 1, 64, [(1, 4000)], 0),  # a long context, split
        (3, 1, 80, [(1, 40), (7, 90)], 0),
        (6, 2, 8, [(1, 300), (1, 300), (40, 90)], 3),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_as_close_to_fp64_as_the_eager_version(h, k, d, shapes, shared, dtype, device):
    metadata, blocks = step(shapes, shared)
    cache, qk, v, rope = tensors(metadata, blocks, h, k, d, dtype, device)
    eager_cache = cache.clone()
    eager = paged.PagedAttention(eager_cache, metadata, h)(1, qk, v, rope)
    ours = TritonPagedAttention.build(cache, metadata, h)(1, qk, v, rope)
    torch.testing.assert_close(cache, eager_cache, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)
    assert_as_close([ours], [eager], [plain(eager_cache[1], metadata, qk, v, rope, h)])


def test_what_shares_and_what_splits():
    """The cases above hold runs with many readers, and one token's context in several runs."""
    tiles = build_tiles(step([(1, 300 + 3 * i) for i in range(30)], 16)[0], 4, 1)
    assert [tile[2] for tile in tiles.wide] == [256, 256]  # 120 rows in two tiles, all of the shared tokens
    assert len(tiles.narrow) == 30 and tiles.merges
    assert len(build_tiles(step([(1, 4000)])[0], 3, 1).narrow) == 16


@pytest.mark.parametrize(("h", "k", "d"), [(9, 3, 64), (4, 1, 128), (2, 2, 80)])
def test_rotation_and_store(h, k, d, dtype, device):
    metadata, blocks = step([(1, 5), (17, 40)])
    cache, qk, v, rope = tensors(metadata, blocks, h, k, d, dtype, device)
    before = cache[0].clone()
    slots = TritonPagedAttention.build(cache, metadata, h).slots_tk
    result = rotate_and_store(qk, v, rope, cache[0], slots)
    assert_as_close([result], [apply_rope(qk, rope)], [apply_rope(qk.double(), tuple(x.double() for x in rope))])
    rows = slots.flatten()
    assert torch.equal(cache[0, 0].view(-1, d)[rows], result[:, h:].flatten(0, 1))
    assert torch.equal(cache[0, 1].view(-1, d)[rows], v.flatten(0, 1))
    untouched = torch.ones(before[0].numel() // d, dtype=torch.bool)
    untouched[rows.cpu()] = False
    for side in (0, 1):
        assert torch.equal(cache[0, side].view(-1, d)[untouched], before[side].view(-1, d)[untouched])


def test_a_run_of_which_a_token_sees_nothing(device):
    """33 tokens read two runs; the second run begins behind the first 16 tokens."""
    metadata, blocks = step([(33, 33)])
    cache, qk, v, rope = tensors(metadata, blocks, 3, 1, 64, torch.float16, device)
    whole = TritonPagedAttention.build(cache, metadata, 3)(0, qk, v, rope)
    tiles = Tiles(positions=list(range(33)), sequences=[0] * 33, tables=[metadata.prefill[0].blocks])
    tiles.wide = [[0, 0, 16, 0, start, min(start + 64, 99), 0, 0] for start in (0, 64)]
    tiles.wide += [[0, 1, 17, 33, start, min(start + 64, 99), 0, 0] for start in (0, 64)]
    tiles.readers = [*range(33)] * 2
    integers = torch.tensor(tiles.integers(tiles.sizes, 0), dtype=torch.int32, device=device)
    result = TritonPagedAttention(cache, DeviceTiles.view(integers, tiles.sizes, True))(0, qk, v, rope)
    assert result.isfinite().all()
    torch.testing.assert_close(result, whole, atol=1e-3, rtol=1e-3)


def test_padded_tiles_are_the_same_work(device):
    """In a CUDA graph's bucket padding computes nothing, and writes to the spare block alone."""
    metadata, blocks = step([(1, 300), (1, 40), (1, 7), (1, 310)], 4)
    cache, qk, v, rope = tensors(metadata, blocks + 1, 6, 2, 64, torch.float16, device)
    padded_cache, tiles = cache.clone(), build_tiles(metadata, 6, 2)
    exact = TritonPagedAttention.build(cache, metadata, 6)(0, qk, v, rope)
    needed = tiles.sizes
    sizes = TileSizes(8, 8, needed.blocks + 3, needed.narrow + 5, needed.wide + 2, needed.entries + 4)
    integers = torch.tensor(tiles.integers(sizes, spare_block=blocks), dtype=torch.int32, device=device)
    more = [torch.cat((x, x)) for x in (qk, v, *rope)]
    result = TritonPagedAttention(padded_cache, DeviceTiles.view(integers, sizes, True))(
        0, more[0], more[1], (more[2], more[3])
    )
    assert torch.equal(result[:4], exact) and not result[4:].any()
    assert torch.equal(padded_cache[:, :, :-1], cache[:, :, :-1])


def test_offsets_past_2_31_elements(device):
    """The last blocks of a cache so large that their offsets do not fit 32 bits; its other pages are never touched."""
    k, d = 8, 128
    blocks = 2**31 // (k * SIZE * d) + 40
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of GPU memory")
    far = torch.empty(1, 2, blocks, k, SIZE, d, dtype=torch.float16, device=device)
    metadata, count = step([(1, 100), (1, 300), (20, 30)], 2)
    near, qk, v, rope = tensors(metadata, count, 8, k, d, torch.float16, device)
    far[0, :, -count:] = near[0]
    moved = [
        [(s.start, s.end, [block + blocks - count for block in s.blocks]) for s in spans]
        for spans in (metadata.decode, metadata.prefill)
    ]
    result = TritonPagedAttention.build(far, build_metadata(*moved, SIZE), 8)(0, qk, v, rope)
    assert torch.equal(result, TritonPagedAttention.build(near, metadata, 8)(0, qk, v, rope))
    assert torch.equal(far[0, :, -count:], near[0])
    tiles = TritonPagedAttention.build(near, metadata, 8).tiles
    again = paged_attention(apply_rope(qk, rope)[:, :8], near[0], tiles)
    torch.testing.assert_close(result, again, atol=2e-3, rtol=2e-3)  # the rotation's rounding differs
