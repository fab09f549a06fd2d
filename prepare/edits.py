"""Edits that make a text follow a rule of `judging.rules`, or break it, and change little else."""

import json
import random
import re
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from judging.rules import Rule, obeys, word_count
from prepare.flaws import sentences

Edit = Callable[[str, Any, random.Random], str]  # of (text, the rule's value, draw)


def edited(rules: Sequence[Rule], text: str, more: str, obey: bool, draw: random.Random) -> str | None:
    """A response made of `text` that follows all rules, or breaks one; None where the edits don't reach that.

    `more` goes on from the text, for rules that ask for a length.
    """
    broken = None if obey else draw.choice(rules)
    if any(rule.name in LENGTHS for rule in rules):
        text = f"{text.strip()} {more.strip()}"
    for rule in sorted(rules, key=lambda rule: ORDER.index(rule.name)):
        text = EDITS[rule.name][rule is broken](text, rule.value, draw)
    text = text.strip()
    return text if text and obeys(rules, text) is obey else None


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count]).rstrip(",;:-.") + "."


def _shortened(piece: str, draw: random.Random) -> str:
    return " ".join(piece.split()[: draw.randint(3, 12)]).rstrip(",;:")


def _at_most(text: str, count: int, draw: random.Random) -> str:
    """The first sentences with at most `count` words together, or a part of the first one."""
    kept = ""
    for piece in sentences(text):
        if word_count(kept + piece) > count:
            break
        kept += piece
    return kept.strip() or _first_words(text, draw.randint(max(1, count * 2 // 3), count))


def _at_least(text: str, count: int, draw: random.Random) -> str:
    """The first sentences, up to the one that brings the words to `count` and sometimes one more."""
    pieces = sentences(text)
    reached = next((i for i in range(len(pieces)) if word_count("".join(pieces[: i + 1])) >= count), len(pieces))
    return "".join(pieces[: reached + draw.randint(1, 2)])


def _number(text: str, count: int, draw: random.Random) -> str:
    return "".join(sentences(text)[:count])


def _bulleted(text: str, count: int, draw: random.Random) -> str:
    mark = draw.choice("-*-")
    pieces = [re.sub(r"^\W*(\d+[.)])?\s*", "", piece).strip() for piece in sentences(text)]
    return "\n".join(f"{mark} {_shortened(piece, draw)}" for piece in [piece for piece in pieces if piece][:count])


def _one_word(text: str, value: None, draw: random.Random) -> str:
    words = [word for word in re.findall(r"[A-Za-z]+", text) if len(word) > 3] or ["Yes"]
    return draw.choice(words).capitalize() + draw.choice(("", "."))


def _containing(text: str, words: Sequence[str], draw: random.Random) -> str:
    pieces = text.split(" ")
    for word in words:
        place = draw.randrange(len(pieces))
        pieces[place] = word + re.sub(r".*?(\W*)$", r"\1", pieces[place], flags=re.DOTALL)
    return " ".join(pieces)


def _starting(text: str, start: str, draw: random.Random) -> str:
    rest = text.strip()
    return f"{start}{draw.choice((',', ':', ','))} {rest[:1].lower()}{rest[1:]}"


def _object(text: str, keys: Sequence[str], draw: random.Random) -> str:
    pieces = [_shortened(piece, draw) for piece in sentences(text)] or [text]
    draw.shuffle(pieces)
    values = dict(zip(keys, cycle(pieces), strict=False))
    return json.dumps(values, ensure_ascii=False, indent=draw.choice((None, 2)))


def _wrong_number(make: Edit) -> Edit:
    return lambda text, count, draw: make(text, draw.choice([n for n in range(1, 7) if n != count]), draw)


def _no_object(text: str, keys: Sequence[str], draw: random.Random) -> str:
    """A broken object, one with other text or keys, or none."""
    good = _object(text, keys, draw)
    ways = (
        lambda: good.rstrip("}").strip(),
        lambda: f"Here is the JSON: {good}",
        lambda: _object(text, (*keys, "note"), draw),
        lambda: _object(text, (*keys[1:], "key"), draw),
        lambda: good.replace('"', ""),
        lambda: "\n".join(f"{key}: {value}" for key, value in json.loads(good).items()),
        lambda: text,
    )
    return draw.choice(ways)()


def _capital(text: str, value: None, draw: random.Random) -> str:
    words = text.lower().split(" ")
    place = draw.randrange(len(words))
    words[place] = words[place].capitalize()
    return draw.choice((" ".join(words), text.capitalize()))


def _with_commas(text: str, value: None, draw: random.Random) -> str:
    return re.sub(r" (and|that|with|of|the|to|in) ", r", \1 ", text, count=draw.randint(1, 2))


EDITS: dict[str, tuple[Edit, Edit]] = {  # by rule: what makes a text follow it, and what makes a text break it
    "words_at_most": (_at_most, lambda text, n, draw: _first_words(text, n + draw.randint(2, n + 8))),
    "words_at_least": (_at_least, lambda text, n, draw: _at_most(text, draw.randint(n // 4, n - 2), draw)),
    "one_word": (_one_word, lambda text, _, draw: _first_words(text, draw.randint(2, 8))),
    "sentences": (_number, _wrong_number(_number)),
    "bullets": (_bulleted, _wrong_number(_bulleted)),
    "json": (_object, _no_object),
    "contains": (
        _containing,
        lambda text, words, draw: re.sub(rf"(?i)\b{words[0]}\b", draw.choice(("it", "this", "")), text),
    ),
    "starts_with": (_starting, lambda text, start, draw: re.sub(rf"(?i)^\W*{start}\W*", "", text)),
    "lower_case": (lambda text, _, draw: text.lower(), _capital),
    "no_commas": (lambda text, _, draw: text.replace(",", draw.choice(("", " and", ";"))), _with_commas),
}
ORDER = list(EDITS)  # in which edits are applied: the first reshape the text
LENGTHS = ("words_at_most", "words_at_least", "sentences", "bullets")
