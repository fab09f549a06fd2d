"""What a step of the engine reads of the KV cache, laid out for the kernels of `kernels.paged_triton`.

No tensors here. Single tokens (decoding) read the pieces that `kernels.pieces` cuts: a run of blocks that several
sequences share is one piece with several readers, and the long table of a lone sequence is several pieces, so that few
sequences still keep a GPU busy. Several tokens of one sequence (a prompt, or a part of one) are the readers of one
piece that is their whole table.

A token's reading of a piece is an entry, and gives a partial result; a token with one entry has its result at once. The
queries of an entry are those of the heads that share a key-value head, so a piece with r readers and g such heads has
r g rows, reader by reader. They are cut into tiles, which are the programs' work: narrow ones for a lone reader, wide
ones for many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from kernels.pieces import PIECE_TOKENS, Piece, Span, cut_pieces

NARROW_ROWS, WIDE_ROWS = 16, 64
"""Rows of a tile."""

PROGRAMS = 1024
"""Programs that keep any GPU busy: a lone sequence's pieces are as long as leaves so many."""

TILE_WIDTH = 8
"""Integers of a tile: which row of the table, its first block there, tokens of the piece, the piece's first entry, the
tile's rows in the piece from and to, and two of padding."""


@dataclass(frozen=True)
class Sizes:
    """How much room each part of a plan has: tokens, rows and columns of the table, tiles of both kinds, entries."""

    tokens: int
    tables: int
    blocks: int
    narrow: int
    wide: int
    entries: int

    @property
    def parts(self) -> list[int]:
        """Lengths of the parts in the order in which `Plan.integers` has them."""
        tokens, tables, entries = self.tokens, self.tables * self.blocks, self.entries
        tiles = [TILE_WIDTH * self.narrow, TILE_WIDTH * self.wide]
        return [tokens, tokens, tables, *tiles, entries, tokens + 1, entries]


@dataclass
class Plan:
    """A step's reads."""

    positions: list[int] = field(default_factory=list)
    """Of each token."""
    sequences: list[int] = field(default_factory=list)
    """The row of the table that each token's blocks are in."""
    tables: list[list[int]] = field(default_factory=list)
    narrow: list[list[int]] = field(default_factory=list)
    wide: list[list[int]] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    """The token of each entry, those of a piece together."""

    @property
    def sizes(self) -> Sizes:
        """The room that this plan needs."""
        blocks = max(map(len, self.tables))
        return Sizes(len(self.positions), len(self.tables), blocks, len(self.narrow), len(self.wide), len(self.readers))

    @property
    def merges(self) -> bool:
        """Whether any token has several entries."""
        return len(self.readers) > len(self.positions)

    def integers(self, sizes: Sizes, spare_block: int) -> list[int]:
        """All parts one after another, each padded to its room: positions and sequences [tokens], the table, tiles,
        the entries' tokens, where in the list that follows each token's entries begin [tokens + 1], that list.

        What pads is no work: tiles without rows, tokens without entries, whose keys belong in the spare block.
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


def plan_reads(spans: Sequence[Span], block_size: int, heads: int, kv_heads: int) -> Plan:
    """The plan of a step whose rows `spans` cover in order, single tokens first."""
    plan = Plan()
    for i, span in enumerate(spans):
        plan.positions += range(span.start, span.end)
        plan.sequences += [i] * (span.end - span.start)
        plan.tables.append(span.blocks[: -(-span.end // block_size)])
    single = [span for span in spans if span.end - span.start == 1]
    lengths = [span.end for span in single]
    even = -(-sum(lengths) * kv_heads // PROGRAMS)
    piece_tokens = max(PIECE_TOKENS, -(-even // block_size) * block_size)
    for piece in cut_pieces(plan.tables[: len(single)], lengths, block_size, piece_tokens):
        _add(plan, piece, piece.readers, heads // kv_heads)
    for i, span in enumerate(spans[len(single) :], start=len(single)):
        tokens = list(range(span.row, span.row + span.end - span.start))
        _add(plan, Piece(plan.tables[i], span.end, [i]), tokens, heads // kv_heads)
    return plan


def _add(plan: Plan, piece: Piece, tokens: list[int], group: int) -> None:
    """Add the piece's tiles and an entry for each of the tokens, which read it."""
    rows, entry = len(tokens) * group, len(plan.readers)
    tiles, height = (plan.narrow, NARROW_ROWS) if rows <= NARROW_ROWS else (plan.wide, WIDE_ROWS)
    for start in range(0, rows, height):
        tile = [piece.readers[0], piece.first, piece.tokens, entry, start, min(start + height, rows), 0, 0]
        tiles.append(tile)
    plan.readers += tokens
