"""Instructions about form that code can check, after IFEval (Zhou et al., arXiv 2311.07911), for any model's answers.

`python -m evaluation.verifiable --instructions data/evaluation/verifiable.jsonl --answers FILE` prints how many prompts
had all their rules followed, how many rules were followed, and the same by rule. Intervals are over prompts.
docs/evaluation.md defines the rules. Of IFEval's own file it prints IFEval's numbers (`evaluation/ifeval.py`). All
checks of ours take time linear in the answer's length.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from evaluation import ifeval
from evaluation.statistics import bootstrap, by_group, each, shortened, shown
from stages.files import UserError, arguments, command, read_numbered_jsonl

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
    "numbered": ("count", lambda text, n: [m for m in _marks(text) if m != _DOT] == [str(i + 1) for i in range(n)]),
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


class Instruction(NamedTuple):
    id: str
    prompt: str
    rules: tuple[Rule, ...]


def read_rows(path: Path, text: str, *others: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """By id: (place, row) of a file of rows that have a text of the name `text`, and the keys `others`.

    Raises `UserError` for a missing key, a value that is no text, a repeated id, and an empty file.
    """
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, row in read_numbered_jsonl(path, ("id", text, *others)):
        where = f"{path}, line {number}"
        for key in ("id", text):
            if not isinstance(row[key], str) or not (row[key].strip() or key == "text"):
                raise UserError(f"{where}: key {key!r} must be a text that is not empty; mend the row")
        if row["id"] in rows:
            raise UserError(f"{where}: id {row['id']!r} came before; give each row its own")
        rows[row["id"]] = where, row
    if not rows:
        raise UserError(f"{path}: no rows; name a file of rows with {', '.join(('id', text, *others))}")
    return rows


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a file of rows {id, prompt, rules: [{rule: NAME, PARAMETER: value}]}, in its order.

    Raises the errors of `read_rows`, and `UserError` for an unknown rule, and another parameter or value than its own.
    """
    instructions = []
    for name, (where, row) in read_rows(path, "prompt", "rules").items():
        if set(row) != {"id", "prompt", "rules"} or not isinstance(row["rules"], list) or not row["rules"]:
            raise UserError(f"{where}: the keys are {', '.join(row)}; they must be id, prompt, and a list of rules")
        rules = tuple(_rule(entry, f"{where}, rules[{place}]") for place, entry in enumerate(row["rules"]))
        instructions.append(Instruction(name, row["prompt"], rules))
    return instructions


def _rule(entry: Any, where: str) -> Rule:
    name = entry.get("rule") if isinstance(entry, dict) else None
    if name not in list(RULES):
        raise UserError(f"{where}: rule {name!r} is not known; take one of {', '.join(RULES)}")
    key = RULES[name][0]
    if set(entry) != {"rule", key} - {""} or not (key == "" or VALUES[key](entry[key])):
        raise UserError(f"{where} is {entry}; docs/evaluation.md describes {name} {{{key}}}")
    return Rule(name, tuple(entry[key]) if key in ("words", "keys") else entry.get(key))


def verifiable_report(instructions: Sequence[Instruction], texts: Mapping[str, str]) -> dict[str, Any]:
    """The share of prompts with all rules followed ("strict"), of rules followed ("rules"), and by rule; by id, which
    rules were followed. Raises `UserError` naming missing answers and unknown ones.
    """
    names = [item.id for item in instructions]
    if missing := [name for name in names if name not in texts]:
        raise UserError(f"no answer to {len(missing)} of {len(names)} instructions: {shortened(missing)}; answer all")
    if unknown := sorted(set(texts) - set(names)):
        raise UserError(f"{len(unknown)} answers to unknown instructions: {shortened(unknown)}; remove them")
    kept = {item.id: [followed(rule, texts[item.id]) for rule in item.rules] for item in instructions}
    by_rule = {}
    for name in RULES:
        if own := [(i.id, followed(r, texts[i.id])) for i in instructions for r in i.rules if r.name == name]:
            by_rule[name] = {"followed": sum(is_followed for _, is_followed in own)} | by_group(own)
    strict, rules = each(map(all, kept.values())), bootstrap(kept.values())
    return {"prompts": len(names), "strict": strict, "rules": rules, "by_rule": by_rule, "followed": kept}


def table(report: Mapping[str, Any]) -> Iterator[str]:
    kept = report["followed"].values()
    rows = {"prompts": {"followed": sum(map(all, kept))} | report["strict"]}
    rows["rules"] = {"followed": sum(map(sum, kept))} | report["rules"]
    for name, row in (rows | report["by_rule"]).items():
        yield f"{name:<14} {row['followed']:>4} of {row['count']:>4} {shown(row, '{:6.1%} [{:.1%}, {:.1%}]')}"


def main() -> None:
    given = arguments(__doc__, "instructions", "answers")
    if ifeval.is_ifeval(given.instructions):
        prompts = ifeval.read_prompts(given.instructions)
        print("\n".join(ifeval.table(ifeval.ifeval_report(prompts, ifeval.read_answers(given.answers, prompts)))))
        return
    instructions, answers = read_instructions(given.instructions), read_rows(given.answers, "text")
    try:
        report = verifiable_report(instructions, {name: row["text"] for name, (_, row) in answers.items()})
    except UserError as error:
        raise UserError(f"{given.answers}: {error}") from None
    print("\n".join(table(report)))


if __name__ == "__main__":
    command(main)
