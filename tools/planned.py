"""The stages of a run, in the order of `iterate.py`, with the requests or training examples that each expects.

Numbers come from settings, `[plan]`'s means and the files that are there. A text is token ids that occur nowhere else,
of a drawn length; prompts share what a run's prompts share: rubric, question, response.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeAlias

from dpo.data import Example
from dpo.lora import trained_parameters
from dpo.train import fixed_epoch
from evaluation.labelled import read_labelled
from judging.rubric import judge_prompt, meta_prompt
from judging.schedule import scheduled
from model.chat import Message
from model.config import LlamaConfig
from prepare.new_prompts import request_prompt
from sampling.request import Request, Sampling
from stages.rows import conversation_text, read_prompts, read_rows
from stages.settings import Dpo, Metajudge, Settings, Sft, earlier_sfts

CHARACTERS = 4.5  # of a token of English text in Llama-3's vocabulary: our estimate
CHAT_TOKENS = 10  # of a chat format around a message and before the answer
REPLIES = 3  # labelled responses to a prompt
RECORD_BYTES = 300  # of a record without its tokens: ids, seed, log-probability

Ids = list[int]
Stages: TypeAlias = "dict[str, Generation | Training]"


@dataclass(frozen=True)
class Generation:  # a stage's requests
    count: int
    group: Callable[[], list[Ids]]  # draws the prompts of the next ones that share a prefix
    mean: float  # tokens of a completion
    limit: int
    loads: int = 1  # of the model


@dataclass(frozen=True)
class Training:  # a stage's examples
    section: Sft | Dpo = field(hash=False)
    sources: tuple[tuple[Generation, int], ...]  # the requests that they are made from, and how many of each
    epochs: int
    exports: int  # epochs whose model is written

    @property
    def count(self) -> int:
        return sum(count for _, count in self.sources)

    @property
    def steps(self) -> float:
        """Updates in an epoch."""
        return self.count * (1 - self.section.held_out) / self.section.batch_size


class Planned:
    """Draws the requests and examples of a config's run."""

    def __init__(self, settings: Settings):
        self.settings, self.plan = settings, settings.plan
        self.draw = random.Random(settings.seed)
        self.ids: Iterator[int] = count()  # of which texts are made
        self.at_limits = False  # whether each text is as long as it may be
        pool = [row for path in settings.respond.prompts for row in rows(path, read_prompts)]
        prompts = (tokens(conversation_text(row["prompt"])) for row in pool)
        longest = max(prompts, default=settings.prompts.max_new_tokens)
        self.prompt = partial(self.text, self.plan.prompt_tokens, longest)
        self.response = partial(self.text, self.plan.response_tokens, settings.respond.max_new_tokens)

    def stages(self) -> Stages:
        """The stages with work, by name: seed -> SFT -> T iterations, with measurements."""
        settings, plan, evaluation = self.settings, self.plan, self.settings.evaluation
        sft, eft, dpo = settings.sft, settings.eft, settings.dpo
        judge, K, prompts = settings.judge, settings.respond.K, settings.respond.prompts_per_iteration
        acting, judging = self.answered(prompts, K), self.judged(prompts, 1 if judge.score_first else K, judge.N)
        scoring = self.judged(prompts, K, 1, one_pass=True)
        comparing = self.compared(prompts, judge.N, settings.metajudge)
        ranked = plan.ranked_replies if eft.sources else 0  # of which a share is set aside
        taught, cases = round((1 - eft.held_out) * ranked), evaluation.judge_cases
        labelled = len(read_labelled(Path(cases)).cases) if Path(cases).is_file() else 0
        if cases.startswith("{run}/sft/eft"):
            labelled = round(eft.held_out * ranked)
        answered = len(rows(evaluation.prompts))
        measuring = self.judged(round(labelled / REPLIES), REPLIES, evaluation.N, judge.score_first)
        choosing = self.compared(len(rows(evaluation.comparisons)), 2, Metajudge())
        acted = self.answered(len(rows(evaluation.instructions)) * evaluation.samples + answered, 1)
        duels = self.judged(answered, 2, evaluation.duel_samples, judge.score_first)
        on_rules = self.judged(len(rows(evaluation.instructions)), evaluation.samples, evaluation.N, judge.score_first)

        parts = {Path(name).stem: earlier.sft for name, earlier in earlier_sfts(sft).items()} | {"checkpoint": sft}
        lessons = {name: sum(len(rows(path)) for path in part.examples) for name, part in parts.items()}
        lessons["checkpoint"] += round(plan.eft_yield * taught)
        trains, writes = sft.enabled and not sft.sft_delta, settings.iteration and settings.prompts.seeds
        table: list[tuple[Any, str, Generation | Training]] = [  # the first says whether the run has the stage
            (writes, "pool", self.pool()),
            (trains, "sft/eft", self.judged(round(taught / REPLIES), REPLIES, eft.N)),
            *(
                (trains, f"sft/{name}", Training(part, ((judging, lessons[name]),), part.epochs, 1))
                for name, part in parts.items()
            ),
        ]
        first = -1 if sft.enabled else 0
        for t in range(first, len(settings.iteration) + 1):
            name, own = "seed" if t < 0 else f"M{t}", t >= 0 or evaluation.seed_judges
            if t > 0:
                judges, pairs = settings.judges(t), settings.iteration[t - 1].judge_pairs
                epoch, judged = fixed_epoch("dpo", settings, t), plan.judge_yield * pairs
                sources = ((acting, round(plan.actor_yield * prompts)), (judging, round(judged * prompts)))
                exports = 1 if epoch or not dpo.held_out else dpo.epochs
                table += [
                    (True, f"iter{t}/responses", acting),
                    (judges and judge.score == "expected", f"iter{t}/scores", scoring),
                    (judges and (pairs or not judge.score_first), f"iter{t}/judgments", judging),
                    (judges and pairs, f"iter{t}/comparisons", comparing),
                    (True, f"iter{t}/checkpoint", Training(dpo, sources, epoch or dpo.epochs, exports)),
                ]
            table += [
                (own, f"evaluation/{name}/judge", measuring),
                (own and evaluation.on_rules, f"evaluation/{name}/rules", on_rules),
                (own, f"evaluation/{name}/metajudge", choosing),
                (True, f"evaluation/{name}/actor", acted),
                (t > first, f"evaluation/{name}/wins", duels),
            ]
        return {name: work for there, name, work in table if there and work.count}

    def pool(self) -> Generation:
        """Attempts at new prompts."""
        options, fill = self.settings.prompts, self.template(request_prompt(["\0"] * self.settings.prompts.shots))
        attempts = min(round(options.count / self.plan.prompts_kept), options.max_attempts)
        rounds, mean, limit = -(-attempts // options.round_attempts), self.plan.prompt_tokens, options.max_new_tokens
        return Generation(attempts, lambda: [fill(*(self.prompt() for _ in range(options.shots)))], mean, limit, rounds)

    def answered(self, prompts: int, samples: int) -> Generation:
        """Responses to prompts."""
        fill, limit = self.template([{"role": "user", "content": "\0"}]), self.settings.respond.max_new_tokens
        return Generation(prompts * samples, lambda: [fill(self.prompt())] * samples, self.plan.response_tokens, limit)

    def judged(self, prompts: int, responses: int, N: int, one_pass: bool = False) -> Generation:
        """N judgments of each of a prompt's responses; or a pass over each, which draws one token."""
        judge = self.settings.judge
        fill = self.template(judge_prompt("\0", "\0", judge.prompt_style, judge.verdict_position))

        def group() -> list[Ids]:
            prompt = self.prompt()
            return [ids for _ in range(responses) for ids in [fill(prompt, self.response())] * N]

        lengths = (1.0, 1) if one_pass else (self.plan.judgment_tokens, judge.max_new_tokens)
        return Generation(prompts * responses * N, group, *lengths)

    def compared(self, responses: int, N: int, meta: Metajudge) -> Generation:
        """The scheduled comparisons of the distinct ones of each response's N judgments."""
        plan, limit, options = self.plan, self.settings.judge.max_new_tokens, self.settings.metajudge
        fill = self.template(meta_prompt("\0", "\0", "\0", "\0", options.prompt_style, options.verdict_position))

        def pairs() -> list[tuple[int, int]]:
            """The ordered pairs; scores are normal around 3 with deviation 1."""
            distinct = max(2, sum(self.draw.random() < plan.distinct_judgments for _ in range(N)))
            judgments = [{"index": i, "score": min(max(round(self.draw.gauss(3, 1)), 0), 5)} for i in range(distinct)]
            return [(a["index"], b["index"]) for a, b in scheduled(judgments, meta, self.draw.getrandbits(32))]

        def group() -> list[Ids]:
            prompt, response = self.prompt(), self.response()
            judgments = [self.text(plan.judgment_tokens, limit) for _ in range(N)]
            return [fill(prompt, response, judgments[a], judgments[b]) for a, b in pairs()]

        number = round(responses * sum(len(pairs()) for _ in range(200)) / 200) if N > 1 else 0
        return Generation(number, group, plan.comparison_tokens, options.max_new_tokens)

    def examples(self, training: Training, number: int) -> list[Example]:
        """`number` of a training's examples."""
        sources, weights = zip(*training.sources, strict=True)
        drawn, sides = self.draw.choices(sources, weights, k=number), 2 if isinstance(training.section, Dpo) else 1
        lengths = [[self.length(source.mean, source.limit) for _ in range(sides)] for source in drawn]
        return [Example("", s.group()[0], tuple(map(self.new_ids, n))) for s, n in zip(drawn, lengths, strict=True)]

    def requests(self, work: Generation, number: int) -> list[Request]:
        """`number` of a stage's requests, each of which ends at its greatest length."""
        prompts = list[Ids]()
        while len(prompts) < number:
            prompts += work.group()
        drawn = zip(prompts, self.lengths(work, number), strict=False)  # the last group may be cut
        return [Request(str(i), ids, Sampling(1.0, 1.0, length), i) for i, (ids, length) in enumerate(drawn)]

    def length(self, mean: float, limit: int, deviations: float | None = None) -> int:
        """Tokens of a text: log-normal, cut at `limit`; drawn, or so many deviations from the mean."""
        variance = math.log1p(self.plan.spread**2)
        deviations = self.draw.gauss(0, 1) if deviations is None else deviations
        value = math.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * deviations)
        return limit if self.at_limits else max(1, min(round(value), limit))

    def lengths(self, work: Generation, number: int) -> list[int]:
        """Tokens of `number` completions, evenly over the distribution and in random order."""
        quantiles = [NormalDist().inv_cdf((i + 0.5) / number) for i in range(number)]
        return [self.length(work.mean, work.limit, z) for z in self.draw.sample(quantiles, number)]

    def text(self, mean: float, limit: int) -> Ids:
        return self.new_ids(self.length(mean, limit))

    def new_ids(self, number: int) -> Ids:
        return list(islice(self.ids, number))

    def template(self, messages: list[Message]) -> Callable[..., Ids]:
        """A prompt as a function of the texts at the places that NULs mark."""
        first, *rest = "".join(message["content"] for message in messages).split("\0")
        start, pieces = self.new_ids(CHAT_TOKENS + tokens(first)), [self.new_ids(tokens(text)) for text in rest]
        return lambda *texts: start + [i for pair in zip(texts, pieces, strict=True) for ids in pair for i in ids]


def disk(work: Generation | Training, config: LlamaConfig) -> float:
    """Bytes that a stage leaves."""
    if isinstance(work, Training):
        return 2.0 * config.parameter_count()
    token = len(str(config.vocab_size)) + 1 + CHARACTERS  # the id, a comma, the text
    return work.count * (RECORD_BYTES + token * work.mean)


def disk_needed(stages: Stages, settings: Settings, config: LlamaConfig) -> float:
    """Bytes that a run takes at most: what stages leave and, in training, two states of 12 bytes a trained parameter,
    and the exports of 2 a parameter that wait for the next state."""
    trainings = [work for work in stages.values() if isinstance(work, Training)]
    waiting = [min(work.exports, 2 + int(settings.trainer.save_every / work.steps)) for work in trainings]
    states = 2 * 12 * trained_parameters(config, settings.trainer)
    besides = states + 2 * max(waiting) * config.parameter_count() if waiting else 0
    return sum(disk(work, config) for work in stages.values()) + besides


def tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS)


def rows(path: str, read: Callable[[Path], Iterable[Any]] = read_rows) -> list[Any]:
    """The rows of a file; none of a missing one."""
    return list(read(Path(path))) if Path(path).is_file() else []
