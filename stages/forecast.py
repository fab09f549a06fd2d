"""Each stage's share of a run, and the time left at the speed of the stages that are done.

Work is measured in generated tokens; a token that is read or trained on counts by its time. Mean lengths come from
`[plan]`, so shares are estimates, and the time left becomes more accurate as the run advances.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.settings import Settings

READ = 0.3  # time to read a token of a prompt, as a multiple of the time to generate one
TRAINED = 1.5  # time to train on a token once, forward and backward, likewise


def works(settings: Settings) -> dict[str, float]:
    """The work of each stage of a run, in generated tokens, by the stage's folder."""
    models = [-1] * settings.sft.enabled + [0]
    measured = {f"evaluation/{model}": _measure(settings, model) for model in models}
    work: dict[str, float] = {}
    for t, rule in enumerate(settings.iteration, start=1):
        *sampled, trained = _iteration(settings, rule.judge_pairs)
        work |= {f"iter{t}/{name}": tokens for name, tokens in sampled}
        work |= measured | {f"iter{t}/{trained[0]}": trained[1], f"evaluation/{t}": _measure(settings, t)}
    return work or measured


def _iteration(settings: Settings, judge_pairs: bool) -> Iterator[tuple[str, float]]:
    """The work of responses, scores, judgments, comparisons and training."""
    plan, judge, prompts = settings.plan, settings.judge, settings.respond.prompts_per_iteration
    responses, read = prompts * settings.respond.K, READ * plan.response_tokens
    yield "responses", responses * plan.response_tokens
    if not judge.scores_file:
        if judge.score == "expected":
            yield "scores", responses * read
        if judged := (prompts * judge_pairs if judge.score_first else responses) * judge.N:
            yield "judgments", judged * (read + plan.judgment_tokens)
        if judge_pairs:
            distinct = plan.distinct_judgments * judge.N
            opponents = min(settings.metajudge.opponents or distinct, distinct - 1)
            yield "comparisons", prompts * distinct * opponents * _comparison(settings)
    pairs = plan.actor_yield * 2 * plan.response_tokens
    pairs += judge_pairs * plan.judge_yield * (plan.response_tokens + 2 * plan.judgment_tokens)
    yield "checkpoint", TRAINED * prompts * pairs * (settings.dpo.epochs + 1 / 3)  # the reference: a third of an epoch


def _comparison(settings: Settings) -> float:
    return settings.plan.comparison_tokens + 2 * READ * settings.plan.judgment_tokens


def _measure(settings: Settings, model: int) -> float:
    """The work of measuring M_t, or with model = -1 the seed."""
    plan, evaluation = settings.plan, settings.evaluation
    instructions, prompts, cases, comparisons = (
        len(Path(path).read_bytes().splitlines()) if Path(path).is_file() else 0
        for path in (evaluation.instructions, evaluation.prompts, evaluation.judge_cases, evaluation.comparisons)
    )
    scored = READ * plan.response_tokens + (plan.judgment_tokens if settings.judge.score == "sampled" else 0.0)
    tokens = (instructions + prompts) * plan.response_tokens
    if model >= 0 or evaluation.seed_judges:
        tokens += 6 * cases * evaluation.N * scored + 2 * comparisons * _comparison(settings)  # 6 responses a case
    return tokens + 2 * prompts * evaluation.duel_samples * scored * (model >= 0)


class Forecast:
    """The stages of a run that are left, and the speed so far."""

    def __init__(self, settings: Settings):
        self.left = works(settings)
        self.whole = sum(self.left.values())
        self.tokens, self.seconds = 0.0, 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[str]:
        """A context for a running stage; gives a note on the stage's share of the run and the time left."""
        tokens, started = self.left.get(name, 0.0), time.monotonic()
        notes = [f"{tokens / self.whole:.0%} of the run"] if tokens else []
        if self.tokens:
            minutes = sum(self.left.values()) * self.seconds / self.tokens / 60
            notes.append(f"about {max(minutes, 1):.0f} min left")
        yield ", ".join(notes)
        self.done(name)
        if tokens:
            self.tokens += tokens
            self.seconds += time.monotonic() - started

    def done(self, name: str) -> None:
        """Take a finished stage off the list."""
        self.left.pop(name, None)
