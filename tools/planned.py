"""The stages of a run, in the order of `iterate.py`, with the requests or training examples that each expects.

Numbers come from the settings, from `[plan]`'s means and from the files that are there. A text is a list of token ids
that occur nowhere else, of a drawn length; prompts share what a run's prompts share: rubric, question, response.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import NormalDist
from typing import Any

from dpo.data import Example
from dpo.train import fixed_epoch
from evaluation.labelled import read_labelled
from judging.rubric import judge_prompt, meta_prompt
from judging.schedule import scheduled
from model.chat import Message
from model.config import LlamaConfig
from prepare.new_prompts import request_prompt
from stages.files import read_jsonl
from stages.settings import Dpo, Metajudge, Settings, Sft

CHARACTERS = 4.5
"""Characters of a token of English text in Llama-3's vocabulary: our estimate."""
CHAT_TOKENS = 10
"""Tokens of a chat format around a message and before the answer."""
REPLIES = 3
"""Labelled responses to a prompt."""
RECORD_BYTES = 300
"""A record without its tokens: ids, seed, log-probability."""

Ids = list[int]


@dataclass(frozen=True)
class Generation:
    """A stage's requests, to a model of the run's shape, loaded `loads` times. `group` draws the prompts of the
    next ones that share a prefix. Completions have `mean` tokens, and `limit` at most."""

    count: int
    group: Callable[[], list[Ids]]
    mean: float
    limit: int
    loads: int = 1


@dataclass(frozen=True)
class Training:
    """A stage's examples of one completion (SFT) or two: from which requests' prompts and completions they are made,
    and how many of each. `exports`: epochs whose model is written."""

    section: Sft | Dpo = field(hash=False)
    completions: int
    sources: tuple[tuple[Generation, int], ...]
    epochs: int
    exports: int

    @property
    def count(self) -> int:
        return sum(count for _, count in self.sources)

    @property
    def steps(self) -> float:
        """Updates in an epoch."""
        return self.count * (1 - self.section.held_out) / self.section.batch_size


Stages = dict[str, Generation | Training]


class Planned:
    """Draws the requests and examples of a config's run."""

    def __init__(self, settings: Settings):
        self.settings, self.plan = settings, settings.plan
        self.draw, self.ids = random.Random(settings.seed), 0
        self.at_limits = False
        """Whether each text is as long as it may be."""
        prompts = [tokens(row["prompt"]) for row in rows(settings.respond.prompts, "prompt")]
        self.longest_prompt = max(prompts, default=settings.prompts.max_new_tokens)

    def stages(self) -> Stages:
        """The stages with work, by name: seed -> SFT -> T iterations, with measurements."""
        settings, sft, eft = self.settings, self.settings.sft, self.settings.eft
        judge, K, prompts = settings.judge, settings.respond.K, settings.respond.prompts_per_iteration
        ranked, once = self.plan.ranked_replies if eft.sources else 0, judge.score_first
        acting, judging = self.answered(prompts, K), self.judged(prompts, 1 if once else K, judge.N)
        scoring = self.judged(prompts, K, 1, one_pass=True)
        comparing = self.compared(prompts, judge.N, settings.metajudge)
        stages: Stages = {"pool": self.pool()} if settings.iteration and settings.prompts.seeds else {}
        if sft.enabled and not sft.sft_delta:
            taught = round((1 - eft.held_out) * ranked)
            stages["sft/eft"] = self.judged(round(taught / REPLIES), REPLIES, eft.N)
            lessons = round(self.plan.eft_yield * taught) + sum(len(rows(path)) for path in sft.examples)
            stages["sft/checkpoint"] = Training(sft, 1, ((judging, lessons),), sft.epochs, 1)
        measured = self.measurements(ranked)
        first = -1 if sft.enabled else 0
        for t in range(first, len(settings.iteration) + 1):
            if t > 0:
                wanted, part = settings.iteration[t - 1].judge_pairs, f"iter{t}"
                stages[f"{part}/responses"] = acting
                if not judge.scores_file:
                    stages |= {f"{part}/scores": scoring} if judge.score == "expected" else {}
                    stages |= {f"{part}/judgments": judging} if wanted or not once else {}
                    stages |= {f"{part}/comparisons": comparing} if wanted else {}
                stages[f"{part}/checkpoint"] = self.dpo(t, acting, judging)
            left_out = {"wins"} if t == first else set()
            left_out |= {"judge", "metajudge"} if t < 0 and not settings.evaluation.seed_judges else set()
            name = "seed" if t < 0 else f"M{t}"
            stages |= {f"evaluation/{name}/{kind}": measured[kind] for kind in measured if kind not in left_out}
        return {name: work for name, work in stages.items() if work.count}

    def measurements(self, ranked: int) -> dict[str, Generation]:
        """What each model is measured on; of the `ranked` replies EFT sets a share aside."""
        evaluation, once = self.settings.evaluation, self.settings.judge.score_first
        cases, answers = evaluation.judge_cases, len(rows(evaluation.prompts))
        labelled = len(read_labelled(Path(cases)).cases) if Path(cases).is_file() else 0
        if cases.startswith("{run}/sft/eft"):
            labelled = round(self.settings.eft.held_out * ranked)
        return {
            "judge": self.judged(round(labelled / REPLIES), REPLIES, evaluation.N, once),
            "metajudge": self.compared(len(rows(evaluation.comparisons)), 2, Metajudge()),
            "actor": self.answered(len(rows(evaluation.instructions)) + answers, 1),
            "wins": self.judged(answers, 2, evaluation.duel_samples, once),
        }

    def pool(self) -> Generation:
        """Attempts at new prompts."""
        options, pieces = self.settings.prompts, self.pieces(request_prompt(["\0"] * self.settings.prompts.shots))
        count = min(round(options.count / self.plan.prompts_kept), options.max_attempts)
        mean, rounds = self.plan.prompt_tokens, -(-count // options.round_attempts)

        def group() -> list[Ids]:
            return [filled(pieces, *(self.prompt() for _ in range(options.shots)))]

        return Generation(count, group, mean, options.max_new_tokens, rounds)

    def answered(self, prompts: int, samples: int) -> Generation:
        """Responses to prompts."""
        pieces, limit = self.pieces([{"role": "user", "content": "\0"}]), self.settings.respond.max_new_tokens
        mean = self.plan.response_tokens
        return Generation(prompts * samples, lambda: [filled(pieces, self.prompt())] * samples, mean, limit)

    def judged(self, prompts: int, responses: int, N: int, one_pass: bool = False) -> Generation:
        """N judgments of each of a prompt's responses; or a pass over each, which draws one token."""
        judge = self.settings.judge
        pieces = self.pieces(judge_prompt("\0", "\0", judge.prompt_style, judge.verdict_position))

        def group() -> list[Ids]:
            prompt = self.prompt()
            return [ids for _ in range(responses) for ids in [filled(pieces, prompt, self.response())] * N]

        mean, limit = (1.0, 1) if one_pass else (self.plan.judgment_tokens, judge.max_new_tokens)
        return Generation(prompts * responses * N, group, mean, limit)

    def compared(self, responses: int, N: int, meta: Metajudge) -> Generation:
        """The scheduled comparisons of the distinct ones of each response's N judgments."""
        plan, limit, options = self.plan, self.settings.judge.max_new_tokens, self.settings.metajudge
        pieces = self.pieces(meta_prompt("\0", "\0", "\0", "\0", options.prompt_style, options.verdict_position))

        def pairs() -> list[tuple[int, int]]:
            """The ordered pairs; scores are normal around 3 with deviation 1."""
            distinct = max(2, sum(self.draw.random() < plan.distinct_judgments for _ in range(N)))
            judgments = [{"index": i, "score": min(max(round(self.draw.gauss(3, 1)), 0), 5)} for i in range(distinct)]
            return [(a["index"], b["index"]) for a, b in scheduled(judgments, meta, self.draw.getrandbits(32))]

        def group() -> list[Ids]:
            prompt, response = self.prompt(), self.response()
            judgments = [self.text(plan.judgment_tokens, limit) for _ in range(N)]
            return [filled(pieces, prompt, response, judgments[a], judgments[b]) for a, b in pairs()]

        count = round(responses * sum(len(pairs()) for _ in range(200)) / 200) if N > 1 else 0
        return Generation(count, group, plan.comparison_tokens, options.max_new_tokens)

    def dpo(self, t: int, acting: Generation, judging: Generation) -> Training:
        """An iteration's pairs."""
        dpo, prompts = self.settings.dpo, self.settings.respond.prompts_per_iteration
        judge_yield = self.plan.judge_yield * self.settings.iteration[t - 1].judge_pairs
        sources = ((acting, round(self.plan.actor_yield * prompts)), (judging, round(judge_yield * prompts)))
        epoch = fixed_epoch("dpo", self.settings, t)
        return Training(dpo, 2, sources, epoch or dpo.epochs, 1 if epoch or not dpo.held_out else dpo.epochs)

    def examples(self, training: Training, count: int) -> list[Example]:
        """`count` of a training's examples."""
        sources, weights = zip(*training.sources, strict=True)
        drawn = self.draw.choices(sources, weights, k=count)
        lengths = [[self.length(source.mean, source.limit) for _ in range(training.completions)] for source in drawn]
        return [Example("", s.group()[0], tuple(map(self.new_ids, n))) for s, n in zip(drawn, lengths, strict=True)]

    def prompt(self) -> Ids:
        return self.text(self.plan.prompt_tokens, self.longest_prompt)

    def response(self) -> Ids:
        return self.text(self.plan.response_tokens, self.settings.respond.max_new_tokens)

    def length(self, mean: float, limit: int, deviations: float | None = None) -> int:
        """Tokens of a text: log-normal, cut at `limit` as generation is; drawn, or so many deviations from the mean."""
        variance = math.log1p(self.plan.spread**2)
        deviations = self.draw.gauss(0, 1) if deviations is None else deviations
        value = math.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * deviations)
        return limit if self.at_limits else max(1, min(round(value), limit))

    def lengths(self, work: Generation, count: int) -> list[int]:
        """Tokens of `count` completions, evenly over the distribution and in random order."""
        quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
        return [self.length(work.mean, work.limit, z) for z in self.draw.sample(quantiles, count)]

    def text(self, mean: float, limit: int) -> Ids:
        return self.new_ids(self.length(mean, limit))

    def new_ids(self, count: int) -> Ids:
        self.ids += count
        return list(range(self.ids - count, self.ids))

    def pieces(self, messages: list[Message]) -> list[Ids]:
        """A prompt's fixed texts: before, between and behind the places that NULs mark."""
        first, *rest = "".join(message["content"] for message in messages).split("\0")
        return [self.new_ids(CHAT_TOKENS + tokens(first)), *(self.new_ids(tokens(text)) for text in rest)]


def filled(pieces: list[Ids], *texts: Ids) -> Ids:
    return [*pieces[0], *chain.from_iterable(text + piece for text, piece in zip(texts, pieces[1:], strict=True))]


def disk(work: Generation | Training, config: LlamaConfig) -> float:
    """Bytes that a stage leaves."""
    if isinstance(work, Training):
        return 2.0 * config.parameter_count()
    token = len(str(config.vocab_size)) + 1 + CHARACTERS  # the id, a comma, the text
    return work.count * (RECORD_BYTES + token * work.mean)


def disk_needed(stages: Stages, settings: Settings, config: LlamaConfig) -> float:
    """Bytes that a run takes at most: in training, besides what stages leave, two states of 12 bytes a parameter, and
    the exports of 2 that wait for the next state."""
    trainings = [work for work in stages.values() if isinstance(work, Training)]
    waiting = [min(work.exports, 2 + int(settings.trainer.save_every / work.steps)) for work in trainings]
    besides = config.parameter_count() * (2 * 12 + 2 * max(waiting)) if waiting else 0
    return sum(disk(work, config) for work in stages.values()) + besides


def tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS)


def rows(path: str, *keys: str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, each with these keys; none where the file is missing."""
    return list(read_jsonl(path, keys)) if Path(path).is_file() else []
