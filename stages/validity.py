"""What the settings of a run may be: values in their range, and what only makes sense together."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from stages.files import UserError

if TYPE_CHECKING:
    from stages.settings import Settings


def check(settings: "Settings", path: Path) -> None:
    """Raise `UserError` naming the config, the key and what to do, where a value can't be meant."""
    positive = {
        "nproc_per_node": settings.nproc_per_node,
        "respond.K": settings.respond.K,
        "respond.prompts_per_iteration": settings.respond.prompts_per_iteration,
        "judge.N": settings.judge.N,
        "judge.minimum_valid": settings.judge.minimum_valid,
        "eft.N": settings.eft.N,
        "eft.max_turns": settings.eft.max_turns,
        "prompts.count": settings.prompts.count,
        "prompts.max_attempts": settings.prompts.max_attempts,
        "prompts.round_attempts": settings.prompts.round_attempts,
        "prompts.shots": settings.prompts.shots,
        "prompts.ngram": settings.prompts.ngram,
        "evaluation.N": settings.evaluation.N,
        "evaluation.duel_N": settings.evaluation.duel_N,
        "sft.batch_size": settings.sft.batch_size,
        "sft.epochs": settings.sft.epochs,
        "dpo.batch_size": settings.dpo.batch_size,
        "dpo.epochs": settings.dpo.epochs,
        "trainer.token_budget": settings.trainer.token_budget,
    } | {
        f"engine.{key}": value
        for key, value in dataclasses.asdict(settings.engine).items()
        if not isinstance(value, bool)
    }
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"{path}: {key} is {value}; it must be at least 1")
    shares = {f"iteration[{i}].rho": item.rho for i, item in enumerate(settings.iteration)}
    shares |= {f"limits.{key}": value for key, value in dataclasses.asdict(settings.limits).items()}
    shares |= {"prompts.max_repetition": settings.prompts.max_repetition, "eft.held_out": settings.eft.held_out}
    shares["prompts.max_rouge_l"] = settings.prompts.max_rouge_l
    for section in ("prompts", "respond", "judge", "metajudge"):
        sampling = getattr(settings, section)
        if not 0 <= sampling.temperature < math.inf:
            raise UserError(f"{path}: {section}.temperature is {sampling.temperature}; it must not be negative")
        if sampling.max_new_tokens < 1:
            raise UserError(f"{path}: {section}.max_new_tokens is {sampling.max_new_tokens}; it must be at least 1")
        shares[f"{section}.top_p"] = sampling.top_p
    training = {
        "trainer.save_every": settings.trainer.save_every,
        "trainer.evaluate_every": settings.trainer.evaluate_every,
    }
    for section in ("sft", "dpo"):
        options = getattr(settings, section)
        training |= {f"{section}.{key}": getattr(options, key) for key in ("learning_rate", "weight_decay")}
        shares[f"{section}.warmup_ratio"] = options.warmup_ratio
    for key, value in (training | {"dpo.beta": settings.dpo.beta, "dpo.nll_weight": settings.dpo.nll_weight}).items():
        if value < 0:
            raise UserError(f"{path}: {key} is {value}; it must not be negative")
    _check_training(settings, path)
    _check_judging(settings, path)
    _check_plan(settings, path)
    for key, value in (shares | {"sft.held_out": settings.sft.held_out, "dpo.held_out": settings.dpo.held_out}).items():
        if not 0 <= value <= 1:
            raise UserError(f"{path}: {key} is {value}; it must lie in [0, 1]")


def _check_training(settings: "Settings", path: Path) -> None:
    """What must lie above 0, and may be anything there."""
    positive = {f"{section}.max_grad_norm": getattr(settings, section).max_grad_norm for section in ("sft", "dpo")}
    for key, value in (positive | {"trainer.timeout_minutes": settings.trainer.timeout_minutes}).items():
        if not 0 < value < math.inf:
            raise UserError(f"{path}: {key} is {value}; it must be above 0")
    if not 0 <= settings.dpo.label_smoothing < 0.5:
        raise UserError(f"{path}: dpo.label_smoothing is {settings.dpo.label_smoothing}; it must lie in [0, 0.5)")


def _check_judging(settings: "Settings", path: Path) -> None:
    """What only makes sense together."""
    judge, meta, prompts = settings.judge, settings.metajudge, settings.prompts
    if settings.respond.prompts and prompts.seeds:
        raise UserError(f"{path}: the pool comes from respond.prompts or from prompts.seeds; set one of them")
    wanted = len(settings.iteration) * settings.respond.prompts_per_iteration
    if prompts.seeds and prompts.count < wanted:
        raise UserError(f"{path}: prompts.count is {prompts.count}, but the iterations need {wanted}")
    eft, sft = settings.eft, settings.sft
    if "{run}/sft/eft" in settings.evaluation.cases and not (
        sft.enabled and eft.sources and eft.held_out > 0 and not sft.seed_judge
    ):
        raise UserError(
            f"{path}: evaluation.cases are groups that [eft] sets aside, but nothing does; name another file"
        )
    if not 0 <= prompts.generated_shots <= prompts.shots:
        raise UserError(f"{path}: prompts.generated_shots is {prompts.generated_shots}; shots are {prompts.shots}")
    if not 1 <= prompts.min_words <= prompts.max_words:
        raise UserError(f"{path}: prompts.min_words is {prompts.min_words}; it must lie in [1, max_words]")
    if not all(phrase.strip() for phrase in prompts.words):
        raise UserError(f"{path}: prompts.words has an empty entry, which says nothing; take it out")
    if meta.opponents < 0 or meta.opponents % 2:
        raise UserError(f"{path}: metajudge.opponents is {meta.opponents}; it must be even, or 0 for all")
    if meta.max_score_gap is not None and (meta.opponents or not 0 <= meta.max_score_gap < math.inf):
        raise UserError(f"{path}: metajudge.max_score_gap must not be negative, and goes with opponents = 0 alone")
    if not 0 < meta.elo_penalty < math.inf:
        raise UserError(f"{path}: metajudge.elo_penalty is {meta.elo_penalty}; it must be above 0")
    if judge.minimum_valid > judge.N and not judge.scores_file:
        raise UserError(
            f"{path}: judge.minimum_valid is {judge.minimum_valid}, judge.N {judge.N}; none would be scored"
        )
    if judge.scores_file and judge.score == "expected":
        raise UserError(f'{path}: judge.scores_file takes the judge\'s place; leave judge.score = "expected" out')
    if judge.score == "expected" and judge.verdict == "first":
        for key in ("N", "duel_N"):
            if (value := getattr(settings.evaluation, key)) > 1:
                raise UserError(
                    f'{path}: evaluation.{key} is {value}, but judge.score = "expected" with the verdict first has one '
                    "score a response; set it to 1"
                )
    if judge.scores_file and len(settings.iteration) > 1 and "{t}" not in judge.scores_file:
        raise UserError(f"{path}: judge.scores_file is one file for several iterations; put {{t}} into its name")
    if judge.scores_file and any(iteration.judge_pairs for iteration in settings.iteration):
        raise UserError(
            f"{path}: judge.scores_file leaves no judgments to compare; set judge_pairs = false in each [[iteration]]"
        )


def _check_plan(settings: "Settings", path: Path) -> None:
    """Estimates that something could be: amounts above 0, and shares of something."""
    for key, value in dataclasses.asdict(settings.plan).items():
        share = key.endswith(("_yield", "_utilisation", "_kept")) or key.startswith("distinct_")
        if not 0 < value < math.inf and not (value == 0 and key.endswith(("_yield", "_seconds", "_milliseconds"))):
            raise UserError(f"{path}: plan.{key} is {value}; it must be above 0")
        if share and value > 1:
            raise UserError(f"{path}: plan.{key} is {value}; it is a share, at most 1")
