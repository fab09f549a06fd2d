"""Each stage's share of a run, by the mean lengths of `[plan]`, and the time left at the speed of the stages done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.settings import Settings

READ = 0.3  # time to read a token of a prompt, as a multiple of the time to generate one
TRAINED = 1.5  # time to train on a token once, forward and backward, likewise


def works(settings: Settings) -> dict[str, float]:
    """The work of each stage of a run by the stage's folder, in tokens to generate, or to read or train on as long."""
    plan, judge, evaluation = settings.plan, settings.judge, settings.evaluation
    prompts, answer = settings.respond.prompts_per_iteration, plan.response_tokens
    responses, reading, distinct = prompts * settings.respond.K, READ * answer, plan.distinct_judgments * judge.N
    comparison = plan.comparison_tokens + 2 * READ * plan.judgment_tokens
    opponents = min(settings.metajudge.opponents or distinct, distinct - 1)
    instructions, open_prompts, cases, pairs_of_judgments = (
        len(Path(path).read_bytes().splitlines()) if Path(path).is_file() else 0
        for path in (evaluation.instructions, evaluation.prompts, evaluation.judge_cases, evaluation.comparisons)
    )

    def measurement(model: int) -> float:
        """The work of measuring M_t, or with model = -1 the seed; a case has about 6 responses."""
        scored = reading + plan.judgment_tokens * (judge.score == "sampled")
        work = (instructions * evaluation.samples + open_prompts) * answer
        if model >= 0 or evaluation.seed_judges:
            judged = 6 * cases + instructions * evaluation.samples * evaluation.on_rules
            work += judged * evaluation.N * scored + 2 * pairs_of_judgments * comparison
        return work + 2 * open_prompts * evaluation.duel_samples * scored * (model >= 0)

    work: dict[str, float] = {}
    first = {f"evaluation/{model}": measurement(model) for model in [-1] * settings.sft.enabled + [0]}
    for t, rule in enumerate(settings.iteration, start=1):
        work[f"iter{t}/responses"] = responses * answer
        if settings.judges(t):
            work[f"iter{t}/scores"] = responses * reading * (judge.score == "expected")
            judged = (prompts * rule.judge_pairs if judge.score_first else responses) * judge.N
            work[f"iter{t}/judgments"] = judged * (reading + plan.judgment_tokens)
            work[f"iter{t}/comparisons"] = prompts * distinct * opponents * comparison * rule.judge_pairs
        judge_pairs = plan.judge_yield * (answer + 2 * plan.judgment_tokens) * rule.judge_pairs
        epochs = settings.dpo.epochs + 1 / 3  # the pass of the reference model counts as a third of an epoch
        trained = TRAINED * prompts * (plan.actor_yield * 2 * answer + judge_pairs) * epochs
        work |= first | {f"iter{t}/checkpoint": trained, f"evaluation/{t}": measurement(t)}
    return work or first


class Forecast:
    def __init__(self, settings: Settings):
        self.left, self.tokens, self.seconds = works(settings), 0.0, 0.0
        self.whole = sum(self.left.values())

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
        self.tokens += tokens
        self.seconds += (time.monotonic() - started) * bool(tokens)

    def done(self, name: str) -> None:
        self.left.pop(name, None)
