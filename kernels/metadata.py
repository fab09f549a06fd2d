"""What the tokens of one engine step read of the KV cache: one description for the eager path, Triton and CUDA graphs.

Sequences with a common prefix have the same blocks at the start of their tables: a rubric that all share, a judge
prompt that its N judgments share. For single tokens (decode) attention reads each such run once and merges the partial
results of each sequence; several tokens of a sequence (prefill) read its own table. The eager path reads runs of
similar size together (`batches`). For Triton a run is cut into tiles (`Tiles`): r readers, with g query heads a
key-value head, have r g rows. One token's reading of one run is an entry and gives a partial result.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, chain

RUN_TOKENS = 256  # maximum of a run: runs computed together are padded to the longest, so long runs are cut
PRODUCT_BLOCKS = 64  # cost of one more batched product, in blocks read
PROGRAMS = 1024  # programs that keep any GPU busy: runs get longer than RUN_TOKENS where this many remain
NARROW_ROWS, WIDE_ROWS = 16, 64
# Integers of a tile: row of the block table, the run's first block there, tokens and first entry of the run, the tile's
# first row in the run and the row after its last, and two of padding.
TILE_WIDTH = 8

Query = tuple[int, int, list[int]]  # tokens to compute: first position, position after the last, the sequence's blocks


@dataclass(frozen=True)
class QuerySpan:  # tokens of one sequence in a step: rows [row, row + end - start), positions [start, end)
    row: int
    start: int
    end: int
    blocks: list[int]

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


@dataclass(frozen=True)
class SharedRun:  # consecutive blocks of the cache, read once for all sequences that have them
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

    def shared_runs(self, run_tokens: int = RUN_TOKENS) -> list[SharedRun]:
        """Runs of at most `run_tokens` that read each decode span's tokens once; readers are indices in `decode`."""
        runs, tables, size = list[SharedRun](), [span.blocks for span in self.decode], self.block_size
        used, step = [-(-span.end // size) for span in self.decode], max(run_tokens // size, 1)

        def emit(readers: list[int], start: int, stop: int) -> None:
            for i in range(start, stop, step):
                end, first = min(i + step, stop), self.decode[readers[0]]
                runs.append(SharedRun(first.blocks[i:end], min(end * size, first.end) - i * size, readers, i))

        def walk(readers: list[int], start: int, depth: int) -> None:
            """Sequences with equal blocks before `depth`; the blocks before `start` are in runs already."""
            first = readers[0]
            if len(readers) == 1:
                return emit(readers, start, used[first])
            while all(depth < used[i] and tables[i][depth] == tables[first][depth] for i in readers):
                depth += 1
            groups = defaultdict(list)
            for i in readers:  # by the block at `depth`; a sequence that ends there is a group of its own
                groups[tables[i][depth] if depth < used[i] else -1 - i].append(i)
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
    tables: int  # rows of the block table
    blocks: int  # columns
    narrow: int
    wide: int
    entries: int

    @property
    def parts(self) -> list[int]:
        """Lengths of the parts, in the order of `Tiles.integers`."""
        tokens, tables, entries = self.tokens, self.tables * self.blocks, self.entries
        return [tokens, tokens, tables, TILE_WIDTH * self.narrow, TILE_WIDTH * self.wide, entries, tokens + 1, entries]


@dataclass
class Tiles:  # a step's work: each token's position and row in the block table, the table, and the tiles
    positions: list[int]
    sequences: list[int]
    tables: list[list[int]]
    narrow: list[list[int]] = field(default_factory=list)
    wide: list[list[int]] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)  # the token of each entry; a run's entries are consecutive

    @property
    def sizes(self) -> TileSizes:
        blocks, entries = max(map(len, self.tables)), len(self.readers)
        return TileSizes(len(self.positions), len(self.tables), blocks, len(self.narrow), len(self.wide), entries)

    def integers(self, sizes: TileSizes, spare_block: int) -> list[int]:
        """All parts, each padded to its room with no work: tiles without rows, tokens without entries whose keys go to
        the spare block."""
        counts = Counter(self.readers)
        parts = [
            (self.positions, 0),
            (self.sequences, min(len(self.tables), sizes.tables - 1)),
            (chain(*(blocks + [spare_block] * (sizes.blocks - len(blocks)) for blocks in self.tables)), spare_block),
            (chain(*self.narrow), 0),
            (chain(*self.wide), 0),
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
