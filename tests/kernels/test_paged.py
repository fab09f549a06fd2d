"""Attention over the paged cache: the runs that block tables are cut into, and their attention."""

import os
from itertools import count, islice
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.metadata import batches, build_metadata, build_tiles
from kernels.paged import PagedAttention, empty_cache

HEADS = [(1, 1, 8), (3, 1, 8), (6, 2, 16), (9, 3, 64)]  # query heads, key-value heads, head_dim


@st.composite
def block_tables(draw) -> tuple[list[list[int]], list[int], int]:
    """Tables that share full blocks at their beginnings, as those of a scheduler do; their lengths; the block size."""
    size = draw(st.sampled_from([1, 4, 16]))
    tables, lengths, fresh = [], [], 0
    for _ in range(draw(st.integers(1, 14))):
        shared = []
        if tables and draw(st.booleans()):
            i = draw(st.integers(0, len(tables) - 1))
            shared = tables[i][: draw(st.integers(0, lengths[i] // size))]
        own = draw(st.integers(1, 40))  # tokens behind the shared blocks
        blocks = -(-own // size) + draw(st.integers(0, 2))  # with blocks that are reserved and not reached
        tables.append([*shared, *range(fresh, fresh + blocks)])
        lengths.append(len(shared) * size + own)
        fresh += blocks
    return tables, lengths, size


def decoding(tables, lengths, size):
    return build_metadata([(end - 1, end, table) for table, end in zip(tables, lengths, strict=True)], [], size)


@settings(max_examples=50)
@given(block_tables())
def test_every_sequence_reads_each_of_its_tokens_once(case):
    tables, lengths, size = case
    runs = decoding(*case).shared_runs()
    for i, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        own = [run for run in runs if i in run.readers]
        assert [block for run in own for block in run.blocks] == table[: -(-length // size)]
        assert sum(run.tokens for run in own) == length
        assert all(run.tokens == len(run.blocks) * size for run in own[:-1])
    grouped = [run for batch in batches(runs) for run in batch]
    assert sorted(map(id, grouped)) == sorted(map(id, runs))


def test_what_is_shared_is_read_once_at_every_level():
    """128 judgments: a rubric of 8 blocks for all; 8 questions of 6 blocks; 4 responses of 5 blocks to each question;
    4 judgments of each. Without sharing the reads would be 128 x (8 + 6 + 5 + 2) blocks."""
    tables, number = [], count(1000)
    for _ in range(8):
        question = [*islice(number, 6)]
        for response in ([*islice(number, 5)] for _ in range(4)):
            tables += [[*range(8), *question, *response, *islice(number, 2)] for _ in range(4)]
    runs = decoding(tables, [len(table) * 16 for table in tables], 16).shared_runs()
    assert sum(len(run.blocks) for run in runs) <= 8 * (8 + 6) + 32 * 5 + 128 * 2


@settings(max_examples=50)
@given(block_tables(), st.integers(0, 7))
def test_tiles_have_the_blocks_in_use_and_each_tokens_in_all_passes(case, ahead):
    """Where all tables end with blocks for as many passes, and with another."""
    tables, lengths, size = case
    tables = [[*table, *range(1000 * i, 1000 * i + 9)] for i, table in enumerate(tables, start=1)]
    tiles = build_tiles(decoding(tables, lengths, size), 4, 1, ahead)
    used = [table[: -(-(length + ahead) // size)] for table, length in zip(tables, lengths, strict=True)]
    assert len(tiles.blocks) <= sum(map(len, used)) and {*tiles.blocks} == {block for table in used for block in table}
    for place, table, length in zip(tiles.tables, tables, lengths, strict=True):
        for position in range(length - 1, length + ahead):
            assert tiles.blocks[place + position // size] == table[position // size]


@settings(max_examples=25)
@given(block_tables(), st.sampled_from(HEADS), st.integers(1, 9), st.booleans())
def test_attention_equals_the_formula(case, heads, prompt, low):
    """Decoding sequences that share blocks, and one with `prompt` new tokens behind those of the first."""
    (tables, lengths, size), (h, k, d) = case, heads
    fresh = max(map(max, tables)) + 1
    generator = torch.Generator().manual_seed(fresh)
    shared = tables[0][: lengths[0] // size]
    decode = [(length - 1, length, table) for length, table in zip(lengths, tables, strict=True)]
    last = (len(shared) * size, len(shared) * size + prompt, [*shared, *range(fresh, fresh + -(-prompt // size))])
    metadata = build_metadata([*decode, last], [], size) if prompt == 1 else build_metadata(decode, [last], size)
    dtype, rows = torch.bfloat16 if low else torch.float32, len(tables) + prompt
    cache = torch.randn(1, 2, fresh + 9, k, size, d, generator=generator).to(dtype)
    qk, v = (torch.randn(rows, n, d, generator=generator).to(dtype) for n in (h + k, k))
    still = (torch.ones(rows, 1, d), torch.zeros(rows, 1, d))  # no rotation
    attended = PagedAttention(cache, metadata, h)(0, qk, v, still)
    keys, values = (x.transpose(1, 2).double() for x in cache[0])  # [blocks, s, k, d]
    tolerance = {"atol": 4e-2, "rtol": 2e-2} if low else {"atol": 2e-6, "rtol": 1e-5}
    for span in metadata.spans:
        for row, position in enumerate(span.positions, start=span.row):
            seen = (x[span.blocks].flatten(0, 1)[: position + 1] for x in (keys, values))
            k_shd, v_shd = (x.repeat_interleave(h // k, 1) for x in seen)
            weights = (torch.einsum("hd,shd->hs", qk[row, :h].double(), k_shd) / d**0.5).softmax(-1)
            torch.testing.assert_close(attended[row].double(), torch.einsum("hs,shd->hd", weights, v_shd), **tolerance)


def test_a_cache_is_zeros_and_takes_memory_when_it_is_written():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = empty_cache((4, 2, 40_000, 3, 16, 64), torch.bfloat16, torch.device("cpu"))
    assert resident() - before < cache.nbytes / 10 and cache.data_ptr() % 64 == 0
    assert not cache[::3, :, ::1000].any()
