"""Stand-ins for texts that are not there yet, and for the tokenizer of a model that is not there.

The tokenizer cuts a text into pieces of a token's mean number of characters. Texts with a common beginning then have
common ids, which is all that scheduling depends on.
"""

import math
import random
import re
import string
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

from judging.rubric import judge_prompt
from model.chat import ChatFormat, llama3, load_chat
from model.tokenizer import JsonTokenizer

CHARACTERS = 4.5
"""Characters of a token of English text in Llama-3's vocabulary: our estimate."""


class StandInTokenizer(JsonTokenizer):
    """A tokenizer whose tokens have `characters` characters each, on average."""

    def __init__(self, characters: float, vocabulary: int):
        self.characters, self.vocabulary = characters, vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids: equal pieces at equal positions have equal ids."""
        count = math.ceil(len(text) / self.characters)
        borders = [round(i * self.characters) for i in range(count)] + [len(text)]
        data = text.encode("utf-32-le")
        return [zlib.crc32(data[4 * start : 4 * end]) % self.vocabulary for start, end in pairwise(borders)]


def chat_format(model_dir: Path, vocabulary: int) -> ChatFormat:
    """The model's chat format; where the model is not there, Llama-3's over a stand-in tokenizer."""
    if (model_dir / "config.json").is_file():
        return load_chat(model_dir)
    control = {"<|begin_of_text|>": 0, "<|eot_id|>": 1, "<|start_header_id|>": 2, "<|end_header_id|>": 3}
    return llama3(StandInTokenizer(CHARACTERS, vocabulary), control.__getitem__)


def single_tokens(chat: ChatFormat) -> list[str]:
    """Words that are one token each in any context."""
    if isinstance(chat.tokenizer, StandInTokenizer):
        letters, draw = string.ascii_lowercase, random.Random(0)
        return ["".join(draw.choices(letters, k=size)) for size in (4, 5) for _ in range(500)]
    rubric, alone = judge_prompt("", "", "full", "last")[0]["content"], len(chat.tokenizer.encode("the"))
    words = sorted({f" {word}" for word in re.findall("[a-z]{3,}", rubric)})
    return [word for word in words if len(chat.tokenizer.encode("the" + word)) == alone + 1]


class Texts:
    """Draws lengths and texts, both functions of the seed. `spread` is a length's standard deviation over its mean."""

    def __init__(self, words: Sequence[str], spread: float, seed: int):
        self.words, self.spread = words, spread
        self.draw = random.Random(seed)

    def length(self, mean: float, limit: int) -> int:
        """Tokens of a text: log-normal and cut at `limit`, as generation is, with this mean after the cut."""
        if mean >= limit:
            return limit
        deviation = math.sqrt(math.log1p(self.spread**2))
        value = self.draw.lognormvariate(_location(mean, limit, deviation), deviation)
        return max(1, min(round(value), limit))

    def text(self, tokens: int) -> str:
        """A text of about `tokens` tokens."""
        return "".join(self.draw.choices(self.words, k=tokens))

    @property
    def characters(self) -> float:
        """Mean characters of a token."""
        return sum(map(len, self.words)) / len(self.words)

    def texts(self, count: int, mean: float, limit: int) -> list[str]:
        return [self.text(self.length(mean, limit)) for _ in range(count)]


@cache
def _location(mean: float, limit: int, deviation: float) -> float:
    """The mu of a log-normal X with E[min(X, limit)] = mean, by bisection."""
    low, high = math.log(mean) - 5, math.log(limit) + 20
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cut_mean(middle, deviation, limit) < mean else (low, middle)
    return low


def _cut_mean(location: float, deviation: float, limit: int) -> float:
    normal, border = NormalDist(), (math.log(limit) - location) / deviation
    below = math.exp(location + deviation**2 / 2) * normal.cdf(border - deviation)
    return below + limit * (1 - normal.cdf(border))
