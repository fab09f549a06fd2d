"""What the tokens of one engine step read of the KV cache: one description for the eager path, Triton and CUDA graphs.

Sequences with a common prefix have the same blocks at the start of their tables: a rubric that all share, a judge
prompt that its N judgments share. For single tokens (decode) attention reads each such run once and merges the partial
results of each sequence; several tokens of a sequence (prefill) read its own table. The eager path reads runs of
similar size together (`batches`). For Triton a run is cut into tiles (`Tiles`): r readers, with g query heads a
key-value head, have r g rows. One token's reading of one run is an entry and gives a partial result.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

RUN_TOKENS = 256  # maximum of a run: runs computed together are padded to the longest, so long runs are cut
PRODUCT_BLOCKS = 64  # cost of one more batched product, in blocks read
PROGRAMS = 1024  # programs that keep any GPU busy: runs get longer than RUN_TOKENS where this many remain
NARROW_ROWS, WIDE_ROWS = 16, 64
# Integers of a tile: place of the run's blocks in the list, the run's first block in the readers' tables, tokens and
# first entry of the run, the tile's first row in the run and the row after its last, and two of padding.
TILE_WIDTH = 8

Query = tuple[int, int, list[int]]  # tokens to compute: first position, position after the last, the sequence's blocks


class QuerySpan(NamedTuple):  # tokens of one sequence in a step: rows [row, row + end - start), positions [start, end)
    row: int
    start: int
    end: int
    blocks: list[int]

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


class SharedRun(NamedTuple):  # consecutive blocks of the cache, read once for all sequences that have them
    blocks: list[int]
    tokens: int  # in the blocks, up to the last that a sequence has reached
    readers: list[int]  # indices of the sequences
    first_block: int = 0  # the run's first block in the readers' tables


@dataclass(frozen=True)
class AttentionMetadata:  # a step's tokens and blocks: spans of one token (decode), and of several, whose rows follow
    block_size: int
    decode: list[QuerySpan]
    prefill: list[QuerySpan]

    @property
    def spans(self) -> list[QuerySpan]:
        return self.decode + self.prefill

    @property
    def positions(self) -> list[int]:
        return [position for span in self.spans for position in span.positions]

    def shared_runs(self, run_tokens: int = RUN_TOKENS, ahead: int = 0) -> list[SharedRun]:
        """Runs of at most `run_tokens` that read each decode span's tokens once, and those of the `ahead` passes that
        follow; readers are indices in `decode`."""
        runs, size, ends = list[SharedRun](), self.block_size, [span.end + ahead for span in self.decode]
        step = max(run_tokens // size, 1)
        tables = [span.blocks[: -(-end // size)] for span, end in zip(self.decode, ends, strict=True)]

        def emit(readers: list[int], start: int, stop: int) -> None:
            for i in range(start, stop, step):
                end, first = min(i + step, stop), readers[0]
                runs.append(SharedRun(tables[first][i:end], min(end * size, ends[first]) - i * size, readers, i))

        def walk(readers: list[int], start: int, depth: int) -> None:
            """Sequences with equal blocks before `depth`; the blocks before `start` are in runs already."""
            if len(readers) == 1:
                return emit(readers, start, len(tables[readers[0]]))
            # In the order of lists, what the first and the last have in common all between them have, too.
            low, high = (extreme(map(tables.__getitem__, readers)) for extreme in (min, max))
            depth = next((i for i in range(depth, len(low)) if low[i] != high[i]), len(low))
            groups = defaultdict(list)
            for i in readers:  # by the block at `depth`; a sequence that ends there is a group of its own
                groups[tables[i][depth] if depth < len(tables[i]) else -1 - i].append(i)
            # Reading a shared run once must save more block reads than merging costs.
            if (len(groups) - 1) * (depth - start) >= 2 * len(readers):
                emit(readers, start, depth)
                start = depth
            for group in groups.values():
                walk(group, start, depth)

        if tables:
            walk(list(range(len(tables))), 0, 0)
        return runs


def build_metadata(decode: Iterable[Query], prefill: Iterable[Query], block_size: int) -> AttentionMetadata:
    """The metadata of a step whose rows are the decode tokens, then the prefill tokens."""
    metadata, row = AttentionMetadata(block_size, [], []), 0
    for side, queries in ((metadata.decode, decode), (metadata.prefill, prefill)):
        for start, end, blocks in queries:
            side.append(QuerySpan(row, start, end, blocks))
            row += end - start
    return metadata


def batches(runs: list[SharedRun]) -> list[list[SharedRun]]:
    """The runs in groups for one batched product each, padded to the group's most blocks and most readers."""
    by_readers = defaultdict(list)
    for run in runs:
        by_readers[len(run.readers).bit_length()].append(run)
    return [part for group in by_readers.values() for part in _split(sorted(group, key=lambda run: len(run.blocks)))]


def _split(runs: list[SharedRun]) -> list[list[SharedRun]]:
    """Runs in order of length, cut wherever the padding saved is worth another product."""
    longest = len(runs[-1].blocks)
    saved, cut = max((i * (longest - len(runs[i - 1].blocks)), i) for i in range(1, len(runs) + 1))
    return [runs] if saved < PRODUCT_BLOCKS else _split(runs[:cut]) + _split(runs[cut:])


@dataclass(frozen=True)
class TileSizes:  # room for each part of `Tiles`
    tokens: int
    blocks: int
    narrow: int
    wide: int
    entries: int

    @property
    def parts(self) -> list[int]:
        """Lengths of the parts, in the order of `Tiles.integers`."""
        tokens, entries, tiles = self.tokens, self.entries, (TILE_WIDTH * self.narrow, TILE_WIDTH * self.wide)
        return [tokens, tokens, self.blocks, *tiles, entries, tokens + 1, entries]


@dataclass
class Tiles:  # a step's work: the tokens, the blocks of all runs, one run after another, and the tiles
    positions: list[int]
    tables: list[int]  # where in `blocks` each token's table would begin, of which the end, at least, is there
    blocks: list[int] = field(default_factory=list)
    narrow: list[list[int]] = field(default_factory=list)
    wide: list[list[int]] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)  # the token of each entry; a run's entries are consecutive

    @property
    def sizes(self) -> TileSizes:
        """The room that is needed, with a spare block."""
        narrow, wide, entries = len(self.narrow), len(self.wide), len(self.readers)
        return TileSizes(len(self.positions), len(self.blocks) + 1, narrow, wide, entries)

    def integers(self, sizes: TileSizes, spare_block: int) -> np.ndarray:
        """All parts, int32, each padded to its room with no work: tiles without rows, tokens without entries whose keys
        go to the spare block."""
        readers = np.array(self.readers)
        parts: list[tuple[Any, int]] = [
            (self.positions, 0),
            (self.tables, sizes.blocks - 1),
            (self.blocks, spare_block),
            (np.array(self.narrow).ravel(), 0),
            (np.array(self.wide).ravel(), 0),
            (readers, 0),
            # where each token's entries begin in the last part, and the entries by token
            (np.bincount(readers + 1, minlength=sizes.tokens + 1).cumsum(), 0),
            (readers.argsort(kind="stable"), 0),
        ]
        result, start = np.empty(sum(sizes.parts), np.int32), 0
        for (part, padding), room in zip(parts, sizes.parts, strict=True):
            result[start : start + len(part)] = part
            result[start + len(part) : start + room] = padding
            start += room
        return result


def build_tiles(metadata: AttentionMetadata, heads: int, kv_heads: int, ahead: int = 0) -> Tiles:
    """The tiles of a step, with room for the tokens of the `ahead` passes that follow."""
    size, group, positions = metadata.block_size, heads // kv_heads, metadata.positions
    tiles = Tiles(positions, [0] * len(positions))
    even = -(-sum(span.end for span in metadata.decode) * kv_heads // PROGRAMS)
    reads = [(run, run.readers) for run in metadata.shared_runs(max(RUN_TOKENS, -(-even // size) * size), ahead)]
    for span in metadata.prefill:
        run = SharedRun(span.blocks[: -(-span.end // size)], span.end, [])
        reads.append((run, [*range(span.row, span.row + len(span.positions))]))
    for run, tokens in reads:  # a token's last run is the one that ends its table
        rows, entry, place = len(tokens) * group, len(tiles.readers), len(tiles.blocks)
        side, height = (tiles.narrow, NARROW_ROWS) if rows <= NARROW_ROWS else (tiles.wide, WIDE_ROWS)
        for start in range(0, rows, height):
            side.append([place, run.first_block, run.tokens, entry, start, min(start + height, rows), 0, 0])
        for token in tokens:
            tiles.tables[token] = place - run.first_block
        tiles.readers += tokens
        tiles.blocks += run.blocks
    return tiles
