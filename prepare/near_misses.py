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
WAYS = ((True, False), (True, False), (True,), (False,), (), ())  # which sides of a pair are answers as they are
Edit = Callable[[str, Any, random.Random], str]  # of (text, the rule's value, draw)
Text = tuple[str, str]  # and its origin
Pair = tuple[Record, Text, Text]  # the prompt, a text that follows its rules, and one that does not


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


def near_miss_pairs(prompts: Iterable[Record], answers: Iterable[Record], number: int, seed: int) -> Iterator[Pair]:
    """`number` pairs of responses to one prompt, one that follows its rules and one that does not, by rules in turn.

    `answers` are rows {prompt_id, text}. A third of the pairs are two answers, a third an answer and an edit of it, a
    third two edits of one answer, so that neither the rule nor being edited reveals the verdict.
    """
    draw, by_id = random.Random(seed), {row["id"]: row for row in prompts}
    texts: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for answer in (answer for answer in answers if answer["text"].strip()):
        name, text = answer["prompt_id"], answer["text"]
        texts[name][obeys(rules_of(by_id[name]), text)].append(text)
    names: dict[str, list[str]] = defaultdict(list)
    for name in texts:
        names["+".join(entry["rule"] for entry in by_id[name]["rules"])].append(name)
    kinds = [kind for kind in names for _ in range(1 if "+" in kind else 3)]
    for place in range(number):
        own: Sequence[bool] = draw.choice(WAYS)
        pair = None
        while not pair:
            some = names[kinds[place % len(kinds)]]
            some = [name for name in some if all(texts[name][side] for side in own)] or some
            name = draw.choice(some)
            pair, own = _pair(rules_of(by_id[name]), texts[name], own, draw), ()  # some answers can't be edited
        yield by_id[name], *pair


def _pair(
    rules: Sequence[Rule], texts: dict[bool, list[str]], own: Sequence[bool], draw: random.Random
) -> tuple[Text, Text] | None:
    """A text that follows the rules and one that does not, with their origins. The sides `own`, as far as there are
    such answers, are answers as they are, and the others edits, of the same answer. None where edits don't reach that.
    """
    kept = {side: draw.choice(texts[side]) for side in own if texts[side]}
    source = next(iter(kept.values())) if kept else draw.choice(texts[True] + texts[False])
    first, second = (kept.get(side) or edited(rules, source, side, draw) for side in (True, False))
    origins = ["own" if side in kept else "edited" for side in (True, False)]
    return ((first, origins[0]), (second, origins[1])) if first and second else None


def ruled_rows(pairs: Iterable[Pair], evidence: float, seed: int) -> Iterator[Record]:
    """A judge's row for each response of the pairs; a share `evidence` of the pairs has justifications."""
    draw = random.Random(seed)
    for prompt, kept, broken in pairs:
        texts = [kept, broken]
        draw.shuffle(texts)
        reasons = draw.random() < evidence
        yield from (judge_row(prompt, text, origin, reasons) for text, origin in texts)
