"""The expected requests of each stage, made by the stage's own functions from texts of the expected lengths.

Texts that are there already, such as the pool's prompts and the evaluation's cases, are taken as they are. Of a long
stage a few shards are made, and the rest is taken to be like them.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo.data import Example
from evaluation.held_out import held_out_items, read_prompts
from evaluation.labelled import Case, read_cases
from evaluation.meta_agreement import comparison_items, read_comparisons
from evaluation.pairwise import Duel, duel_items
from evaluation.verifiable import read_instructions
from judging.expected import expected_items
from judging.judge import judge_items
from judging.metajudge import choose_meta_judged, metajudge_items
from judging.rubric import judge_prompt, meta_prompt
from judging.schedule import schedule_seed, scheduled
from judging.scores import distinct_judgments, distinct_responses
from model.chat import ChatFormat
from prepare.eft import eft_items, is_held_out, read_sources
from prepare.new_prompts import attempt_items
from prepare.rankings import RankedGroup, Reply
from sampling.respond import response_items
from sampling.worker import Item
from stages.files import read_jsonl
from stages.records import group_by
from stages.settings import Settings
from tools.planning.texts import Texts, single_tokens

Row = dict[str, Any]
SAMPLED_REQUESTS = 500
"""Requests of a stage that are made at least, where it has so many, in whole shards."""

DECISION_TOKENS = 5.0
"""Tokens of a verdict's line alone."""


@dataclass(frozen=True)
class Sample:
    """Some of a stage's requests, in whole shards except for the last."""

    items: list[Item]
    new_tokens: float
    """Mean tokens of a completion."""
    limit: int
    """Tokens of a completion at most."""
    requests: int
    """Requests expected of the whole stage."""


class Requests:
    """The requests of one config's stages, a method a stage."""

    def __init__(self, settings: Settings, chat: ChatFormat):
        self.settings, self.chat, self.plan = settings, chat, settings.plan
        self.texts = Texts(single_tokens(chat), settings.plan.spread, settings.seed)

    def pool(self, size: int) -> Sample:
        """`size` attempts at new prompts."""
        options, plan = self.settings.prompts, self.plan
        seeds = self.prompts(1000, options.seeds)
        kept = self.prompts(1000)
        few = self.enough(1, size)
        items = list(attempt_items(1, few, seeds, kept, self.chat, self.settings))
        return Sample(items, plan.prompt_tokens, options.max_new_tokens, size)

    def eft(self) -> Sample:
        """The seed's judgments of ranked replies."""
        eft, judge = self.settings.eft, self.settings.judge
        groups = [group for group in self.groups if not is_held_out(group, self.settings)]
        total = eft.N * sum(len(group.replies) for group in groups)
        few = groups[: self.enough(total / max(len(groups), 1), len(groups))]
        items = list(eft_items(few, self.chat, self.settings))
        return Sample(items, self.plan.seed_judgment_tokens, judge.max_new_tokens, total)

    def agreement(self, seed: bool = False) -> Sample:
        """Judgments of the labelled responses, by the seed or by a later model."""
        plan, N = self.plan, self.settings.evaluation.N
        cases = self.cases()
        few = [case.response for case in cases[: self.enough(N, len(cases))]]
        return self.scored(few, N, N * len(cases), plan.seed_judgment_tokens if seed else plan.judgment_tokens)

    def scored(self, responses: list[Row], N: int, total: int, mean: float) -> Sample:
        """What gives responses their scores: N judgments each, `mean` tokens long, or one pass over the prompt."""
        judge = self.settings.judge
        if judge.score_first:
            return Sample(list(expected_items(responses, self.chat, judge)), 1, 1, total // N)
        items = list(judge_items(responses, self.chat, self.settings, 0, N))
        return Sample(items, mean, judge.max_new_tokens, total)

    def meta_agreement(self, seed: bool = False) -> Sample:
        """Comparisons of the labelled pairs of judgments, by the seed or by a later model."""
        rows = read_comparisons(Path(self.settings.evaluation.comparisons))
        items = list(comparison_items(rows[: self.enough(2, len(rows))], self.chat, self.settings))
        new = self.plan.seed_comparison_tokens if seed else self.plan.comparison_tokens
        return Sample(items, new, self.settings.metajudge.max_new_tokens, 2 * len(rows))

    def held_out(self) -> Sample:
        """A model's answers to the held-out prompts whose files are there."""
        respond, evaluation = self.settings.respond, self.settings.evaluation
        there = {name: name if Path(name).is_file() else "" for name in (evaluation.instructions, evaluation.prompts)}
        instructions = read_instructions(Path(path)) if (path := there[evaluation.instructions]) else []
        prompts = read_prompts(Path(path)) if (path := there[evaluation.prompts]) else {}
        items = list(held_out_items(instructions, prompts, self.chat, self.settings))
        few = items[: self.enough(1, len(items))]
        return Sample(few, self.plan.response_tokens, respond.max_new_tokens, len(items))

    def duel(self) -> Sample:
        """The verdicts on a model's and the seed's answers to `evaluation.prompts`."""
        evaluation, settings = self.settings.evaluation, self.settings
        prompts = read_prompts(Path(evaluation.prompts))
        mean, limit = self.plan.response_tokens, settings.respond.max_new_tokens
        few = list(prompts.items())[: self.enough(2 * evaluation.duel_samples, len(prompts))]
        total = 2 * evaluation.duel_samples * len(prompts)
        if evaluation.protocol == "scores":
            answers = [
                {"id": f"{name}/{shown}", "prompt_id": name, "prompt": prompt, "text": self.text(mean, limit)}
                for name, prompt in few
                for shown in (0, 1)
            ]
            return self.scored(answers, evaluation.duel_samples, total, self.plan.judgment_tokens)
        duels = [Duel(name, prompt, self.text(mean, limit), self.text(mean, limit)) for name, prompt in few]
        items = list(duel_items(duels, evaluation.protocol, evaluation.duel_samples, self.chat, settings))
        return Sample(items, self.plan.judgment_tokens, settings.judge.max_new_tokens, total)

    def respond(self) -> Sample:
        """An iteration's responses."""
        respond = self.settings.respond
        prompts = self.sampled_prompts(respond.K)
        items = list(response_items(prompts, self.chat, self.settings, 1))
        total = respond.K * respond.prompts_per_iteration
        return Sample(items, self.plan.response_tokens, respond.max_new_tokens, total)

    def score(self) -> Sample:
        """An iteration's expected scores."""
        respond = self.settings.respond
        prompts = self.sampled_prompts(respond.K)
        total = round((1 + (respond.K - 1) * self.plan.distinct_responses) * respond.prompts_per_iteration)
        return self.scored(list(self.responses(prompts)), 1, total, 1)

    def judge(self) -> Sample:
        """An iteration's judgments: of all responses, or of one a prompt where responses are scored without text."""
        respond, judge = self.settings.respond, self.settings.judge
        alone = judge.score_first
        prompts = self.sampled_prompts(judge.N if alone else respond.K * judge.N * self.plan.distinct_responses)
        responses = [row for row in self.responses(prompts) if not alone or row["id"].endswith("/r0")]
        items = list(judge_items(distinct_responses(responses), self.chat, self.settings, 1, judge.N))
        judged = 1 if alone else 1 + (respond.K - 1) * self.plan.distinct_responses
        total = round(judged * judge.N * respond.prompts_per_iteration)
        return Sample(items, self.plan.judgment_tokens, judge.max_new_tokens, total)

    def metajudge(self) -> Sample:
        """An iteration's comparisons."""
        meta, N = self.settings.metajudge, self.settings.judge.N
        prompts = self.sampled_prompts(N * (min(meta.opponents, N - 1) or N - 1))
        responses = list(self.responses(prompts))
        judgments = group_by((row for response in responses for row in self.judgments(response)), "response_id")
        chosen = choose_meta_judged(responses, judgments, self.settings, 1)
        by_id = {row["id"]: row for row in responses}
        items = list(metajudge_items(chosen, by_id, judgments, self.chat, self.settings, 1))
        total = round(self.comparisons_per_prompt() * self.settings.respond.prompts_per_iteration)
        return Sample(items, self.plan.comparison_tokens, meta.max_new_tokens, total)

    def comparisons_per_prompt(self, prompts: int = 1000) -> float:
        """Mean comparisons of a prompt, over many prompts whose judgments are scores alone."""
        meta, count = self.settings.metajudge, 0
        for i in range(prompts):
            rows = [{"text": str(index), "score": self.drawn_score()} for index in range(self.settings.judge.N)]
            count += len(scheduled(distinct_judgments(rows), meta, schedule_seed(self.settings.seed, 1, str(i))))
        return count / prompts

    def drawn_score(self) -> int | None:
        """A judgment's score, normal around 3 with deviation 1; None for one without a score or equal to another."""
        draw = self.texts.draw
        return min(max(round(draw.gauss(3, 1)), 0), 5) if draw.random() < self.plan.distinct_judgments else None

    def enough(self, per_group: float, groups: int) -> int:
        """How many groups of `per_group` requests fill the shards that are made; 0 where groups have no requests."""
        size = self.settings.engine.shard_requests
        if not per_group:
            return 0
        return min(groups, -(-SAMPLED_REQUESTS // size) * math.ceil(size / per_group))

    def sampled_prompts(self, per_prompt: float) -> list[Row]:
        respond = self.settings.respond
        return self.prompts(self.enough(per_prompt, respond.prompts_per_iteration), respond.prompts)

    def prompts(self, count: int, path: str = "") -> list[Row]:
        """Prompts {id, prompt}: the file's, in the run's order, or texts as long as the plan expects."""
        if path and Path(path).is_file():
            rows = list(read_jsonl(path, ("id", "prompt")))
            random.Random(self.settings.seed).shuffle(rows)
            return rows[:count]
        texts = self.texts.texts(count, self.plan.prompt_tokens, self.settings.prompts.max_new_tokens)
        return [{"id": f"p{i}", "prompt": text} for i, text in enumerate(texts)]

    def responses(self, prompts: Iterable[Row]) -> Iterable[Row]:
        """K responses to each prompt, some of them equal to the one before."""
        respond, plan = self.settings.respond, self.plan
        for row in prompts:
            text = ""
            for sample in range(respond.K):
                if not text or self.texts.draw.random() < plan.distinct_responses:
                    text = self.text(plan.response_tokens, respond.max_new_tokens)
                ids = {"id": f"{row['id']}/r{sample}", "prompt_id": row["id"], "prompt": row["prompt"]}
                yield ids | {"text": text, "finish_reason": "stop"}

    def judgments(self, response: Row) -> Iterable[Row]:
        """N judgments of a response."""
        for index in range(self.settings.judge.N):
            text = self.text(self.plan.judgment_tokens, self.settings.judge.max_new_tokens)
            yield {"response_id": response["id"], "index": index, "text": text, "score": self.drawn_score()}

    def text(self, mean: float, limit: int) -> str:
        return self.texts.text(self.texts.length(mean, limit))

    @cached_property
    def groups(self) -> list[RankedGroup]:
        """The groups of ranked replies: those of `eft.sources`, or as many as the plan expects."""
        if all(Path(path).is_file() for path in self.settings.eft.sources):
            return read_sources(self.settings.eft)[0]
        plan = self.plan
        return [
            RankedGroup(
                f"g{i}",
                f"g{i}",
                ({"role": "prompter", "text": self.text(plan.prompt_tokens, 512)},),
                tuple(Reply(self.text(plan.reply_tokens, 2048), rank) for rank in range(plan.replies)),
            )
            for i in range(plan.groups)
        ]

    def cases(self) -> list[Case]:
        """The labelled responses: those of `evaluation.judge_cases`, or the replies that EFT sets aside."""
        if "{run}" not in self.settings.evaluation.judge_cases:
            return list(read_cases(Path(self.settings.evaluation.judge_cases)))
        held_out = [group for group in self.groups if is_held_out(group, self.settings)]
        return [
            Case(group.id, f"{group.id}/{k}", group.prompt, reply.text, -reply.rank)
            for group in held_out
            for k, reply in enumerate(group.replies)
        ]

    def pairs(self, actor: int, judge: int, count: int) -> list[Example]:
        """`count` examples of DPO, actor and judge pairs in this proportion."""
        plan, settings = self.plan, self.settings
        prompts = self.sampled_prompts(1)
        examples = []
        for i in range(count):
            prompt = prompts[i % len(prompts)]["prompt"]
            if self.texts.draw.random() * (actor + judge) < actor:
                ids = self.chat.prompt_ids([{"role": "user", "content": prompt}])
                mean, limit = plan.response_tokens, settings.respond.max_new_tokens
            else:
                ids = self.judge_ids(prompt, self.text(plan.response_tokens, settings.respond.max_new_tokens))
                mean, limit = plan.judgment_tokens, settings.judge.max_new_tokens
            examples.append(Example(str(i), ids, (self.completion(mean, limit, 1), self.completion(mean, limit, 2))))
        return examples

    def lessons(self, kinds: dict[str, int], count: int) -> list[Example]:
        """`count` examples of SFT; `kinds` are the numbers of examples that the run has of each kind."""
        plan, respond, judge, meta = self.plan, self.settings.respond, self.settings.judge, self.settings.metajudge
        prompts, draw = self.sampled_prompts(1), self.texts.draw
        examples = []
        for i, kind in enumerate(draw.choices(list(kinds), list(kinds.values()), k=count)):
            prompt = prompts[i % len(prompts)]["prompt"]
            response = self.text(plan.response_tokens, respond.max_new_tokens)
            ids, mean, limit = self.judge_ids(prompt, response), plan.judgment_tokens, judge.max_new_tokens
            if kind == "answers":
                ids = self.chat.prompt_ids([{"role": "user", "content": prompt}])
                mean, limit = plan.response_tokens, respond.max_new_tokens
            elif kind == "comparisons":
                a, b = self.texts.texts(2, plan.judgment_tokens, judge.max_new_tokens)
                messages = meta_prompt(prompt, response, a, b, meta.prompt_style, meta.verdict_position)
                ids = self.chat.prompt_ids(messages)
                mean, limit = plan.comparison_tokens, meta.max_new_tokens
            elif kind == "decisions":
                mean, limit = DECISION_TOKENS, judge.max_new_tokens
            examples.append(Example(str(i), ids, (self.completion(mean, limit, 1),)))
        return examples

    def judge_ids(self, prompt: str, response: str) -> list[int]:
        judge = self.settings.judge
        return self.chat.prompt_ids(judge_prompt(prompt, response, judge.prompt_style, judge.verdict_position))

    def completion(self, mean: float, limit: int, token: int) -> list[int]:
        return [token] * self.texts.length(mean, limit)
