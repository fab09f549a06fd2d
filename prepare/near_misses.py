"""Judging examples in which code has checked the rules: a model's own answers, and near misses.

A near miss is an answer edited so that it follows its prompt's rules, or so that it breaks one: two such responses
differ in the rule and in little else, so a judge that tells them apart has read the rule. Nor does an answer fit when
its prompt's rule gets another value. Spoiled responses follow the rules and are bad all the same, lest the judge take
the rules for all that matters.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from judging.rubric import evidence_text
from judging.rules import Rule, followed, obeys, rules_of, sentence_count, word_count
from prepare.edits import edited
from prepare.flaws import repetitive, sentences
from prepare.ruled import reworded
from stages.records import Record

SCORES = {"kept": 5, "repeated": 2, "broken": 1, "foreign": 0}  # of a response, by what it is
WAYS = ((True, False), (True, False), (True,), (False,), (), ())  # which sides of a pair are answers as they are
TURNS = {"one_word": 2, "starts_with": 2, "json": 2, "lower_case": 2, "no_commas": 8}  # of a rule, where not 4
DIRECTIONS = ("words_at_most", "words_at_least")
COUNTS = {"words_at_most": range(3, 70), "words_at_least": range(3, 70), "sentences": range(1, 6)}
COUNTS |= {"bullets": range(1, 6)}
Text = tuple[str, str]  # and its origin, "own" or "edited"


class NearMisses:
    """Draws examples from prompts with rules and answers {prompt_id, text} to them, from one seed.

    With a `source`, the parsed file of wordings, data/prompts/ruled.toml, pairs have prompts whose rules are in other
    words, and rules have more or less `turns`.
    """

    def __init__(
        self, prompts: Iterable[Record], answers: Iterable[Record], seed: int, source: Record | None = None,
        turns: Mapping[str, int] = TURNS,
    ):  # fmt: skip
        self.draw, self.prompts, self.source = random.Random(seed), {row["id"]: row for row in prompts}, source
        self.answers: dict[str, list[str]] = defaultdict(list)
        for answer in answers:
            if text := answer["text"].strip():
                self.answers[answer["prompt_id"]].append(text)
        self.sides: dict[str, dict[bool, list[str]]] = {}  # the answers that follow the rules, and that do not
        self.names: dict[str, list[str]] = defaultdict(list)
        self.rules = {name: rules_of(row) for name, row in self.prompts.items()}
        for name, texts in self.answers.items():
            rules = self.rules[name]
            self.names["+".join(rule.name for rule in rules)].append(name)
            verdicts = [(text, obeys(rules, text)) for text in texts]
            kept = [text for text, obeyed in verdicts if obeyed and not repetitive(text)]
            self.sides[name] = {True: kept, False: [text for text, obeyed in verdicts if not obeyed]}
        # Two rules have one turn, others four.
        number = {kind: 1 if "+" in kind else turns.get(kind, 4) if source else 3 for kind in self.names}
        self.kinds = [kind for kind in number for _ in range(number[kind])]

    def pairs(self, number: int, evidence: float) -> Iterator[Record]:
        """The rows of `number` pairs of responses to one prompt: one follows its rules, the other does not.

        Rules take turns. A third of the pairs are two answers, a third an answer and an edit of it, a third two edits
        of one answer, as far as there are such answers, so that neither the rule nor being edited says the verdict. A
        share `evidence` of the pairs has justifications.
        """
        for kind in islice(cycle(self.kinds), number):
            own, pair = self.draw.choice(WAYS), None
            names = [name for name in self.names[kind] if all(self.sides[name][side] for side in own)]
            while not pair:
                name = self.draw.choice(names or self.names[kind])
                pair, names, own = self._pair(name, own), [], ()  # some answers can't be edited
            both = [("kept", *pair[0]), ("broken", *pair[1])]
            self.draw.shuffle(both)
            rules, reasons = self.rules[name], self.draw.random() < evidence
            prompt = self._asked(name, rules) if self.source else self.prompts[name]
            yield from (judge_row(prompt, rules, *response, reasons) for response in both)

    def _asked(self, name: str, rules: Sequence[Rule]) -> Record:
        """The prompt with these rules, in words drawn anew."""
        row = self.prompts[name]
        return row | {"prompt": reworded(row["request"], rules, self.source or {}, self.draw)}

    def value_pairs(self, number: int, evidence: float, kinds: Sequence[str]) -> Iterator[Record]:
        """The rows of `number` pairs of prompts with one response: it follows the rule of one prompt, while the other
        prompt has another value, or turns "at most" and "at least" round. Half the responses are answers as they are,
        if they will do. `kinds` take turns."""
        for kind in islice(cycle(kinds), number):
            rules, names = None, self.names["words_at_most" if kind == "direction" else kind]
            while not rules:
                name, other = (self.draw.choice(names) for _ in range(2))
                text, origin = self.draw.choice(self.answers[name]), "own"
                if self.draw.random() < 0.5:
                    text, origin = self._edited(name, text, True) or "", "edited"
                rules = two_rules(kind, text, self.draw.choice(self.answers[other]), self.draw)
            both = [("kept", rules[0]), ("broken", rules[1])]
            self.draw.shuffle(both)
            reasons = self.draw.random() < evidence
            for what, rule in both:
                yield judge_row(self._asked(name, [rule]), [rule], what, text, origin, reasons)

    def _pair(self, name: str, own: tuple[bool, ...]) -> tuple[Text, Text] | None:
        """A text that follows the prompt's rules and one that does not; None where edits don't reach that.

        The sides `own` are answers as they are, where there are such answers, and the others edits of the same answer.
        """
        kept = {side: self.draw.choice(self.sides[name][side]) for side in own if self.sides[name][side]}
        source = next(iter(kept.values())) if kept else self.draw.choice(self.answers[name])
        first, second = (kept.get(side) or self._edited(name, source, side) for side in (True, False))
        origins = ["own" if side in kept else "edited" for side in (True, False)]
        return ((first, origins[0]), (second, origins[1])) if first and second else None

    def _edited(self, name: str, source: str, obey: bool) -> str | None:
        """The text edited for the rules of the prompt `name`; other answers to it continue where length is asked."""
        more = " ".join(text for text in self.answers[name] if text != source and not repetitive(text))
        return edited(self.rules[name], source, more, obey, self.draw)

    def spoiled(self, number: int, evidence: float) -> Iterator[Record]:
        """`number` rows: half follow the rules and repeat themselves, half follow them and answer another prompt."""
        for what, make in (("repeated", self._repeated), ("foreign", self._foreign)):
            names = (self.draw.choice(self.names[kind]) for kind in cycle(self.kinds))
            made = ((name, text) for name in names if (text := make(name)))
            for name, text in islice(made, number // 2):
                reasons = self.draw.random() < evidence
                yield judge_row(self.prompts[name], self.rules[name], what, text, "edited", reasons)

    def _repeated(self, name: str) -> str | None:
        """An answer that follows the rules and says its end over and over; None where rules don't let it."""
        own = self.sides[name][True]
        text = self.draw.choice(own) if own else self._edited(name, self.draw.choice(self.answers[name]), True)
        if not text:
            return None
        end = "".join(sentences(text)[-self.draw.randint(1, 2) :]).strip()
        text = self.draw.choice((" ", "\n")).join([text, *[end] * self.draw.randint(2, 5)])
        return text if obeys(self.rules[name], text) and repetitive(text) else None

    def _foreign(self, name: str) -> str | None:
        """An answer to a prompt on another topic, edited so that it follows this prompt's rules."""
        other = self.draw.choice(list(self.answers))
        if self.prompts[other]["topic"] == self.prompts[name]["topic"]:
            return None
        source, more = self.draw.choice(self.answers[other]), self.draw.choice(self.answers[other])
        return edited(self.rules[name], source, more, True, self.draw)


def two_rules(kind: str, text: str, other: str, draw: random.Random) -> tuple[Rule, Rule] | None:
    """A rule that the text follows and one that it breaks; None where their values are out of `COUNTS`.

    They are the rule `kind` with two values, or for "direction" the rules `DIRECTIONS` with one. `other` is another
    text, from which the broken value of a rule on words comes.
    """
    names, words = (kind, kind), word_count(text)
    if kind == "direction":
        kept = broken = draw.randint(words // 2, 2 * words)
        names = DIRECTIONS if words <= kept else DIRECTIONS[::-1]
    elif kind in DIRECTIONS:
        more, fewer = draw.randint(words, 2 * words), draw.randint(words // 3, words)
        kept, broken = (more, fewer - 1) if kind == "words_at_most" else (fewer, more + 1)
    elif kind in ("sentences", "bullets"):
        kept = sentence_count(text) if kind == "sentences" else _bullet_points(text)
        broken = kept + draw.choice((-2, -1, 1, 2))
    else:
        size = draw.randint(1, 3)
        kept, broken = (_phrase(kind, one, size, draw) for one in (text, other))
    rules = Rule(names[0], kept), Rule(names[1], broken)
    if not all(rule.value in COUNTS[rule.name] if rule.name in COUNTS else rule.value for rule in rules):
        return None
    return rules if not repetitive(text) and [followed(rule, text) for rule in rules] == [True, False] else None


def _phrase(name: str, text: str, size: int, draw: random.Random) -> Any:
    """One of the text's longer words, for "contains", or its first `size` words."""
    if name == "contains":
        words = re.findall(r"\b[a-z]{4,}\b", text)
        return (draw.choice(words),) if words else None
    return " ".join(re.findall(r"[\w'-]+", text)[:size])


def judge_row(prompt: Record, rules: Sequence[Rule], what: str, text: str, origin: str, evidence: bool) -> Record:
    """A row {kind: "judge", prompt, response, flaw, score, justification} of a response that is `what` SCORES names;
    `rules` are those that the prompt asks for."""
    broken = [rule for rule in rules if not followed(rule, text)]
    asked = f"{' and '.join(map(_in_words, rules))}, on {prompt['topic']}"
    given = " and ".join(_given(rule, text) for rule in (broken or rules))
    missing = " and ".join(map(_in_words, broken))
    if what == "repeated":
        given, missing = f"{given}, the same again", "something new"
    elif what == "foreign":
        given, missing = f"{given}, on something else", prompt["topic"]
    reason = evidence_text({"asked": asked, "given": given, "missing": missing}) if evidence else ""
    row = {"kind": "judge", "prompt": prompt["prompt"], "response": text, "flaw": f"{what}.{origin}"}
    return row | {"score": SCORES[what], "justification": reason}


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
        return f"{_bullet_points(text)} bullet points"
    return _in_words(rule) if followed(rule, text) else f'"{" ".join(text.split()[:4])}"'


def _bullet_points(text: str) -> int:
    return sum(bool(re.match(r"\s*([-*+\u2013]\s|\u2022)", line)) for line in text.splitlines())
