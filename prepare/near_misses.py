"""Responses to prompts with rules, labelled by code: a model's own answers, and near misses.

A near miss is an answer edited so that it follows the rules, or so that it breaks one of them: two such responses
differ in the rule and in little else. A judge that tells them apart has read the rule.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from judging.rubric import evidence_text
from judging.rules import Rule, followed, obeys, rules_of, sentence_count, word_count
from prepare.flaws import sentences
from stages.records import Record

FOLLOWED, BROKEN = 5, 1  # the scores of a response that follows all rules, and of one that does not
OWN = 0.6  # share of rows, as far as there are such answers, that are answers as they are
Edit = Callable[[str, Any, random.Random], str]  # of (text, the rule's value, draw)


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count]).rstrip(",;:-") + "."


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
    return text if word_count(text) >= count else f"{text} {text}"


def _number(text: str, count: int, draw: random.Random) -> str:
    return "".join(sentences(text)[:count]).strip()


def _bulleted(text: str, count: int, draw: random.Random) -> str:
    mark = draw.choice("-*-")
    pieces = [re.sub(r"^\W*(\d+[.)])?\s*", "", piece).strip() for piece in sentences(text)]
    pieces = [_shortened(piece, draw) for piece in pieces if re.search(r"\w", piece)]
    words = text.split()
    while len(pieces) < count and len(words) > 3:
        pieces.append(" ".join(draw.choices(words, k=3)))
    return "\n".join(f"{mark} {piece}" for piece in pieces[:count])


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
    return json.dumps({key: draw.choice(pieces) for key in keys}, ensure_ascii=False, indent=draw.choice((None, 2)))


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
        lambda: "\n".join(f"{key}: {_shortened(text, draw)}" for key in keys),
        lambda: text,
    )
    return draw.choice(ways)()


def _capital(text: str, value: None, draw: random.Random) -> str:
    words = text.split(" ")
    place = draw.randrange(len(words))
    words[place] = words[place].capitalize()
    return draw.choice((" ".join(words), text.capitalize()))


def _with_commas(text: str, value: None, draw: random.Random) -> str:
    return re.sub(r" (and|that|with|of|the|to|in) ", r", \1 ", text, count=draw.randint(1, 2))


EDITS: dict[str, tuple[Edit, Edit]] = {  # by rule: what makes a text follow it, and what makes a text break it
    "words_at_most": (_at_most, lambda text, n, draw: _first_words(f"{text} {text}", n + draw.randint(2, n + 8))),
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


def edited(rules: Sequence[Rule], text: str, obey: bool, draw: random.Random) -> str | None:
    """A response made of `text` that follows all rules, or breaks one; None where the edits don't reach that."""
    broken = None if obey else draw.choice(rules)
    for rule in sorted(rules, key=lambda rule: ORDER.index(rule.name)):
        text = EDITS[rule.name][rule is broken](text, rule.value, draw)
    text = text.strip()
    return text if text and obeys(rules, text) is obey else None


def judge_row(prompt: Record, text: str, origin: str, evidence: bool) -> Record:
    """A row {kind: "judge", prompt, response, flaw, score, justification}; the score is code's verdict."""
    rules = rules_of(prompt)
    broken = [rule for rule in rules if not followed(rule, text)]
    asked, missing = (" and ".join(map(_in_words, some)) for some in (rules, broken))
    given = " and ".join(_given(rule, text) for rule in (broken or rules))
    reason = evidence_text({"asked": f"{asked}, on {prompt['topic']}", "given": given, "missing": missing})
    row = {"kind": "judge", "prompt": prompt["prompt"], "response": text}
    row |= {"flaw": f"{'broken' if broken else 'kept'}.{origin}", "score": BROKEN if broken else FOLLOWED}
    return row | {"justification": reason if evidence else ""}


def _in_words(rule: Rule) -> str:
    value = " and ".join(map(str, rule.value)) if isinstance(rule.value, tuple) else rule.value
    return {
        "words_at_most": f"at most {value} words", "words_at_least": f"at least {value} words", "one_word": "one word",
        "sentences": f"{value} sentences", "bullets": f"{value} bullet points", "contains": f'the word "{value}"',
        "starts_with": f'the beginning "{value}"', "json": f"JSON with {value}", "lower_case": "no capital letters",
        "no_commas": "no commas",
    }[rule.name]  # fmt: skip


def _given(rule: Rule, text: str) -> str:
    if rule.name in ("words_at_most", "words_at_least", "one_word"):
        return f"{word_count(text)} words"
    if rule.name == "sentences":
        return f"{sentence_count(text)} sentences"
    if rule.name == "bullets":
        marks = sum(bool(re.match(r"\s*([-*+\u2013]\s|\u2022)", line)) for line in text.splitlines())
        return f"{marks} bullet points"
    return _in_words(rule) if followed(rule, text) else f'"{" ".join(text.split()[:4])}"'


def ruled_rows(
    prompts: Iterable[Record], answers: Iterable[Record], number: int, seed: int, evidence: float
) -> Iterator[Record]:
    """`number` labelled rows, for each rule or pair of rules as many that follow as not: no rule reveals a score.

    `answers` are rows {prompt_id, text}; `evidence` is the share of rows with a justification.
    """
    draw, by_id = random.Random(seed), {row["id"]: row for row in prompts}
    own: dict[tuple[str, bool], list[tuple[Record, str]]] = defaultdict(list)
    sources: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    for answer in (answer for answer in answers if answer["text"].strip()):
        prompt, text = by_id[answer["prompt_id"]], answer["text"]
        kind = "+".join(entry["rule"] for entry in prompt["rules"])
        sources[kind].append((prompt, text))
        own[kind, obeys(rules_of(prompt), text)].append((prompt, text))
    for kind in sources:  # as many of both, or being edited would reveal the score
        for obey in (True, False):
            draw.shuffle(own[kind, obey])
        fewer = min(len(own[kind, True]), len(own[kind, False]))
        own |= {(kind, obey): own[kind, obey][:fewer] for obey in (True, False)}
    cells: list[tuple[str, bool]] = []
    while len(cells) < number:
        block = [(kind, obey) for kind in sources for obey in (True, False) for _ in range(1 if "+" in kind else 3)]
        draw.shuffle(block)
        cells += block
    for kind, obey in cells[:number]:
        if own[kind, obey] and draw.random() < OWN:
            yield judge_row(*own[kind, obey].pop(), "own", draw.random() < evidence)
            continue
        made = None
        while not made:
            prompt, text = draw.choice(sources[kind])
            made = edited(rules_of(prompt), text, obey, draw)
        yield judge_row(prompt, made, "edited", draw.random() < evidence)
