"""Rules about the form of an answer, which code can check: docs/evaluation.md defines them.

An answer of white space only follows no rule. All checks take time linear in the answer's length.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from stages.command import UserError
from stages.records import Record
from stages.rows import LIST, Row

ALPHABETS = ("ARABIC", "ARMENIAN", "CYRILLIC", "DEVANAGARI", "GEORGIAN", "GREEK", "HANGUL", "HEBREW", "LATIN", "THAI")

_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
_ENDS, _QUOTES, _OPENERS = ".!?\u2026", "\"'\u2019\u201d\u00bb", "\"'\u2018\u201c\u00ab([*_"
_TITLES = ("mr", "mrs", "ms", "dr", "prof", "st", "vs")
_DOT = "\u2022"
_ITEM = re.compile("([0-9]+)[.)](?=\\s)|\u2022|[-*+\u2013](?=\\s)")

RULES: dict[str, tuple[str, Callable[[str, Any], bool]]] = {
    "words_at_most": ("count", lambda text, count: word_count(text) <= count),
    "words_at_least": ("count", lambda text, count: word_count(text) >= count),
    "one_word": ("", lambda text, _: word_count(text) == 1),
    "sentences": ("count", lambda text, count: sentence_count(text) == count),
    "bullets": ("count", lambda text, count: _marks(text).count(_DOT) == count),
    "numbered": ("count", lambda text, count: _counted(text) == count),
    "contains": ("words", lambda text, words: all(_occurs(word, text) for word in words)),
    "lacks": ("words", lambda text, words: not any(_occurs(word, text) for word in words)),
    "starts_with": ("text", lambda text, start: _starts(_plain(start), _plain(text))),
    "ends_with": ("text", lambda text, end: _starts(_plain(end)[::-1], _plain(text)[::-1])),
    "json": ("keys", lambda text, keys: _object_keys(text.strip()) == set(keys)),
    "upper_case": ("", lambda text, _: text == text.upper() != text.lower()),
    "lower_case": ("", lambda text, _: text == text.lower() != text.upper()),
    "alphabet": ("alphabet", lambda text, alphabet: _alphabets(text) == {alphabet}),
    "no_commas": ("", lambda text, _: set(text).isdisjoint(",\u060c\u3001\uff0c")),
}
"""By the rule's name: the name of its parameter, and the check of (text, value)."""


def _are_texts(values: Any) -> bool:
    """Whether these are different texts, at least one, without white space at their ends."""
    texts = isinstance(values, list) and all(isinstance(x, str) and x and x == x.strip() for x in values)
    return texts and len(set(values)) == len(values) > 0


VALUES: dict[str, Callable[[Any], bool]] = {  # by a parameter's name: the check of its value
    "count": lambda value: type(value) is int and value >= 1,
    "alphabet": lambda value: value in list(ALPHABETS),
    "text": lambda value: _are_texts([value]),
    "words": _are_texts,
    "keys": _are_texts,
}


class Rule(NamedTuple):
    name: str
    value: int | str | tuple[str, ...] | None = None  # a count, a text or an alphabet, or words or keys


def rules_of(prompt: Record, where: str = "") -> tuple[Rule, ...]:
    """The rules of a prompt's row {id, "rules": [{rule: NAME, PARAMETER: value}], ...}; none without such a key.

    Raises the errors of `read_rule`; `where` is the row's place.
    """
    where, entries = where or f"prompt {prompt['id']!r}", prompt.get("rules", [])
    if entries != []:
        Row(where, prompt).value("rules", kind=LIST)
    return tuple(read_rule(entry, f"{where}, rules[{place}]") for place, entry in enumerate(entries))


def obeys(rules: Iterable[Rule], text: str) -> bool:
    return all(followed(rule, text) for rule in rules)


def followed(rule: Rule, text: str) -> bool:
    return bool(text.strip()) and RULES[rule.name][1](text, rule.value)


def word_count(text: str) -> int:
    return sum(map(_has_content, text.replace("\u2014", " ").replace("--", " ").split()))


def sentence_count(text: str) -> int:
    """No sentence spans two list items or paragraphs."""
    blocks: list[list[str]] = [[]]
    for mark, rest in _items(text):
        if mark or not rest:
            blocks.append([])
        blocks[-1] += rest.split()
    total = 0
    for block in blocks:
        started = False
        for word, following in pairwise([*block, ""]):
            started = started or _has_content(word)
            if started and _ends_sentence(word, following):
                total, started = total + 1, False
        total += started
    return total


def _ends_sentence(word: str, following: str) -> bool:
    opened = word.rstrip(_QUOTES + ")]*_")
    body = opened.rstrip(_ENDS)
    marks = opened[len(body) :]
    body = body.lstrip(_OPENERS)
    if not marks or (marks == "." and body.lower() in _TITLES):
        return False
    quoted = not set(_QUOTES).isdisjoint(word[len(opened) :])
    if quoted or marks.startswith(("..", "\u2026")) or (marks == "." and "." in body):
        return not following.lstrip(_OPENERS)[:1].islower()
    return True


def _items(text: str) -> list[tuple[str, str]]:
    """(mark, rest) of each line. The mark is U+2022 for a bullet point, the number of a numbered item, or empty."""
    items = []
    for line in map(str.strip, text.splitlines()):
        match = _ITEM.match(line)
        rest = line[match.end() :] if match else ""
        items.append((match[1] or _DOT, rest.strip()) if match and _has_content(rest) else ("", line))
    return items


def _marks(text: str) -> list[str]:
    return [mark for mark, _ in _items(text) if mark]


def _counted(text: str) -> int | None:
    """How many numbered items there are; None if their numbers do not count from 1."""
    numbers = [mark for mark in _marks(text) if mark != _DOT]
    return len(numbers) if numbers == [str(i + 1) for i in range(len(numbers))] else None


def _occurs(phrase: str, text: str) -> bool:
    phrase, text = _plain(phrase), _plain(text)
    spans = ((m.start(), m.start() + len(phrase)) for m in re.finditer(f"(?={re.escape(phrase)})", text))
    return any(not _is_letter(text[start - 1 : start]) and not _is_letter(text[end : end + 1]) for start, end in spans)


def _starts(wanted: str, text: str) -> bool:
    if _is_letter(wanted[0]):
        text = text[next((place for place, c in enumerate(text) if _is_letter(c)), 0) :]
    end = len(wanted)
    return text.startswith(wanted) and not (_is_letter(wanted[-1]) and _is_letter(text[end : end + 1]))


def _plain(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT).casefold().split())


def _is_letter(character: str) -> bool:
    return bool(character) and (character.isalnum() or unicodedata.category(character)[0] == "M")


def _has_content(text: str) -> bool:
    return any(map(str.isalnum, text))


def _object_keys(text: str) -> set[str] | None:
    """The keys of a JSON object; None for another text."""
    fenced = re.fullmatch("```(?:json)?[^\\S\n]*\n(.*)\n[^\\S\n]*```", text, re.DOTALL)
    hooks: Any = {"object_pairs_hook": _distinct, "parse_constant": int}  # which refuses NaN and Infinity
    hooks |= {"parse_int": str, "parse_float": str}  # converting a long number takes more than linear time
    try:
        value = json.loads(fenced[1] if fenced else text, **hooks)
    except (ValueError, RecursionError):
        return None
    return set(value) if isinstance(value, dict) else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key came twice")
    return dict(pairs)


def _alphabets(text: str) -> set[str]:
    letters = {c for c in text if c.isalpha() and unicodedata.category(c) != "Lm"}
    return {unicodedata.name(c, "").split(" ")[0] for c in letters}


def read_rule(entry: Any, where: str) -> Rule:
    """The rule of an entry {rule: NAME, PARAMETER: value}. Raises `UserError` beginning with `where`."""
    name = entry.get("rule") if isinstance(entry, dict) else None
    if name not in list(RULES):
        raise UserError(f"{where}: rule {name!r} is not known; take one of {', '.join(RULES)}")
    key = RULES[name][0]
    if set(entry) != {"rule", key} - {""} or not (key == "" or VALUES[key](entry[key])):
        raise UserError(f"{where} is {entry}; docs/evaluation.md describes {name} {{{key}}}")
    return Rule(name, tuple(entry[key]) if key in ("words", "keys") else entry.get(key))
