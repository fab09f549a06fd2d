"""Responses, judgments and settings of an iteration, made by hand."""

from types import SimpleNamespace

from judging.actor_pairs import actor_pairs as pairs_of
from judging.judge_pairs import contests, guarded, judge_pair
from judging.metajudge import choose_meta_judged
from judging.scores import seeded_draw
from stages.settings import Iteration, Judge, Metajudge, Model, Respond, Settings

CHAT = SimpleNamespace(prompt_ids=lambda messages: [1, *"".join(m["content"] for m in messages).encode(), 2])
BYTES_CHAT = SimpleNamespace(
    prompt_ids=lambda messages: [1, *"|".join(m["content"] for m in messages).encode()],
    completion_ids=lambda text: [*text.encode(), 0],
    text=lambda ids: bytes(i for i in ids if i).decode(),
    stop_ids=frozenset({0}),
)
"""A chat format whose ids are the bytes of a text, and 0 at its end."""


SAMPLED = {"finish_reason": "stop", "logprob": -1.0, "seed": 1}


def take_first(options, what):
    return options[0]


def take_last(options, what):
    return options[-1]


def response(prompt: int, sample: int, text: str, finish_reason: str = "stop") -> dict:
    row = {"id": f"p{prompt}/r{sample}", "prompt_id": f"p{prompt}", "sample": sample, "prompt": f"question {prompt}"}
    ids = [] if finish_reason == "too_long" else [100 + sample, 9]
    return SAMPLED | row | {"ids": ids, "text": text, "finish_reason": finish_reason}


def judgments(response_id: str, scores, texts=None) -> list[dict]:
    known = SAMPLED | {"response_id": response_id, "prompt_id": response_id.split("/")[0]}
    texts = texts or [f"judgment {i}" for i in range(len(scores))]
    return [
        known | {"id": f"{response_id}/j{i}", "index": i, "ids": [200 + i, 9], "text": text, "score": score,
                 "failure": None if score is not None else "missing"}
        for i, (score, text) in enumerate(zip(scores, texts, strict=True))
    ]  # fmt: skip


def make_settings(**changes) -> Settings:
    """Settings of one iteration; `changes` of its rule, of the meta-judge, and of the seed."""
    meta = {name: changes.pop(name) for name in ("max_score_gap", "elo_penalty") if name in changes}
    return Settings(
        name="test",
        model=Model(path="m"),
        respond=Respond(prompts=["p"], prompts_per_iteration=1),
        judge=Judge(prompt_style="compact", verdict_position="first"),
        metajudge=Metajudge(**meta),
        seed=changes.pop("seed", 0),
        iteration=[Iteration(**changes)],
    )


def decided(responses, judgments, battles, settings, iteration=1, spreads=None):
    """The contests of an iteration: `responses` in order, `judgments` and `battles` by response id."""
    chosen = choose_meta_judged(responses, judgments, settings, iteration, spreads)
    return contests(chosen, {row["id"]: row for row in responses}, judgments, battles, settings.metajudge)


def actor_pairs(prompts, scores, settings) -> dict:
    """The actor pair of each prompt of the first iteration, or the reason for none."""
    return pairs_of(prompts, scores, settings.iteration[0], seeded_draw(settings.seed, 1), CHAT)


def judge_pairs(contests, settings, actor_pairs=0) -> dict:
    """The judge pair of each prompt of the first iteration, or the reason for none."""
    rule, draw = settings.iteration[0], seeded_draw(settings.seed, 1)
    made = {name: judge_pair(own, settings.judge, rule, draw, CHAT) for name, own in contests.items()}
    return guarded(made, contests, actor_pairs, settings.guards, draw)
