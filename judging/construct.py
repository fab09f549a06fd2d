"""Judging data by construction: responses whose quality is known because it was made.

The raw material is a model's own answers. A good response is such an answer; each flaw is put into one on purpose: a
remark that was not asked for, a text cut off in the middle, a drift to another subject, the same sentence again and
again, the answer to another question, words in disorder. The score follows from the flaw, and the justification names
the evidence, so labels cost nothing and every epoch can have new combinations (the idea of Self-Taught Evaluators,
arXiv 2408.02666). Lengths are drawn before the flaw, so that they say nothing about the score.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

LENGTHS = (12, 70)
"""Words of a constructed response, drawn evenly from this range."""

WILD = 1.2
"""Answers sampled at a higher temperature are taken for nonsense."""

FLAWS: dict[str, int] = {
    "none": 5,
    "extraneous": 4,
    "cut_off": 3,
    "drift": 2,
    "repetition": 2,
    "near": 1,
    "far": 0,
    "gibberish": 0,
}
"""Score of a response with each flaw."""

WORDING: dict[str, tuple[str, ...]] = {
    "none": (
        "It answers the request about {topic} directly and to the end.",
        "It stays on {topic}, is complete and adds nothing needless.",
        "The question is about {topic}, and the response settles it clearly.",
    ),
    "extraneous": (
        "It answers about {topic}, but ends with a remark on {other}.",
        "It is good on {topic}; only the part about {other} was not asked for.",
        "It covers {topic} well, with an extra sentence about {other}.",
    ),
    "cut_off": (
        "It is on {topic}, but breaks off in mid-sentence.",
        "It begins well on {topic} and stops before it is finished.",
        "It is useful on {topic}, yet the end is missing.",
    ),
    "drift": (
        "It begins with {topic}, then drifts away to {other}.",
        "Only the first part is about {topic}; the rest is about {other}.",
        "It leaves {topic} halfway and goes on with {other}.",
    ),
    "repetition": (
        "It says the same thing about {topic} again and again.",
        "It repeats one sentence on {topic} and gets no further.",
        "It names {topic}, but only repeats itself.",
    ),
    "near": (
        "It does the kind of task that was asked, but about {other} instead of {topic}.",
        "It looks like an answer, but treats {other}, not {topic}.",
        "The request is about {topic}; it gives something similar on {other}.",
    ),
    "far": (
        "The question is about {topic}; the response is about {other}.",
        "It says nothing on {topic} and talks about {other}.",
        "It is off topic: {other} instead of {topic}.",
    ),
    "gibberish": (
        "The words make no sense and say nothing about {topic}.",
        "It is word salad; {topic} is not treated.",
        "Nothing in it can be understood or helps with {topic}.",
    ),
}
"""What a justification says of each flaw."""

REASONS = (
    "Its score and reason fit the response.",
    "It describes what the response does.",
    "It is true to the response.",
)


@dataclass(frozen=True)
class Source:
    """A prompt and its answers."""

    prompt: str
    category: str
    topic: str
    good: list[list[str]]
    """Sentences of each answer at a low or usual temperature."""
    wild: list[list[str]]
    """Sentences of each answer at a high temperature."""
    answers: list[tuple[str, bool]]
    """The good answers' whole texts, and whether they came to an end by themselves."""


def sentences(text: str) -> list[str]:
    """A text's sentences and lines, each with the white space behind it."""
    return re.findall(r"\S.*?(?:[.!?:](?=\s)|\n|$)\s*", text, flags=re.DOTALL)


def load_sources(prompts: Iterable[dict[str, Any]], answers: Iterable[dict[str, Any]]) -> list[Source]:
    """Prompts that have answers of both kinds; the warmer ones are the wild ones."""
    good: dict[str, list[list[str]]] = defaultdict(list)
    wild: dict[str, list[list[str]]] = defaultdict(list)
    whole: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for row in answers:
        if row["temperature"] <= WILD and row["text"]:
            whole[row["prompt_id"]].append((row["text"], row["finish_reason"] == "stop"))
        pieces = sentences(row["text"])
        if row["finish_reason"] == "length":
            pieces = pieces[:-1]  # the engine's cut is not the flaw that is meant
        if pieces:
            (wild if row["temperature"] > WILD else good)[row["prompt_id"]].append(pieces)
    return [
        Source(row["prompt"], row["category"], row["topic"], good[row["id"]], wild[row["id"]], whole[row["id"]])
        for row in prompts
        if good[row["id"]] and wild[row["id"]]
    ]


class Constructor:
    """Draws responses with chosen flaws, without end, from one seed."""

    def __init__(self, sources: list[Source], seed: int):
        self.sources = sources
        self.random = random.Random(seed)
        self.by_category = defaultdict(list)
        for source in sources:
            self.by_category[source.category].append(source)

    def judge_examples(self, count: int) -> Iterator[dict[str, Any]]:
        """Rows {kind, prompt, response, flaw, score, justification}; every score equally often."""
        for _, flaw in zip(range(count), self._flaws(), strict=False):
            source, response, other = self._response(flaw)
            yield {
                "kind": "judge",
                "prompt": source.prompt,
                "response": response,
                "flaw": flaw,
                "score": FLAWS[flaw],
                "justification": self._justification(flaw, source, other),
            }

    def decision_examples(self, count: int) -> Iterator[dict[str, Any]]:
        """The first lesson: rows of a good answer or one to another question, half each, and the score alone.

        Nearly all of a whole judgment's loss is wording. A small model finds out first what the score depends on when
        nothing but the score is asked for, and it is either high (5 or 4) or low (0 or 1).
        """
        for i in range(count):
            flaw, scores = (("none", (5, 4)), ("far", (0, 1)))[i % 2]
            source, response, _ = self._response(flaw)
            row = {"kind": "judge", "prompt": source.prompt, "response": response, "flaw": flaw}
            yield row | {"score": self.random.choice(scores), "justification": ""}

    def groups(self) -> Iterator[dict[str, Any]]:
        """For measuring: of each source a group {id, prompt, responses: [{text, score, flaw}]}, one of every score."""
        for number, source in enumerate(self.sources):
            flaws = sorted(next(self._blocks()), key=lambda flaw: FLAWS[flaw])
            made = [(flaw, self._response(flaw, source)[1]) for flaw in flaws]
            responses = [{"text": text, "score": FLAWS[flaw], "flaw": flaw} for flaw, text in made]
            yield {"id": f"c{number:03}", "prompt": source.prompt, "responses": responses}

    def answer_examples(self, count: int) -> Iterator[dict[str, Any]]:
        """Rows of the model's own answers, so that it does not forget the actor's part while it learns to judge."""
        for _ in range(count):
            source = self.random.choice(self.sources)
            text, finished = self.random.choice(source.answers)
            yield {"kind": "respond", "prompt": source.prompt, "response": text, "finished": finished}

    def metajudge_examples(self, count: int) -> Iterator[dict[str, Any]]:
        """Rows {kind, prompt, response, flaw, judgments, winner, reason}; each position wins equally often.

        The worse judgment's score is off by two points or more, and its justification tells of a flaw with that score.
        """
        for i, flaw in zip(range(count), self._flaws(), strict=False):
            source, response, other = self._response(flaw)
            score = FLAWS[flaw]
            wrong = self.random.choice([name for name, value in FLAWS.items() if abs(value - score) >= 2])
            another = self.random.choice(self.sources)
            right = {"score": score, "justification": self._justification(flaw, source, other)}
            worse = {"score": FLAWS[wrong], "justification": self._justification(wrong, source, another)}
            yield {
                "kind": "metajudge",
                "prompt": source.prompt,
                "response": response,
                "flaw": flaw,
                "judgments": [right, worse] if i % 2 else [worse, right],
                "winner": "first" if i % 2 else "second",
                "reason": self.random.choice(REASONS),
            }

    def _flaws(self) -> Iterator[str]:
        """Flaws without end, every score equally often."""
        for block in self._blocks():
            yield from block

    def _blocks(self) -> Iterator[list[str]]:
        """Without end: a flaw of every score, in random order."""
        by_score = defaultdict(list)
        for flaw, score in FLAWS.items():
            by_score[score].append(flaw)
        while True:
            block = [self.random.choice(flaws) for flaws in by_score.values()]
            self.random.shuffle(block)
            yield block

    def _response(self, flaw: str, source: Source | None = None) -> tuple[Source, str, Source]:
        """A source, a response to its prompt with the flaw, and the source that foreign text comes from."""
        source = source or self.random.choice(self.sources)
        near = [s for s in self.by_category[source.category] if s is not source]
        far = [s for s in self.sources if s.category != source.category]
        other = self.random.choice(near if flaw == "near" and near else far)
        words = self.random.randint(*LENGTHS)
        own, foreign = self.random.choice(source.good), self.random.choice(other.good)
        if flaw == "none":
            text = _take(own, words)
        elif flaw == "extraneous":
            text = _join(_take(own, words - 12), self.random.choice(foreign))
        elif flaw == "cut_off":
            text = self._cut("".join(own), words)
        elif flaw == "drift":
            text = _join(_take(own, words // 3), _take(foreign, words - words // 3))
        elif flaw == "repetition":
            sentence = self.random.choice(own).strip()
            text = " ".join([sentence] * max(3, words // max(1, len(sentence.split()))))
        elif flaw == "gibberish":
            text = self._disorder(source, words)
        else:
            text = _take(foreign, words)
        return source, text.strip(), other

    def _cut(self, text: str, words: int) -> str:
        """The text's first words, ended within a sentence."""
        spans = [match.end() for match in re.finditer(r"\S+", text)]
        keep = min(words, len(spans) - self.random.randint(1, 4))
        while keep > 1 and text[spans[keep - 1] - 1] in ".!?:,;":
            keep -= 1
        return text[: spans[max(keep, 1) - 1]]

    def _disorder(self, source: Source, words: int) -> str:
        if self.random.random() < 0.5:
            return _take(self.random.choice(source.wild), words)
        chosen = "".join(self.random.choice(source.good)).split()[:words]
        self.random.shuffle(chosen)
        return " ".join(chosen)

    def _justification(self, flaw: str, source: Source, other: Source) -> str:
        wording = self.random.choice(WORDING[flaw])
        return wording.replace("{topic}", source.topic).replace("{other}", other.topic)


def _take(pieces: list[str], words: int) -> str:
    """The first sentences, as many as come nearest to `words` words, one at least."""
    taken: list[str] = []
    count = 0
    for piece in pieces:
        size = len(piece.split())
        if taken and count + size / 2 > words:
            break
        taken.append(piece)
        count += size
    return "".join(taken)


def _join(first: str, second: str) -> str:
    return first.rstrip() + " " + second.lstrip()
