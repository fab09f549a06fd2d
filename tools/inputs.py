"""What a config needs before its run begins: files and models, with the settings that name them."""

from collections.abc import Iterator
from pathlib import Path

from model.config import no_config
from stages.settings import Settings


def named_files(settings: Settings) -> Iterator[tuple[str, str]]:
    """Setting and name of each file that the user provides and the run reads; files that a run makes are left out."""
    sft, prompts = settings.sft, settings.prompts
    names: dict[str, list[str]] = {}
    if sft.enabled:
        names |= {"sft.examples": sft.examples, "eft.sources": settings.eft.sources}
        names["sft.sft_delta"] = [sft.sft_delta] if sft.sft_delta else []
    if settings.iteration and prompts.seeds:
        names |= {"prompts.seeds": [prompts.seeds], "prompts.evaluation": prompts.evaluation}
    elif settings.iteration:
        names["respond.prompts"] = [settings.respond.prompts]
    for key in ("judge_cases", "comparisons", "instructions", "prompts"):
        name = getattr(settings.evaluation, key)
        names[f"evaluation.{key}"] = [name] if name and "{run}" not in name else []
    return ((key, name) for key, listed in names.items() for name in listed)


def named_models(settings: Settings) -> dict[str, str]:
    """Setting and folder of the seed, and of each further model that the run uses."""
    models = {"model.path": settings.model.path}
    if settings.iteration and settings.prompts.seeds and settings.prompts.model:
        models["prompts.model"] = settings.prompts.model
    if any(iteration.judge_pairs for iteration in settings.iteration):
        models["metajudge.model"] = settings.metajudge.model
    if settings.evaluation.prompts:
        models["evaluation.judge"] = settings.evaluation.judge
    return {key: name for key, name in models.items() if name not in ("current", "initial")}


def missing_inputs(settings: Settings) -> Iterator[str]:
    """Setting, fault and what to do, of each named file and model that is not there and that the run does not make."""
    for key, name in named_files(settings):
        if not Path(name).is_file():
            advice = "make sft makes it" if key == "sft.sft_delta" else f"put the file there or change {key}"
            yield f"{key}: {name or 'empty'}: no such file; {advice}"
    for key, name in named_models(settings).items():
        made = key == "model.path" and settings.model.prepare
        if not made and not (Path(name) / "config.json").is_file():
            yield f"{key}: {no_config(Path(name))}".replace("point model.path", f"point {key}")
