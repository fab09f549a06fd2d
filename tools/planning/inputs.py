"""What a config needs to be there before its run begins: files and models, with the settings that name them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.settings import Settings


def named_files(settings: "Settings") -> Iterator[tuple[str, str]]:
    """Key and name of each file that the user provides and this config reads; those that a run makes are not among
    them."""
    sft, prompts = settings.sft, settings.prompts
    if sft.enabled:
        yield from (("sft.examples", name) for name in sft.examples)
        yield from (("sft.prompts", name) for name in sft.prompts)
        yield from (("sft.answers", name) for name in sft.answers)
        yield from (("eft.sources", name) for name in settings.eft.sources)
    if sft.enabled and sft.sft_delta:
        yield "sft.sft_delta", sft.sft_delta
    if settings.iteration and prompts.seeds:
        yield "prompts.seeds", prompts.seeds
        yield from (("prompts.evaluation", name) for name in prompts.evaluation)
    elif settings.iteration:
        yield "respond.prompts", settings.respond.prompts
    for key in ("judge_cases", "comparisons", "instructions", "prompts"):
        name = getattr(settings.evaluation, key)
        if name and "{run}" not in name:
            yield f"evaluation.{key}", name


def named_models(settings: "Settings") -> dict[str, str]:
    """Key and folder of the seed, and of models besides it."""
    wanted = {"model.path": settings.model.path}
    if settings.prompts.seeds and settings.prompts.model:
        wanted["prompts.model"] = settings.prompts.model
    judges = {"metajudge.model": settings.metajudge.model}
    if settings.evaluation.prompts:
        judges["evaluation.judge"] = settings.evaluation.judge
    wanted |= {key: name for key, name in judges.items() if name not in ("current", "initial")}
    return wanted
