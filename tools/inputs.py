"""What a config needs before its run begins: files and models, with the settings that name them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.config import no_config
from stages.settings import Settings


def named_files(settings: Settings) -> list[tuple[str, str]]:
    """Setting and name of each file that the user provides and the run reads; files that a run makes are left out."""
    sft, prompts, evaluation, runs = settings.sft, settings.prompts, settings.evaluation, bool(settings.iteration)
    measured = {key: getattr(evaluation, key) for key in ("judge_cases", "comparisons", "instructions", "prompts")}
    table: list[tuple[Any, str, list[str]]] = [  # the first says whether the run reads the files
        (sft.enabled, "sft.examples", sft.examples),
        (sft.enabled, "eft.sources", settings.eft.sources),
        (sft.enabled and sft.sft_delta, "sft.sft_delta", [sft.sft_delta]),
        (runs and prompts.seeds, "prompts.seeds", [prompts.seeds]),
        (runs and prompts.seeds, "prompts.evaluation", prompts.evaluation),
        (runs and not prompts.seeds, "respond.prompts", [settings.respond.prompts]),
        *((name and "{run}" not in name, f"evaluation.{key}", [name]) for key, name in measured.items()),
    ]
    return [(key, name) for read, key, names in table if read for name in names]


def named_models(settings: Settings) -> dict[str, str]:
    """Setting and folder of the seed, and of each further model that the run uses."""
    judges, prompts = any(iteration.judge_pairs for iteration in settings.iteration), settings.prompts
    table: list[tuple[Any, str, str]] = [
        (True, "model.path", settings.model.path),
        (settings.iteration and prompts.seeds and prompts.model, "prompts.model", prompts.model),
        (judges, "metajudge.model", settings.metajudge.model),
        (settings.evaluation.prompts, "evaluation.judge", settings.evaluation.judge),
    ]
    return {key: name for used, key, name in table if used and name not in ("current", "initial")}


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
