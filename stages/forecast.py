"""How much of a run each stage is, and how long the rest will take: tokens, at the speed of the stages that are done.

A stage's work is counted in tokens that are generated; one that is only read, or trained on, counts as the part of
that time that it takes. The means of texts come from `[plan]`, so the shares are estimates, and the time left is the
better the further the run is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.settings import Settings

READ = 0.3
"""Time of a token of a prompt, next to one that is generated."""
TRAINED = 1.5
"""Time of a token that is trained on once, forward and backward."""


def works(settings: Settings) -> dict[str, float]:
    """The tokens that each stage of a run takes, by the folder that it fills."""
    found: dict[str, float] = {}
    models = [-1] * settings.sft.enabled + [0]
    for t, rule in enumerate(settings.iteration, start=1):
        found |= {f"iter{t}/{name}": tokens for name, tokens in _iteration(settings, rule.judge_pairs).items()}
        if t == 1:
            found |= {f"evaluation/{model}": _measure(settings, model) for model in models}
        found[f"iter{t}/checkpoint"] = _training(settings, rule.judge_pairs)
        found[f"evaluation/{t}"] = _measure(settings, t)
    return found or {f"evaluation/{model}": _measure(settings, model) for model in models}


def _iteration(settings: Settings, judge_pairs: bool) -> dict[str, float]:
    """Responses, judgments and comparisons."""
    plan, judge, prompts = settings.plan, settings.judge, settings.respond.prompts_per_iteration
    responses = prompts * settings.respond.K
    read = READ * plan.response_tokens
    found = {"responses": responses * plan.response_tokens}
    if judge.scores_file:
        return found
    if judge.score == "expected":
        found["scores"] = responses * read
    judged = (prompts * judge_pairs if judge.score_first else responses) * judge.N
    if judged:
        found["judgments"] = judged * (read + plan.judgment_tokens)
    if judge_pairs:
        distinct = plan.distinct_judgments * judge.N
        opponents = min(settings.metajudge.opponents or distinct, distinct - 1)
        each = plan.comparison_tokens + 2 * READ * plan.judgment_tokens
        found["comparisons"] = prompts * distinct * opponents * each
    return found


def _training(settings: Settings, judge_pairs: bool) -> float:
    """The reference's pass counts as a third of an epoch."""
    plan = settings.plan
    pairs = plan.actor_yield * 2 * plan.response_tokens
    if judge_pairs:
        pairs += plan.judge_yield * (plan.response_tokens + 2 * plan.judgment_tokens)
    return TRAINED * settings.respond.prompts_per_iteration * pairs * (settings.dpo.epochs + 1 / 3)


def _measure(settings: Settings, model: int) -> float:
    """What a model, -1 for the seed, is measured by."""
    plan, evaluation = settings.plan, settings.evaluation
    answers, open_prompts = _rows(evaluation.instructions) + _rows(evaluation.prompts), _rows(evaluation.prompts)
    tokens = answers * plan.response_tokens
    each = plan.judgment_tokens if settings.judge.score == "sampled" else 0.0
    scored = READ * plan.response_tokens + each
    if model >= 0 or evaluation.seed_judges:
        cases = 6 * _rows(evaluation.judge_cases)  # responses a row
        tokens += cases * evaluation.N * scored
        tokens += 2 * _rows(evaluation.comparisons) * (plan.comparison_tokens + 2 * READ * plan.judgment_tokens)
    return tokens + 2 * open_prompts * evaluation.duel_samples * scored * (model >= 0)


def _rows(path: str) -> int:
    file = Path(path)
    return len(file.read_bytes().splitlines()) if path and file.is_file() else 0


class Forecast:
    """The stages of a run that are left, and how fast it has been so far."""

    def __init__(self, settings: Settings):
        self.left = works(settings)
        self.whole = sum(self.left.values())
        self.tokens, self.seconds = 0.0, 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[str]:
        """Around a stage that runs: gives what to say of it."""
        tokens, started = self.left.get(name, 0.0), time.monotonic()
        yield self._told(tokens)
        self.done(name)
        if tokens:
            self.tokens += tokens
            self.seconds += time.monotonic() - started

    def done(self, name: str) -> None:
        """A stage is there."""
        self.left.pop(name, None)

    def _told(self, tokens: float) -> str:
        """A stage's share of the run, and the time that is left with it."""
        said = f"{tokens / self.whole:.0%} of the run" if tokens else ""
        if not self.tokens:
            return said
        minutes = sum(self.left.values()) * self.seconds / self.tokens / 60
        left = f"about {minutes:.0f} min left" if minutes >= 1.5 else "about a minute left"
        return ", ".join(filter(None, (said, left)))
