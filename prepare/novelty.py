"""Is a text new? ROUGE-L against every text so far, word sequences shared with a set of texts, repetition within one.

ROUGE-L (Lin, 2004) is the F-measure of the longest common subsequence of two texts' words: 2 LCS / (m + n). Against
20,000 texts it is exact and still quick, in two steps. The words that two texts have in common, in whatever order,
bound their LCS from above; an index from each word to the texts that hold it gives that bound for all texts at once.
Only where the bound reaches the threshold is the LCS computed, by bit-parallel arithmetic on Python's integers.
"""

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

SHORTEST = 4
"""A text of fewer words than a sequence has is a sequence by itself, but one of fewer than this says nothing."""

_ASCII_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """A text's words in lower case: runs of letters, their marks and digits, whatever the script.

    On ASCII these are the tokens of the package rouge-score without its stemmer; it takes other letters for spaces, so
    that a text in another script would have none. Where a script sets no spaces, a whole clause is a word.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFC", text.lower())
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text).split()


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of its table at a time (Crochemore et al., 2001).

    Bit i of `row` is 0 where a[:i + 1] has a longer LCS with the words of `b` so far than a[:i] has.
    """
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        places[word] |= 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        if word in places:
            matched = row & places[word]
            row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


def repetition(text: str) -> Fraction:
    """The share of a text's three-word sequences that have come before in it."""
    found = words(text)
    triples = list(zip(found, found[1:], found[2:], strict=False))
    return Fraction(len(triples) - len(set(triples)), len(triples)) if triples else Fraction(0)


class Novelty:
    """Texts, and whether another one resembles any of them: ROUGE-L of at least `threshold`, a decimal in [0, 1]."""

    def __init__(self, threshold: float, texts: Iterable[str] = ()):
        self._threshold = Fraction(str(threshold))
        self._texts: list[list[str]] = []
        self._lengths = array("q")
        self._holders: defaultdict[tuple[str, int], array[int]] = defaultdict(lambda: array("q"))
        """Of the k-th occurrence of a word: the numbers of the texts that have one."""
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Have later texts compared with this one too."""
        found = words(text)
        for key in _occurrences(found):
            self._holders[key].append(len(self._texts))
        self._texts.append(found)
        self._lengths.append(len(found))

    def similar(self, text: str) -> bool:
        """Whether this text resembles one of those added. Two texts without words are alike."""
        found = words(text)
        lengths = np.frombuffer(self._lengths, dtype=np.int64) + len(found)
        shared = 2 * self._shared(found)
        # Floats choose whom to look at, and may let a few too many in; integers decide. The likeliest come first.
        near = np.flatnonzero(shared >= float(self._threshold) * lengths - 1e-6)
        likeliest = near[np.argsort(-shared[near] / np.maximum(lengths[near], 1))].tolist()
        return any(self._resemble(found, self._texts[number]) for number in likeliest)

    def _resemble(self, a: list[str], b: list[str]) -> bool:
        return 2 * lcs_length(a, b) >= self._threshold * (len(a) + len(b))

    def _shared(self, found: list[str]) -> np.ndarray:
        """[texts] how many words each text has in common with these, in whatever order."""
        holders = [self._holders[key] for key in _occurrences(found) if key in self._holders]
        numbers = [np.frombuffer(texts, dtype=np.int64) for texts in holders]
        return np.bincount(np.concatenate(numbers) if numbers else [], minlength=len(self._texts))


class Sequences:
    """The sequences of `n` words in a set of texts, and whether another text has one of them.

    A text of fewer words, at least SHORTEST, is itself a sequence.
    """

    def __init__(self, texts: Iterable[str], n: int):
        self._known: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
        """By their length."""
        for found in map(words, texts):
            if len(found) >= min(n, SHORTEST):
                size = min(n, len(found))
                self._known[size].update(_runs(found, size))

    def shares(self, text: str) -> bool:
        """Whether `text` has one of the sequences."""
        found = words(text)
        return any(run in known for size, known in self._known.items() for run in _runs(found, size))


def _occurrences(found: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Each word and how many of it came before, so that no two are equal."""
    seen: Counter[str] = Counter()
    for word in found:
        yield word, seen[word]
        seen[word] += 1


def _runs(found: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(found[i : i + size]) for i in range(len(found) - size + 1))
