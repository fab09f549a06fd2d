"""What a config needs before its run begins: files and models, with the settings that name them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import no_config

if TYPE_CHECKING:
    from stages.settings import Settings


def named_files(settings: "Settings") -> Iterator[tuple[str, str]]:
    """Setting and name of each file that the user provides and the run reads; files that a run makes are left out."""
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
    """Setting and folder of the seed, and of each further model that the run uses."""
    models = {}
    if settings.iteration and settings.prompts.seeds and settings.prompts.model:
        models["prompts.model"] = settings.prompts.model
    if any(iteration.judge_pairs for iteration in settings.iteration):
        models["metajudge.model"] = settings.metajudge.model
    if settings.evaluation.prompts:
        models["evaluation.judge"] = settings.evaluation.judge
    further = {key: name for key, name in models.items() if name not in ("current", "initial")}
    return {"model.path": settings.model.path} | further


def missing_inputs(settings: "Settings") -> Iterator[tuple[str, str, str]]:
    """Setting, fault and what to do, of each named file and model that is not there and that the run does not make."""
    for key, name in named_files(settings):
        if not Path(name).is_file():
            advice = "make sft makes it" if key == "sft.sft_delta" else f"put the file there or change {key}"
            yield key, f"{name or 'empty'}: no such file", advice
    for key, name in named_models(settings).items():
        made = key == "model.path" and settings.model.prepare
        if not made and not (Path(name) / "config.json").is_file():
            fault, _, advice = str(no_config(Path(name))).partition("; ")
            yield key, fault, advice.replace("point model.path", f"point {key}")
