"""Whether a text is new: ROUGE-L against all texts so far, word sequences shared with given texts, and repetition.

ROUGE-L (Lin, 2004) is the F-measure of the longest common subsequence (LCS) of two texts' words: 2 LCS / (m + n). It is
computed only where the number of words in common, which bounds the LCS, reaches the threshold.
"""

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

# Thai, Lao, Burmese, Khmer, kana and Han, which are written without spaces: each letter, with its marks, is a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
UNSPACED += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
SHORTEST = 4  # a text shorter than a sequence counts as one itself if it has at least so many words


def words(text: str) -> list[str]:
    """Runs of letters, their marks and digits, in lower case; on ASCII as in the package rouge-score, unstemmed."""
    text = unicodedata.normalize("NFC", text.lower())
    return split("".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text))


def split(text: str) -> list[str]:
    """A text at its white space, and each letter of the scripts without any."""
    text = re.sub(f"[{UNSPACED}]", lambda letter: " " * letter[0].isalnum() + letter[0], text)
    return re.sub(f"(?<=[{UNSPACED}])(?=[^{UNSPACED}])", " ", text).split()


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, computed a table row at a time (Crochemore et al., 2001)."""
    # Bit i of `row` is 0 where a[:i + 1] has a longer LCS with the words of `b` so far than a[:i] has.
    positions: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        positions[word] |= 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        if word in positions:
            matched = row & positions[word]
            row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


def repetition(text: str) -> Fraction:
    """The share of a text's three-word sequences that occur earlier in it."""
    tokens = words(text)
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return Fraction(len(triples) - len(set(triples)), len(triples)) if triples else Fraction(0)


class Novelty:
    """Texts against which a new text is compared; it resembles one with a ROUGE-L of at least `threshold` in [0, 1]."""

    def __init__(self, threshold: float, texts: Iterable[str] = ()):
        self._threshold = Fraction(str(threshold))
        self._texts: list[list[str]] = []
        self._lengths = array("q")
        # For the k-th occurrence of a word: the numbers of the texts that have one.
        self._holders: defaultdict[tuple[str, int], array[int]] = defaultdict(lambda: array("q"))
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Compare later texts with this one too."""
        tokens = words(text)
        for key in _occurrences(tokens):
            self._holders[key].append(len(self._texts))
        self._texts.append(tokens)
        self._lengths.append(len(tokens))

    def similar(self, text: str) -> bool:
        """Whether this text resembles one of those added. Two texts without words resemble each other."""
        tokens = words(text)
        lengths = np.frombuffer(self._lengths, dtype=np.int64) + len(tokens)
        holders = [np.frombuffer(self._holders[key], np.int64) for key in _occurrences(tokens) if key in self._holders]
        numbers = np.concatenate([np.empty(0, np.int64), *holders])
        shared = 2 * np.bincount(numbers, minlength=len(self._texts))  # words in common, in any order
        # Floats select the candidates, perhaps a few too many; integers decide. The likeliest come first.
        near = np.flatnonzero(shared >= float(self._threshold) * lengths - 1e-6)
        likeliest = near[np.argsort(-shared[near] / np.maximum(lengths[near], 1))].tolist()
        candidates = (self._texts[number] for number in likeliest)
        return any(2 * lcs_length(tokens, b) >= self._threshold * (len(tokens) + len(b)) for b in candidates)


class Sequences:
    """The sequences of `n` words in a set of texts; a text of fewer words, at least SHORTEST, is itself a sequence."""

    def __init__(self, texts: Iterable[str], n: int):
        self._by_size: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
        for tokens in map(words, texts):
            if (size := min(n, len(tokens))) >= min(n, SHORTEST):
                self._by_size[size] |= _runs(tokens, size)

    def shares(self, text: str) -> bool:
        """Whether `text` has one of the sequences."""
        tokens = words(text)
        return any(_runs(tokens, size) & sequences for size, sequences in self._by_size.items())


def _occurrences(tokens: list[str]) -> list[tuple[str, int]]:
    """Each word with the number of its earlier occurrences, so that no two are equal."""
    return [(word, k) for word, count in Counter(tokens).items() for k in range(count)]


def _runs(tokens: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
