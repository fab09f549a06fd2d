"""Rules about the form of an answer, which code can check.

Each rule has a name and at most one parameter:

| rule | parameter | followed by an answer |
|---|---|---|
| words_at_most | count | of no more words |
| words_at_least | count | of no fewer words |
| one_word | | of exactly one word |
| sentences | count | of exactly so many sentences |
| bullets | count | with exactly so many bullet points, and any other text |
| numbered | count | with exactly so many numbered items, which count up from 1, and any other text |
| contains | words | in which each of the words (or phrases) occurs |
| lacks | words | in which none of them occurs |
| starts_with | text | that begins with this text |
| ends_with | text | that ends with this text |
| json | keys | that is a JSON object with exactly these keys and nothing else |
| upper_case | | without lower-case letters, with at least one upper-case letter |
| lower_case | | without upper-case letters, with at least one lower-case letter |
| alphabet | alphabet | whose letters are all of this alphabet, with at least one letter |
| no_commas | | without a comma |

An answer of white space only follows no rule. Characters are compared without Unicode normalisation. Markdown counts as
text, except for the marks of lists. The terms:

- A *word* stands between white space or dashes (U+2014 or two hyphens), and has a letter or digit: "well-known",
  "don't", "3.5" and the "1." before an item are one word each, "-" is none. In a script without spaces, a clause is one
  word.
- A *sentence* ends with a word that ends in . ! ? or U+2026, apart from closing quotation marks, brackets and emphasis.
  It also ends with a list item, an empty line or the text, and before a list item. It has a letter or digit; an item's
  number is no sentence. A full stop after Mr, Mrs, Ms, Dr, Prof, St or vs ends no sentence. Neither do, before a
  lower-case letter, the last full stop of a word with another full stop ("e.g.", "p.m."), an ellipsis, and a mark
  before a closing quotation mark.
- A *bullet point* is a line that begins, after white space, with one of - * + and U+2013 and white space, or with
  U+2022, and has a letter or digit. A *numbered item* begins with digits, "." or ")", and white space.
- Words and phrases *occur*, and texts begin and end, regardless of letter case. Curly quotation marks and apostrophes
  equal straight ones, and any white space equals one space. No letter or digit may adjoin: "sea" occurs in "sea-salt"
  and "sea's", but not in "seas". Other characters before the beginning, and after the end, are ignored, unless the
  required text itself begins, or ends, with such a character.
- *JSON* may stand between a line ``` or ```json and a line ```, with nothing outside. Keys must be distinct, and NaN
  and Infinity are no numbers.
- An *alphabet* is the first word of the letters' Unicode names. Modifier letters belong to all alphabets. No rule
  checks the language.

All checks take time linear in the answer's length.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PARAMETERS: dict[str, str | None] = {
    "words_at_most": "count",
    "words_at_least": "count",
    "one_word": None,
    "sentences": "count",
    "bullets": "count",
    "numbered": "count",
    "contains": "words",
    "lacks": "words",
    "starts_with": "text",
    "ends_with": "text",
    "json": "keys",
    "upper_case": None,
    "lower_case": None,
    "alphabet": "alphabet",
    "no_commas": None,
}
"""The name of each rule's parameter, by the rule's name."""

ALPHABETS = ("ARABIC", "ARMENIAN", "CYRILLIC", "DEVANAGARI", "GEORGIAN", "GREEK", "HANGUL", "HEBREW", "LATIN", "THAI")

_DASHES = ("\u2014", "--")
_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
_ENDS = ".!?\u2026"
_QUOTES = "\"'\u2019\u201d\u00bb"
_OPENERS = "\"'\u2018\u201c\u00ab([*_"
_CLOSERS = _QUOTES + ")]*_"
_TITLES = ("mr", "mrs", "ms", "dr", "prof", "st", "vs")
_BULLETS = "-*+\u2013"
_DOT = "\u2022"
_DIGITS = "0123456789"
_COMMAS = ",\u060c\u3001\uff0c"


@dataclass(frozen=True)
class Rule:
    """A rule of the table above."""

    name: str
    value: int | str | tuple[str, ...] | None = None
    """The parameter: a count, a text or an alphabet, or words or keys."""


def followed(rule: Rule, text: str) -> bool:
    """Whether an answer follows a rule."""
    if not text.strip():
        return False
    value: Any = rule.value
    match rule.name:
        case "words_at_most":
            return word_count(text) <= value
        case "words_at_least":
            return word_count(text) >= value
        case "one_word":
            return word_count(text) == 1
        case "sentences":
            return sentence_count(text) == value
        case "bullets":
            return [mark for mark, _ in _items(text)].count(_DOT) == value
        case "numbered":
            numbers = [mark for mark, _ in _items(text) if mark not in ("", _DOT)]
            return numbers == [str(number) for number in range(1, value + 1)]
        case "contains":
            return all(_occurs(word, text) for word in value)
        case "lacks":
            return not any(_occurs(word, text) for word in value)
        case "starts_with":
            return _starts(_plain(value), _plain(text))
        case "ends_with":
            return _starts(_plain(value)[::-1], _plain(text)[::-1])
        case "json":
            return _is_object(text.strip(), value)
        case "upper_case":
            return text == text.upper() and text != text.lower()
        case "lower_case":
            return text == text.lower() and text != text.upper()
        case "alphabet":
            return _is_written_in(value, text)
        case "no_commas":
            return not any(comma in text for comma in _COMMAS)
    raise ValueError(f"no rule is called {rule.name!r}")


def word_count(text: str) -> int:
    """The number of words in a text."""
    for dash in _DASHES:
        text = text.replace(dash, " ")
    return sum(map(_has_content, text.split()))


def sentence_count(text: str) -> int:
    """The number of sentences in a text."""
    total = 0
    for block in _blocks(text):
        started = False
        for word, following in pairwise([*block, ""]):
            started = started or _has_content(word)
            if started and _ends_sentence(word, following):
                total, started = total + 1, False
        total += started
    return total


def _blocks(text: str) -> list[list[str]]:
    """The words, with punctuation, of each list item and each paragraph. No sentence spans two blocks."""
    blocks: list[list[str]] = [[]]
    for mark, rest in _items(text):
        if mark or not rest:
            blocks.append([])
        blocks[-1] += rest.split()
    return blocks


def _ends_sentence(word: str, following: str) -> bool:
    opened = word.rstrip(_CLOSERS)
    body = opened.rstrip(_ENDS)
    marks = opened[len(body) :]
    body = body.lstrip(_OPENERS)
    if not marks or (marks == "." and body.lower() in _TITLES):
        return False
    quoted = any(quote in word[len(opened) :] for quote in _QUOTES)
    ellipsis = marks.startswith(("..", "\u2026"))
    if quoted or ellipsis or (marks == "." and "." in body):
        return not following.lstrip(_OPENERS)[:1].islower()
    return True


def _items(text: str) -> list[tuple[str, str]]:
    """(mark, rest) of each line. The mark is U+2022 for a bullet point, the number of a numbered item, or empty."""
    items = []
    for line in map(str.strip, text.splitlines()):
        after = line.lstrip(_DIGITS)
        number = line[: len(line) - len(after)]
        mark, rest = "", line
        if number and after[:1] in (".", ")") and after[1:2].isspace():
            mark, rest = number, after[1:]
        elif line[:1] == _DOT or (line[:1] in _BULLETS and line[1:2].isspace()):
            mark, rest = _DOT, line[1:]
        items.append((mark, rest.strip()) if _has_content(rest) else ("", line))
    return items


def _occurs(phrase: str, text: str) -> bool:
    phrase, text = _plain(phrase), _plain(text)
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        before, after = text[max(start - 1, 0) : start], text[end : end + 1]
        if not _is_letter(before) and not _is_letter(after):
            return True
        start = text.find(phrase, start + 1)
    return False


def _starts(wanted: str, text: str) -> bool:
    """Whether `text` begins with `wanted`. With both reversed: whether it ends with it."""
    if _is_letter(wanted[0]):
        text = text[next((place for place, c in enumerate(text) if _is_letter(c)), 0) :]
    end = len(wanted)
    joined = _is_letter(wanted[-1]) and _is_letter(text[end : end + 1])
    return text.startswith(wanted) and not joined


def _plain(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT).casefold().split())


def _is_letter(character: str) -> bool:
    """Whether the character is a letter, a combining mark or a digit; False for the empty string."""
    return bool(character) and (character.isalnum() or unicodedata.category(character)[0] == "M")


def _has_content(text: str) -> bool:
    return any(map(str.isalnum, text))


def _is_object(text: str, keys: Sequence[str]) -> bool:
    lines = text.split("\n")
    if len(lines) > 2 and lines[0].strip() in ("```", "```json") and lines[-1].strip() == "```":
        text = "\n".join(lines[1:-1])
    try:
        # Numbers stay text, since converting a long one takes more than linear time.
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_int=str, parse_float=str, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key came twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_written_in(alphabet: str, text: str) -> bool:
    letters = {c for c in text if c.isalpha() and unicodedata.category(c) != "Lm"}
    return bool(letters) and all(unicodedata.name(c, "").split(" ")[0] == alphabet for c in letters)
