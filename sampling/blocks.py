"""The pool of KV-cache blocks: reference counts, and an index of the prefixes that are already in the cache.

Contents form a tree: a block's entry names its parent entry and its tokens. No number of an entry is used again, so an
entry whose parent was evicted is unreachable. Blocks without references keep their content until allocated again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import and_, eq

ROOT = 0


@dataclass
class Entry:  # a block's content in the index
    number: int
    parent: int
    tokens: tuple[int, ...]
    block: int
    filled: int = 0  # tokens whose keys and values are in the cache; a running step computes the others


@dataclass
class Match:  # the longest prefix of some tokens that the cache holds
    blocks: list[int] = field(default_factory=list)  # full blocks, to be shared
    parent: int = ROOT  # entry of the last shared block
    tail: int | None = None  # a block whose first `tail_tokens` tokens match; to be copied, since others write behind
    tail_tokens: int = 0
    pending: bool = False  # whether a running step is computing more of this prefix


class BlockPool:
    """Allocates, shares and frees blocks 0 ... blocks - 1."""

    def __init__(self, blocks: int, block_size: int, share_prefixes: bool = True):
        self.block_size, self.share_prefixes = block_size, share_prefixes
        self.references = [0] * blocks
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self.entries: dict[int, Entry] = {}  # by block
        self.children: dict[tuple[int, int], dict[tuple[int, ...], Entry]] = {}  # by parent and first token
        self.last_number = ROOT

    def allocate(self) -> int:
        """Take the block that has been free the longest and evict its content. The pool must not be empty."""
        block, _ = self.free.popitem(last=False)
        self.evict(block)
        self.references[block] = 1
        return block

    def retain(self, block: int) -> None:
        self.free.pop(block, None)
        self.references[block] += 1

    def release(self, block: int) -> None:
        """One reference less. A block without references is free, and its content can still be matched."""
        self.references[block] -= 1
        if not self.references[block]:
            entry = self.entries.get(block)
            if entry and entry.filled < len(entry.tokens):
                self.evict(block)
            self.free[block] = None

    def register(self, block: int, parent: int, tokens: Sequence[int]) -> int:
        """Index what a block will hold after the running step; returns the entry's number, the next block's parent. If
        another block already holds the same, the index keeps that block, and returns its number."""
        old = self.evict(block)
        self.last_number += 1
        self.entries[block] = entry = Entry(self.last_number, parent, tuple(tokens), block, old.filled if old else 0)
        return self.children.setdefault((parent, tokens[0]), {}).setdefault(entry.tokens, entry).number

    def fill(self, block: int, filled: int) -> None:
        """The first `filled` tokens of a block are in the cache now."""
        if entry := self.entries.get(block):
            entry.filled = min(filled, len(entry.tokens))

    def evict(self, block: int) -> Entry | None:
        """Remove a block's content from the index, and return it."""
        entry = self.entries.pop(block, None)
        siblings = self.children.get(key := (entry.parent, entry.tokens[0]), {}) if entry else {}
        if entry and siblings.get(entry.tokens) is entry:
            del siblings[entry.tokens]
            if not siblings:
                del self.children[key]
        return entry

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest prefix of `tokens` that is in the cache; takes no references."""
        match, position, size, children = Match(), 0, self.block_size, dict[tuple[int, ...], Entry]()
        if not self.share_prefixes:
            return match
        while position < len(tokens):
            children = self.children.get((match.parent, tokens[position]), {})
            entry = children.get(tuple(tokens[position : position + size]))
            if entry is None or entry.filled < size:
                break
            match.blocks.append(entry.block)
            match.parent = entry.number
            position += size
        rest, longest = tokens[position : position + size], 0
        for entry in children.values():
            common = sum(accumulate(map(eq, entry.tokens, rest), and_))  # equal tokens at the beginning
            longest = max(longest, common)
            if min(common, entry.filled) > match.tail_tokens:
                match.tail, match.tail_tokens = entry.block, min(common, entry.filled)
        match.pending |= longest > match.tail_tokens
        return match
