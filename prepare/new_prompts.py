"""New prompts from seed prompts: `torchrun -m prepare.new_prompts` shows a model a few, and the model writes one more.

As in Self-Instruct (arXiv 2212.10560) and Self-Rewarding (arXiv 2401.10020), completions are sampled in rounds, and
prompts that pass the filter serve as examples in later rounds. Every rank filters for itself, since the kept prompts,
and so the next round's requests, follow from the sampled bytes alone.
"""

import itertools
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from model.chat import Message
from prepare.novelty import Novelty, Sequences, repetition, split, words
from sampling.worker import Item, Worker, generation_settings, sampling_of
from stages.command import UserError
from stages.files import read_shards, stage_key
from stages.records import Record
from stages.rows import FULL_TEXT, PROMPT, conversation_text, read_prompts, read_rows
from stages.seeds import request_seed
from stages.settings import Prompts, Settings, as_dict
from stages.stage import Job, Output, Stage, first_rank

NEW = "new/"  # the prefix of new prompts' ids

_LABEL = re.compile(
    r"^[ \t]*+(?:#++[ \t]*+)?(?P<mark>[*_]*+)[ \t]*+task[ \t]*+(?P<number>\d{1,9}+)[ \t]*+"
    r"(?:(?P<closed>(?P=mark)[ \t]*+[:\uff1a]|[:\uff1a][ \t]*+(?P=mark))|[:\uff1a])",
    re.IGNORECASE | re.MULTILINE,
)
"""A label at the beginning of a line: "Task 9:", "**task 9**:", "### Task 9:", or with full-width digits and colon."""

_RULE = re.compile(r"\s*(?:-{3,}|\*{3,}|_{3,})\s*")
_QUOTED = re.compile(
    "\"([^\"]*)\"|'([^']*)'|“([^“”]*)”|\u2018([^\u2018\u2019]*)\u2019|«([^«»]*)»|„([^„“”]*)[“”]|「([^「」]*)」|『([^『』]*)』"
)
"""A text between one pair of quotes, without quotes of that kind inside."""


class Dropped(StrEnum):  # why a completion gives no prompt, in the order of the checks
    TOO_LONG = "too_long"  # the examples left no room in the context: nothing was generated
    UNLABELLED = "unlabelled"  # no line begins with a label such as "Task 9:": a greeting, a refusal, an answer
    TRUNCATED = "truncated"  # neither a stop token nor a further label ends the task
    EMPTY = "empty"  # the task has no letter or digit
    TOO_FEW_WORDS = "too_few_words"  # fewer than `min_words`, by white space, or letters of scripts without it
    TOO_MANY_WORDS = "too_many_words"  # more than `max_words`
    REPETITIVE = "repetitive"  # more than a share `max_repetition` of its three-word sequences repeat earlier ones
    WORD = "word"  # the prompt has one of `words`, which ask for something that a text model can't see or do
    EVALUATION = "evaluation"  # the prompt shares a sequence of `ngram` words with a prompt of the evaluation files
    SIMILAR = "similar"  # the prompt's ROUGE-L with a seed or a kept prompt is not below `max_rouge_l`
    NOT_NEEDED = "not_needed"  # there are `count` prompts already; nothing is checked


def request_prompt(examples: Sequence[str]) -> list[Message]:
    """The messages that ask for one more task. Prompts are concatenated, never formatted."""
    # The definition of a task comes first, since a small model takes the last words for its topic.
    opening = f"Here are {len(examples)} tasks that people gave to an AI assistant, each complete in itself."
    shown = [f"Task {i}: " + example for i, example in enumerate(examples, 1)]
    wanted = "Write one more task, of a different kind and on a different topic. Begin with "
    wanted += f'"Task {len(examples) + 1}:" and write nothing but the text of the task.'
    return [{"role": "user", "content": "\n\n".join([opening, *shown, wanted])}]


def read_prompt(text: str, finish_reason: str) -> str | Dropped:
    """The first task of a completion's text, without label, quotes and markdown's rules; or the reason for none."""
    if finish_reason == "too_long":
        return Dropped.TOO_LONG
    labels = list(_LABEL.finditer(text))
    if words(text) and not labels:
        return Dropped.UNLABELLED
    # A small model goes on with tasks of higher numbers until its tokens are spent.
    following = next((label for label in labels if int(label["number"]) > int(labels[0]["number"])), None)
    if following is None and finish_reason != "stop":
        return Dropped.TRUNCATED
    if not labels:
        return Dropped.EMPTY
    lines = text[labels[0].end() : following.start() if following else None].strip().split("\n")
    while lines and (not lines[-1].strip() or _RULE.fullmatch(lines[-1])):
        lines.pop()
    task = "\n".join(lines).strip()
    if labels[0]["mark"] and not labels[0]["closed"]:  # the emphasis is that of a title or of the whole task
        task = task.replace(labels[0]["mark"], "", 1).strip()
    if match := _QUOTED.fullmatch(task):
        task = match[match.lastindex or 0].strip()
    return task if words(task) else Dropped.EMPTY


class Filter:
    """The filter of completions, in order: a prompt that is kept counts against similar later ones."""

    def __init__(self, options: Prompts, seeds: Iterable[str], evaluation: Iterable[str]):
        self._options, self._evaluation = options, Sequences(evaluation, options.ngram)
        self._novelty = Novelty(options.max_rouge_l, seeds)
        phrases = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in options.words if phrase.strip())
        self._words = re.compile(rf"(?<!\w)(?:{phrases})(?!\w)" if phrases else r"(?!)", re.IGNORECASE)

    def read(self, text: str, finish_reason: str) -> str | Dropped:
        prompt = read_prompt(text, finish_reason)
        if isinstance(prompt, Dropped):
            return prompt
        options, length = self._options, len(split(prompt))
        checks = {
            Dropped.TOO_FEW_WORDS: length < options.min_words,
            Dropped.TOO_MANY_WORDS: length > options.max_words,
            Dropped.REPETITIVE: repetition(prompt) > Fraction(str(options.max_repetition)),
            Dropped.WORD: self._words.search(prompt),
            Dropped.EVALUATION: self._evaluation.shares(prompt),
        }
        for reason in (reason for reason, failed in checks.items() if failed):
            return reason
        if self._novelty.similar(prompt):
            return Dropped.SIMILAR
        self._novelty.add(prompt)
        return prompt


def read_seeds(options: Prompts) -> list[Record]:
    """The seed prompts {id, prompt}. Raises `UserError` for too few, and for an id with the prefix `NEW`."""
    if not options.seeds:
        raise UserError("prompts.seeds is empty; name a JSON-lines file of {id, prompt}")
    seeds = read_prompts(Path(options.seeds), kind=FULL_TEXT)
    if len(seeds) < options.shots:
        wanted = f"a request shows {options.shots}"
        raise UserError(f"{options.seeds}: {len(seeds)} prompts, but {wanted}; add prompts or lower prompts.shots")
    for name in (row["id"] for row in seeds if row["id"].startswith(NEW)):
        raise UserError(f"{options.seeds}: id {name!r} may be a new prompt's; begin it with something else")
    return seeds


def draw_examples(seeds: Sequence[Record], kept: Sequence[Record], options: Prompts, seed: int) -> list[Record]:
    """The distinct rows that a request shows, drawn by `seed`: seeds and, if there are enough, `kept` prompts."""
    draw = random.Random(seed)
    generated = options.generated_shots if len(kept) >= options.generated_shots else 0
    chosen = [*draw.sample(seeds, options.shots - generated), *draw.sample(kept, generated)]
    draw.shuffle(chosen)
    return chosen


def write_prompts(job: Job) -> Output:
    """Let a model write new prompts from seed ones: prompts.jsonl {id, prompt, attempt, round, shots}."""
    settings, options = job.settings, job.settings.prompts
    seeds, worker = read_seeds(options), Worker(settings, job.path("model"))
    rows = (row for path in options.evaluation for row in read_rows(Path(path)))
    evaluation = [conversation_text(row.value("prompt", kind=PROMPT)) for row in rows]
    accept = Filter(options, (row["prompt"] for row in seeds), evaluation)
    # Each round has its own key, without the filter's settings, so changing one resamples only rounds that change.
    names = ("shots", "generated_shots", "temperature", "top_p", "max_new_tokens")
    section = generation_settings(settings, 0, {name: getattr(options, name) for name in names})
    inputs = {name: job.digests[name] for name in ("model", "seeds")}
    kept: list[Record] = []

    def items(number: int, size: int) -> Iterator[Item]:
        """The requests of a round, each a group of its own, since requests share only their first words."""
        for name in (f"attempt/{number:04}/{attempt:05}" for attempt in range(size)):
            shots = draw_examples(seeds, kept, options, request_seed(settings.seed, number, "prompts/shots", name))
            messages = partial(request_prompt, [row["prompt"] for row in shots])
            record, seed = {"id": name, "round": number, "shots": [row["id"] for row in shots]}, settings.seed
            sampling = sampling_of(options, worker.chat)
            yield Item(name, messages, sampling, request_seed(seed, number, "prompts", name), name, record)

    counts = Counter({"attempts": 0, "kept": 0} | {str(reason): 0 for reason in Dropped})
    for number in itertools.count():
        size = min(options.round_attempts, options.max_attempts - counts["attempts"])
        if len(kept) == options.count or not size:
            break
        key = stage_key("prompts-round", [section, inputs, number, size, kept])
        work = job.part("prompts", f"rounds/{number:04}", key)
        worker.run(work, items(number, size))
        for row in read_shards(work.out):
            counts["attempts"] += 1
            done = len(kept) == options.count
            prompt = Dropped.NOT_NEEDED if done else accept.read(row["text"], row["finish_reason"])
            if isinstance(prompt, Dropped):
                counts[prompt] += 1
            else:
                lineage = {"attempt": row["id"], "round": number, "shots": row["shots"]}
                kept.append({"id": f"{NEW}{len(kept):05}", "prompt": prompt, **lineage})
        if first_rank():
            print(f"{counts['attempts']} attempts: {len(kept)} of {options.count} prompts", file=sys.stderr)
    counts["kept"] = len(kept)
    if len(kept) < options.count and first_rank():
        listed = ", ".join(f"{name} {value}" for name, value in counts.items() if value)
        print(f"warning: {job.out}: {len(kept)} of the {options.count} prompts wanted: {listed}", file=sys.stderr)
    return Output({"prompts.jsonl": kept}, {"counts": counts})


def _settings(settings: Settings, iteration: int) -> Any:
    by_content = ("seeds", "model", "evaluation")
    section = {key: value for key, value in as_dict(settings.prompts).items() if key not in by_content}
    return generation_settings(settings, 0, section)


NEW_PROMPTS = Stage(
    "prompts", "prepare.new_prompts", write_prompts, _settings, ("model",), ranks="all",
    files=lambda settings: {"seeds": settings.prompts.seeds, "evaluation": settings.prompts.evaluation},
)  # fmt: skip

if __name__ == "__main__":
    NEW_PROMPTS.main()
