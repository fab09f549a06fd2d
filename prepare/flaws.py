"""Responses whose quality is known because it was made: a model's answers, with a flaw put into each on purpose.

Each flaw of data/sft/flaws.toml has a score, and texts for the justification (the idea of Self-Taught Evaluators, arXiv
2408.02666). Lengths are drawn independently of the flaw, and half of the responses worth two points or less are also
cut off, so that neither reveals the score.
"""

import random
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from judging.rubric import evidence_text
from stages.command import UserError
from stages.records import Record

TABLES = tomllib.loads((Path(__file__).parents[1] / "data" / "sft" / "flaws.toml").read_text(encoding="utf-8"))
FLAWS, TASKS = TABLES["flaws"], TABLES["tasks"]

LENGTHS = (12, 70)  # words of a constructed response, drawn evenly from this range
SHORT = (8, 40)  # the same for the first lesson, which fits into fewer tokens
WILD = 1.2  # answers sampled at a higher temperature count as nonsense
REPETITIVE = 0.15  # a good answer has no greater share of repeated three-word sequences, and does not say this:
REFUSAL = re.compile(r"I'm sorry|I apologi[sz]e|[Aa]s an AI|(unable|can't|cannot|not able) (to )?(assist|help|provide)")


@dataclass(frozen=True)
class Source:
    prompt: str
    category: str
    topic: str
    good: list[list[str]]  # sentences of each answer at a low or usual temperature
    wild: list[list[str]]  # those of each answer at a high temperature; may be empty


def sentences(text: str) -> list[str]:
    """A text's sentences and lines, each with the white space after it."""
    return re.findall(r"\S.*?(?:[.!?:](?=\s)|\n|$)\s*", text, flags=re.DOTALL)


def repetitive(text: str) -> bool:
    """Whether a greater share than REPETITIVE of the text's three-word sequences repeat earlier ones."""
    words = re.findall(r"\w+", text.lower())
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    return bool(triples) and 1 - len(triples) / triples.total() > REPETITIVE


def load_sources(prompts: Iterable[Record], answers: Iterable[Record]) -> list[Source]:
    """Sources of the prompts that have a good answer. Raises `UserError` for a category without a task."""
    sources: dict[str, Source] = {}
    for row in prompts:
        if (category := row["category"]) not in TASKS:
            raise UserError(f"prompt {row['id']!r}: unknown category {category!r}; add it to data/sft/flaws.toml")
        sources[row["id"]] = Source(row["prompt"], category, row["topic"], [], [])
    for row in answers:
        source, pieces = sources[row["prompt_id"]], sentences(row["text"])
        if row["finish_reason"] == "length":
            pieces = pieces[:-1]  # a cut by the engine would be an unlabelled flaw
        if pieces and row["temperature"] > WILD:
            source.wild.append(pieces)
        elif pieces and not repetitive(row["text"]) and not REFUSAL.search(row["text"]):
            source.good.append(pieces)
    return [source for source in sources.values() if source.good]


class Constructor:
    """Draws responses with chosen flaws, without end, from one seed."""

    def __init__(self, sources: list[Source], seed: int):
        self.sources, self.random = sources, random.Random(seed)
        self.choice, self.by_category, self.by_topic = self.random.choice, defaultdict(list), defaultdict(list)
        for source in sources:
            self.by_category[source.category].append(source)
            self.by_topic[source.topic].append(source)
        for category, members in self.by_category.items():
            if len(self.by_category) < 2 or len({source.topic for source in members}) < 2:
                raise UserError(f"category {category!r}: two topics in it and another category are needed; add prompts")
        # Only a source whose topic has another task too can get the flaw "wrong_task".
        self.modifiable = [source for source in sources if self._other_tasks(source)]
        self.scores = {name: flaw["score"] for name, flaw in FLAWS.items() if name != "wrong_task" or self.modifiable}

    def judge_examples(self, number: int, decisions: bool = False) -> Iterator[Record]:
        """Rows {kind, prompt, response, flaw, score, justification}; all scores are equally frequent.

        `decisions` have the score alone, 5 or, for a far answer, 0, as a judgment's loss is mostly wording.
        """
        for flaw in islice(cycle(("none", "far")) if decisions else self._flaws(), number):
            source, response, foreign = self._response(flaw, lengths=SHORT if decisions else LENGTHS)
            reason = "" if decisions else self._justification(flaw, source, foreign)
            row = {"kind": "judge", "prompt": source.prompt, "response": response, "flaw": flaw}
            yield row | {"score": self.scores[flaw], "justification": reason}

    def metajudge_examples(self, number: int) -> Iterator[Record]:
        """Rows {kind, prompt, response, flaw, judgments, winner, score}; each position wins equally often.

        The worse judgment's score is off by two points or more, and the better one's is right, or off by one where the
        other is off by three. Where flaws share a score, a quarter of the pairs differ in their evidence alone.
        """
        for i, flaw in enumerate(islice(self._flaws(), number)):
            source, response, foreign = self._response(flaw)
            score = self.scores[flaw]
            errors = {name: abs(value - score) for name, value in self.scores.items() if name != flaw}
            equal = [name for name in errors if errors[name] == 0]
            right, wrong = flaw, self.choice([name for name in errors if errors[name] >= 2])
            if equal and self.random.random() < 0.25:
                wrong = self.choice(equal)
            elif errors[wrong] >= 3 and self.random.random() < 0.5:
                right = self.choice([name for name in errors if errors[name] == 1])
            pair = [
                {"score": self.scores[name], "justification": self._justification(name, source, other)}
                for name, other in ((right, foreign), (wrong, None))
            ]
            row = {"kind": "metajudge", "prompt": source.prompt, "response": response, "flaw": flaw}
            judgments, winner = (pair, "first") if i % 2 else (pair[::-1], "second")
            yield row | {"judgments": judgments, "winner": winner, "score": score}

    def groups(self) -> Iterator[Record]:
        """A group {id, prompt, responses: [{text, score, flaw}]} of each source, with a response of each score."""
        for number, source in enumerate(self.sources):
            responses = []
            for flaw in sorted(self._block(), key=self.scores.__getitem__):
                flaw = "near" if flaw == "wrong_task" and not self._other_tasks(source) else flaw
                text = self._response(flaw, source)[1]
                responses.append({"text": text, "score": self.scores[flaw], "flaw": flaw})
            yield {"id": f"c{number:03}", "prompt": source.prompt, "responses": responses}

    def _block(self) -> list[str]:
        """One flaw of each score, in random order."""
        scores = dict.fromkeys(self.scores.values())
        block = [self.choice([name for name, own in self.scores.items() if own == score]) for score in scores]
        self.random.shuffle(block)
        return block

    def _flaws(self) -> Iterator[str]:
        while True:
            yield from self._block()

    def _response(
        self, flaw: str, source: Source | None = None, lengths: tuple[int, int] = LENGTHS
    ) -> tuple[Source, str, Source]:
        """A source, a response to its prompt with the flaw, and the source of foreign text."""
        source = source or self.choice(self.modifiable if flaw == "wrong_task" else self.sources)
        foreign, words = self._foreign(flaw, source), self.random.randint(*lengths)
        own_text, foreign_text = self.choice(source.good), self.choice(foreign.good)
        if flaw == "cut_off":
            return source, self._cut("".join(own_text), words), foreign
        if flaw == "none":
            text = _take(own_text, words)
        elif flaw == "extraneous":
            text = _join(_take(own_text, words - 12), self.choice(foreign_text))
        elif flaw == "drift":
            start = _take(own_text, words // 3)
            text = _join(start, _take(foreign_text, max(words, 3 * len(start.split())) * 2 // 3))
        elif flaw == "repetition":
            text = self._repeat(own_text, words)
        elif flaw == "gibberish" and source.wild and self.random.random() < 0.5:
            text = _take(self.choice(source.wild), words)
        elif flaw == "gibberish":
            chosen = "".join(self.choice(source.good)).split()[:words]
            self.random.shuffle(chosen)
            text = " ".join(chosen)
        else:
            text = _take(foreign_text, words)
        if self.scores[flaw] <= 2 and self.random.random() < 0.5:
            text = self._cut(text, words)
        return source, text.strip(), foreign

    def _foreign(self, flaw: str, source: Source) -> Source:
        """The source of foreign text: the task on another topic, another task on the topic, or neither in common."""
        if flaw == "near":
            return self.choice([s for s in self.by_category[source.category] if s.topic != source.topic])
        if flaw == "wrong_task":
            return self.choice(self._other_tasks(source))
        while (foreign := self.choice(self.sources)).category == source.category or foreign.topic == source.topic:
            pass
        return foreign

    def _other_tasks(self, source: Source) -> list[Source]:
        return [s for s in self.by_topic[source.topic] if s.category != source.category]

    def _cut(self, text: str, words: int) -> str:
        """The text's first words, ending within a sentence."""
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        keep = min(words, len(ends) - self.random.randint(1, 4))
        while keep > 1 and text[ends[keep - 1] - 1] in ".!?:,;":
            keep -= 1
        return text[: ends[max(keep, 1) - 1]]

    def _repeat(self, text: list[str], words: int) -> str:
        """A beginning, then one or two of its sentences over and over."""
        begin = text[: max(1, len(sentences(_take(text, words // 3))))]
        again = [piece.strip() for piece in begin[-self.random.randint(1, 2) :]]
        begun, repeated = (len(" ".join(pieces).split()) for pieces in (begin, again))
        times = max(2, round((words - begun) / max(1, repeated)))
        return _join("".join(begin), self.choice((" ", "\n")).join(again * times))

    def _justification(self, flaw: str, source: Source, foreign: Source | None = None) -> str:
        foreign = foreign or self.choice(self.sources)
        evidence = {"asked": "{task} on {topic}"}
        evidence |= {part: self.choice(FLAWS[flaw][part]) for part in ("given", "missing")}
        own, other = ({"task": TASKS[s.category], "topic": s.topic} for s in (source, foreign))
        words = own | {"given_task": other["task"], "other": other["topic"]}
        return evidence_text({key: value.format_map(words) for key, value in evidence.items()})


def _take(pieces: list[str], words: int) -> str:
    """The first sentences, as many as come nearest to `words` words, but at least one."""
    counts = np.array([len(piece.split()) for piece in pieces])
    return "".join(pieces[: max(1, (counts.cumsum() - counts / 2 <= words).sum())])


def _join(first: str, second: str) -> str:
    return first.rstrip() + " " + second.lstrip()
