"""What the tokens of one engine step read of the KV cache: one description for the eager path, Triton and CUDA graphs.

Sequences with a common prefix have the same blocks at the start of their tables, so the tables form a tree: a rubric
that all share, a judge prompt that its N judgments share, what each sequence has sampled for itself. For single tokens
(decode) attention reads each run of the tree once, for all sequences below it, and merges the partial results along
each sequence's path. Several tokens of one sequence (prefill: a prompt, or a part) read that sequence's own table.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

RUN_TOKENS = 256  # maximum of a run: runs computed together are padded to the longest, so long runs are cut
PRODUCT_BLOCKS = 64  # cost of one more batched product, in blocks read

Query = tuple[int, int, list[int]]
"""A sequence's tokens to compute: first position, position after the last, and the sequence's blocks."""


@dataclass(frozen=True)
class QuerySpan:
    """Tokens of one sequence in a step: rows [row, row + end - start), positions [start, end)."""

    row: int
    start: int
    end: int
    blocks: list[int]

    @property
    def positions(self) -> range:
        return range(self.start, self.end)


@dataclass(frozen=True)
class SharedRun:
    """Consecutive blocks of the cache, read once for all sequences that have them."""

    blocks: list[int]
    tokens: int
    """Tokens to read: those of the blocks, up to the last that a sequence has reached."""
    readers: list[int]
    """Indices of the sequences."""
    first_block: int = 0
    """The run's first block in the readers' tables."""


@dataclass(frozen=True)
class AttentionMetadata:
    """A step's tokens and the blocks that they read: spans of one token (decode), and of several, whose rows follow."""

    block_size: int
    decode: list[QuerySpan]
    prefill: list[QuerySpan]

    @property
    def spans(self) -> list[QuerySpan]:
        """All spans, in the order of their rows."""
        return self.decode + self.prefill

    @property
    def positions(self) -> list[int]:
        """The position of each row."""
        return [position for span in self.spans for position in span.positions]

    def shared_runs(self, run_tokens: int = RUN_TOKENS) -> list[SharedRun]:
        """Runs of at most `run_tokens` that read each decode span's tokens once; readers are indices in `decode`.

        A block that two tables contain is full, and so is every block before it.
        """
        runs: list[SharedRun] = []
        tables, size = [span.blocks for span in self.decode], self.block_size
        used, step = [-(-span.end // size) for span in self.decode], max(run_tokens // size, 1)

        def emit(readers: list[int], start: int, stop: int) -> None:
            first = readers[0]
            for i in range(start, stop, step):
                end = min(i + step, stop)
                tokens = min(end * size, self.decode[first].end) - i * size
                runs.append(SharedRun(tables[first][i:end], tokens, readers, i))

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
            # Reading a shared run once must save more block reads than merging the partial results costs.
            if (len(groups) - 1) * (depth - start) >= 2 * len(readers):
                emit(readers, start, depth)
                start = depth
            for group in groups.values():
                walk(group, start, depth)

        if tables:
            walk(list(range(len(tables))), 0, 0)
        return runs


def build_metadata(decode: Iterable[Query], prefill: Iterable[Query], block_size: int) -> AttentionMetadata:
    """The metadata of a step whose rows are the decode tokens, then the prefill tokens, in the given order."""
    spans: tuple[list[QuerySpan], list[QuerySpan]] = ([], [])
    row = 0
    for side, queries in zip(spans, (decode, prefill), strict=True):
        for start, end, blocks in queries:
            side.append(QuerySpan(row, start, end, blocks))
            row += end - start
    return AttentionMetadata(block_size, *spans)


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
