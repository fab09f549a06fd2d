"""Which decoding sequences read which runs of KV-cache blocks together.

No tensors here. Sequences that share a prefix have the same blocks at the start of their tables, so the tables form a
tree: a rubric that all share, a judge prompt that its N judgments share, what each has sampled for itself. Attention
reads each run of the tree once, for all the sequences under it, and merges what a sequence got along its path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PIECE_TOKENS = 256
"""Tokens of a piece at most: pieces computed together are padded to the longest, so long runs are cut."""

PRODUCT_BLOCKS = 64
"""What a further product costs, in blocks read."""


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence in this step: rows [row, row + end - start), positions [start, end)."""

    row: int
    start: int
    end: int
    blocks: list[int]

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


@dataclass(frozen=True)
class Piece:
    """Consecutive blocks of the cache, read at once for all sequences that share them."""

    blocks: list[int]
    tokens: int
    """Tokens to be read: all of the blocks' but, in a sequence's last block, those it has not reached."""
    readers: list[int]
    """Indices of the sequences."""
    first: int = 0
    """Where its first block stands in the readers' tables."""


def cut_pieces(
    tables: Sequence[Sequence[int]], lengths: Sequence[int], block_size: int, piece_tokens: int = PIECE_TOKENS
) -> list[Piece]:
    """Pieces such that sequence i reads its `lengths[i]` tokens, in the blocks of `tables[i]`, exactly once.

    A block that two tables name is full, and so is every block before it. No piece has more than `piece_tokens`.
    """
    pieces: list[Piece] = []
    used = [-(-length // block_size) for length in lengths]
    size = max(piece_tokens // block_size, 1)

    def emit(readers: list[int], start: int, stop: int) -> None:
        table = tables[readers[0]]
        for i in range(start, stop, size):
            end = min(i + size, stop)
            tokens = min(end * block_size, lengths[readers[0]]) - i * block_size
            pieces.append(Piece(list(table[i:end]), tokens, readers, i))

    def walk(readers: list[int], start: int, depth: int) -> None:
        """Sequences that agree in the blocks before `depth`, of which those before `start` are in pieces already."""
        first = readers[0]
        if len(readers) == 1:
            return emit(readers, start, used[first])
        while all(depth < used[i] and tables[i][depth] == tables[first][depth] for i in readers):
            depth += 1
        groups = _by_block(readers, tables, used, depth)
        if pays(len(readers), len(groups), depth - start):
            emit(readers, start, depth)
            start = depth
        for group in groups:
            walk(group, start, depth)

    if tables:
        walk(list(range(len(tables))), 0, 0)
    return pieces


def pays(readers: int, groups: int, blocks: int) -> bool:
    """Whether a run is worth a piece of its own: what is saved by not reading it with each of the groups into which
    its readers part behind it, against another partial result to merge for every reader."""
    return (groups - 1) * blocks >= 2 * readers


def alike(pieces: list[Piece]) -> list[list[Piece]]:
    """The pieces in groups for one product each, in which they are padded to the most blocks and the most readers."""
    by_readers: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_readers.setdefault(len(piece.readers).bit_length(), []).append(piece)
    return [part for group in by_readers.values() for part in _parted(sorted(group, key=lambda p: len(p.blocks)))]


def _parted(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces, the shortest first, in groups that pad little."""
    longest = len(pieces[-1].blocks)
    saved, cut = max((i * (longest - len(pieces[i - 1].blocks)), i) for i in range(1, len(pieces) + 1))
    if saved < PRODUCT_BLOCKS:
        return [pieces]
    return _parted(pieces[:cut]) + _parted(pieces[cut:])


def _by_block(readers: list[int], tables: Sequence[Sequence[int]], used: Sequence[int], depth: int) -> list[list[int]]:
    """The sequences by their block at `depth`; one that ends there stands alone."""
    groups: dict[int, list[int]] = {}
    for i in readers:
        groups.setdefault(tables[i][depth] if depth < used[i] else -1 - i, []).append(i)
    return list(groups.values())
