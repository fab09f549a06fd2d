"""Each stage's share of a run, and the time left at the speed of the stages that are done.

Work is measured in generated tokens; a token that is read or trained on counts by its time. Mean lengths come from
`[plan]`, so shares are estimates, and the time left becomes more accurate as the run advances.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.settings import Settings

READ = 0.3
"""Time to read a token of a prompt, as a multiple of the time to generate one."""
TRAINED = 1.5
"""Time to train on a token once, forward and backward, likewise."""


def works(settings: Settings) -> dict[str, float]:
    """The work of each stage of a run, in generated tokens, by the stage's folder."""
    work: dict[str, float] = {}
    models = [-1] * settings.sft.enabled + [0]
    for t, rule in enumerate(settings.iteration, start=1):
        work |= {f"iter{t}/{name}": tokens for name, tokens in _iteration(settings, rule.judge_pairs).items()}
        if t == 1:
            work |= {f"evaluation/{model}": _measure(settings, model) for model in models}
        work[f"iter{t}/checkpoint"] = _training(settings, rule.judge_pairs)
        work[f"evaluation/{t}"] = _measure(settings, t)
    return work or {f"evaluation/{model}": _measure(settings, model) for model in models}


def _iteration(settings: Settings, judge_pairs: bool) -> dict[str, float]:
    """The work of responses, scores, judgments and comparisons."""
    plan, judge, prompts = settings.plan, settings.judge, settings.respond.prompts_per_iteration
    responses = prompts * settings.respond.K
    read = READ * plan.response_tokens
    work = {"responses": responses * plan.response_tokens}
    if judge.scores_file:
        return work
    if judge.score == "expected":
        work["scores"] = responses * read
    judged = (prompts * judge_pairs if judge.score_first else responses) * judge.N
    if judged:
        work["judgments"] = judged * (read + plan.judgment_tokens)
    if judge_pairs:
        distinct = plan.distinct_judgments * judge.N
        opponents = min(settings.metajudge.opponents or distinct, distinct - 1)
        each = plan.comparison_tokens + 2 * READ * plan.judgment_tokens
        work["comparisons"] = prompts * distinct * opponents * each
    return work


def _training(settings: Settings, judge_pairs: bool) -> float:
    """The work of DPO; the pass of the reference model counts as a third of an epoch."""
    plan = settings.plan
    pairs = plan.actor_yield * 2 * plan.response_tokens
    if judge_pairs:
        pairs += plan.judge_yield * (plan.response_tokens + 2 * plan.judgment_tokens)
    return TRAINED * settings.respond.prompts_per_iteration * pairs * (settings.dpo.epochs + 1 / 3)


def _measure(settings: Settings, model: int) -> float:
    """The work of measuring M_t, or with model = -1 the seed."""
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
    """The stages of a run that are left, and the speed so far."""

    def __init__(self, settings: Settings):
        self.left = works(settings)
        self.whole = sum(self.left.values())
        self.tokens, self.seconds = 0.0, 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[str]:
        """A context for a running stage; gives a note on the stage's share of the run and the time left."""
        tokens, started = self.left.get(name, 0.0), time.monotonic()
        yield self._note(tokens)
        self.done(name)
        if tokens:
            self.tokens += tokens
            self.seconds += time.monotonic() - started

    def done(self, name: str) -> None:
        """Take a finished stage off the list."""
        self.left.pop(name, None)

    def _note(self, tokens: float) -> str:
        share = f"{tokens / self.whole:.0%} of the run" if tokens else ""
        if not self.tokens:
            return share
        minutes = sum(self.left.values()) * self.seconds / self.tokens / 60
        left = f"about {minutes:.0f} min left" if minutes >= 1.5 else "about a minute left"
        return ", ".join(filter(None, (share, left)))
