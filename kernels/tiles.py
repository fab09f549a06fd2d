"""A step's attention metadata cut into the tiles that the kernels of `kernels.paged_triton` process.

No tensors here. Decode tokens read the shared runs of `kernels.metadata`, which also cut the long table of a lone
sequence, so that few sequences still keep a GPU busy. A prefill span reads one run: its whole table.

One token's reading of one run is an entry and gives a partial result; a token with a single entry needs no merging. The
queries of an entry are those of the heads that share a key-value head, so a run with r readers and g such heads has r g
rows, reader by reader. The rows are cut into tiles, one for each program: narrow tiles for a lone reader, wide ones for
many.
"""

from dataclasses import dataclass, field
from itertools import accumulate

from kernels.metadata import RUN_TOKENS, AttentionMetadata, SharedRun

NARROW_ROWS, WIDE_ROWS = 16, 64
"""Rows of a tile."""

PROGRAMS = 1024
"""Programs that keep any GPU busy. Runs get longer than RUN_TOKENS where this many programs remain."""

TILE_WIDTH = 8
"""Integers of a tile: row of the block table, the run's first block there, tokens of the run, the run's first entry,
the tile's first row in the run and the row after its last, and two of padding."""


@dataclass(frozen=True)
class TileSizes:
    """Room for each part of `Tiles`: tokens, rows and columns of the block table, tiles of both kinds, entries."""

    tokens: int
    tables: int
    blocks: int
    narrow: int
    wide: int
    entries: int

    @property
    def parts(self) -> list[int]:
        """Lengths of the parts, in the order of `Tiles.integers`."""
        tokens, tables, entries = self.tokens, self.tables * self.blocks, self.entries
        return [tokens, tokens, tables, TILE_WIDTH * self.narrow, TILE_WIDTH * self.wide, entries, tokens + 1, entries]


@dataclass
class Tiles:
    """The kernels' work in one step."""

    positions: list[int]
    """Of each token."""
    sequences: list[int] = field(default_factory=list)
    """Each token's row in the block table."""
    tables: list[list[int]] = field(default_factory=list)
    narrow: list[list[int]] = field(default_factory=list)
    wide: list[list[int]] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    """The token of each entry; the entries of a run are consecutive."""

    @property
    def sizes(self) -> TileSizes:
        """The room that these tiles need."""
        blocks, readers = max(map(len, self.tables)), len(self.readers)
        return TileSizes(len(self.positions), len(self.tables), blocks, len(self.narrow), len(self.wide), readers)

    @property
    def merges(self) -> bool:
        """Whether any token has several entries."""
        return len(self.readers) > len(self.positions)

    def add(self, run: SharedRun, tokens: list[int], group: int) -> None:
        """Add a run's tiles, and an entry for each token that reads it; `group`: query heads a key-value head."""
        rows, entry = len(tokens) * group, len(self.readers)
        tiles, height = (self.narrow, NARROW_ROWS) if rows <= NARROW_ROWS else (self.wide, WIDE_ROWS)
        for start in range(0, rows, height):
            end = min(start + height, rows)
            tiles.append([run.readers[0], run.first_block, run.tokens, entry, start, end, 0, 0])
        self.readers += tokens

    def integers(self, sizes: TileSizes, spare_block: int) -> list[int]:
        """All parts one after another, each padded to its room.

        The parts: positions and sequences [tokens], the block table, narrow and wide tiles, each entry's token, where
        each token's entries begin in the last part [tokens + 1], and the entries by token. Padding is no work: tiles
        without rows, and tokens without entries whose keys go to the spare block.
        """
        counts = [0] * sizes.tokens
        for token in self.readers:
            counts[token] += 1
        by_token = sorted(range(len(self.readers)), key=self.readers.__getitem__)
        spare_tokens = sizes.tokens - len(self.positions)
        result = self.positions + [0] * spare_tokens
        result += self.sequences + [min(len(self.tables), sizes.tables - 1)] * spare_tokens
        for table in self.tables:
            result += table + [spare_block] * (sizes.blocks - len(table))
        result += [spare_block] * (sizes.blocks * (sizes.tables - len(self.tables)))
        for tiles, room in ((self.narrow, sizes.narrow), (self.wide, sizes.wide)):
            for tile in tiles:
                result += tile
            result += [0] * (TILE_WIDTH * (room - len(tiles)))
        spare_entries = [0] * (sizes.entries - len(self.readers))
        return result + self.readers + spare_entries + [0, *accumulate(counts)] + by_token + spare_entries


def build_tiles(metadata: AttentionMetadata, heads: int, kv_heads: int) -> Tiles:
    """The tiles of a step."""
    size, group = metadata.block_size, heads // kv_heads
    tiles = Tiles(metadata.positions)
    for i, span in enumerate(metadata.spans):
        tiles.sequences += [i] * len(span.positions)
        tiles.tables.append(span.blocks[: -(-span.end // size)])
    even = -(-sum(span.end for span in metadata.decode) * kv_heads // PROGRAMS)
    for run in metadata.shared_runs(max(RUN_TOKENS, -(-even // size) * size)):
        tiles.add(run, run.readers, group)
    for i, span in enumerate(metadata.prefill, start=len(metadata.decode)):
        tokens = list(range(span.row, span.row + len(span.positions)))
        tiles.add(SharedRun(tiles.tables[i], span.end, [i]), tokens, group)
    return tiles
