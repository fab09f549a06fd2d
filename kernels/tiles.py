"""A step's attention metadata cut into the tiles that the kernels of `kernels.paged_triton` process.

Decode tokens read the shared runs of `kernels.metadata`, which also cut the long table of a lone sequence, so that few
sequences still keep a GPU busy. A prefill span reads one run: its whole table.

One token's reading of one run is an entry and gives a partial result; a token with a single entry needs no merging. A
run with r readers has r g rows, where g query heads share a key-value head, reader by reader. The rows are cut into
tiles, one for each program: narrow tiles for a lone reader, wide ones for many.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, chain

from kernels.metadata import RUN_TOKENS, AttentionMetadata, SharedRun

NARROW_ROWS, WIDE_ROWS = 16, 64
# Programs that keep any GPU busy. Runs get longer than RUN_TOKENS where this many programs remain.
PROGRAMS = 1024
# Integers of a tile: row of the block table, the run's first block there, tokens of the run, the run's first entry, the
# tile's first row in the run and the row after its last, and two of padding.
TILE_WIDTH = 8


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
    """The kernels' work in one step: each token's position and row in the block table, the table, and the tiles."""

    positions: list[int]
    sequences: list[int]
    tables: list[list[int]]
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

    def integers(self, sizes: TileSizes, spare_block: int) -> list[int]:
        """All parts one after another, each padded to its room. Padding is no work: tiles without rows, and tokens
        without entries whose keys go to the spare block."""
        table = chain.from_iterable(blocks + [spare_block] * (sizes.blocks - len(blocks)) for blocks in self.tables)
        counts = Counter(self.readers)
        parts = [
            (self.positions, 0),
            (self.sequences, min(len(self.tables), sizes.tables - 1)),
            (table, spare_block),
            (chain.from_iterable(self.narrow), 0),
            (chain.from_iterable(self.wide), 0),
            (self.readers, 0),
            # where each token's entries begin in the last part, and the entries by token
            (accumulate((counts[token] for token in range(sizes.tokens)), initial=0), 0),
            (sorted(range(len(self.readers)), key=self.readers.__getitem__), 0),
        ]
        result: list[int] = []
        for (part, padding), end in zip(parts, accumulate(sizes.parts), strict=True):
            result += part
            result += [padding] * (end - len(result))
        return result


def build_tiles(metadata: AttentionMetadata, heads: int, kv_heads: int) -> Tiles:
    """The tiles of a step."""
    size, group, spans = metadata.block_size, heads // kv_heads, metadata.spans
    sequences = [i for i, span in enumerate(spans) for _ in span.positions]
    tiles = Tiles(metadata.positions, sequences, [span.blocks[: -(-span.end // size)] for span in spans])
    even = -(-sum(span.end for span in metadata.decode) * kv_heads // PROGRAMS)
    reads = [(run, run.readers) for run in metadata.shared_runs(max(RUN_TOKENS, -(-even // size) * size))]
    for i, span in enumerate(metadata.prefill, start=len(metadata.decode)):
        reads.append((SharedRun(tiles.tables[i], span.end, [i]), [*range(span.row, span.row + len(span.positions))]))
    for run, tokens in reads:
        rows, entry = len(tokens) * group, len(tiles.readers)
        side, height = (tiles.narrow, NARROW_ROWS) if rows <= NARROW_ROWS else (tiles.wide, WIDE_ROWS)
        for start in range(0, rows, height):
            side.append([run.readers[0], run.first_block, run.tokens, entry, start, min(start + height, rows), 0, 0])
        tiles.readers += tokens
    return tiles
