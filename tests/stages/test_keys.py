"""A stage's key changes with every setting that the stage reads, and with none that it does not.

A key that forgets a setting has stale output used again; one that knows too much has days of work done twice.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from evaluation.agreement import agreement_key
from evaluation.duel import duel_key
from evaluation.held_out import held_out_key
from evaluation.meta_agreement import meta_agreement_key
from judging.judge import judge_key
from judging.metajudge import metajudge_key
from judging.pairs import Sources, pairs_key
from prepare.eft import eft_key, judgments_key
from prepare.new_prompts import prompts_key
from sampling.generate import respond_key
from stages.settings import Eft, Evaluation, Iteration, Model, Prompts, Respond, Settings

SAMPLING = {"temperature", "top_p", "max_new_tokens"}
ENGINE = {"threads", "block_size", "num_kv_blocks", "max_num_batched_tokens", "max_num_seqs", "cuda_graphs", "shard_requests"}
GENERATION = {f"engine.{name}" for name in ENGINE} | {"seed", "model.dtype", "model.attention"}


def of(section: str, names: set[str]) -> set[str]:
    return {f"{section}.{name}" for name in names}


JUDGMENT = of("judge", SAMPLING | {"form", "verdict", "fractions"})
META = of("metajudge", SAMPLING | {"form", "verdict"})
WHICH_GROUPS = of("eft", {"languages", "max_turns", "N", "held_out"})
FILTER = {"count", "max_attempts", "round_attempts", "min_words", "max_words", "max_repetition", "max_rouge_l"}
FILTER |= {"ngram", "words", "shots", "generated_shots"}
RULE = {"rho", "length_control", "judge_pairs", "max_response_characters", "max_judgment_characters"}

KEYS: dict[str, tuple[Callable[[Settings, Path], str], set[str]]] = {
    "respond": (lambda s, f: respond_key(s, f, f, 1), GENERATION | of("respond", SAMPLING | {"K"})),
    "judge": (lambda s, f: judge_key(s, f, f, 1), GENERATION | JUDGMENT | {"judge.N", "judge.score"}),
    "metajudge": (
        lambda s, f: metajudge_key(s, f, Sources(f, f), 1),
        GENERATION | META | of("metajudge", {"opponents", "max_score_gap"}),
    ),
    "pairs": (
        lambda s, f: pairs_key(s, 1, f, Sources(f, f, comparisons=f)),
        of("iteration", RULE)
        | {"seed", "judge.prompt_style", "judge.verdict", "judge.minimum_valid"}
        | of("metajudge", {"max_score_gap", "elo_penalty"}),
    ),
    "agreement": (lambda s, f: agreement_key(s, f, f, 1), GENERATION | JUDGMENT | {"judge.score"}),
    "held_out": (held_out_key, GENERATION | of("respond", SAMPLING)),
    "duel": (
        lambda s, f: duel_key(s, f, f, f),
        GENERATION | JUDGMENT | {"judge.score"} | of("evaluation", {"way", "duel_samples"}),
    ),
    "meta_agreement": (lambda s, f: meta_agreement_key(s, f, f), GENERATION | META | {"judge.verdict"}),
    "eft judgments": (judgments_key, GENERATION | JUDGMENT | WHICH_GROUPS),
    "eft": (eft_key, GENERATION | JUDGMENT | WHICH_GROUPS | of("eft", {"order", "downsample"})),
    "prompts": (prompts_key, GENERATION | of("prompts", SAMPLING | FILTER)),
}


def changed(value):
    """Another value of the same kind; a key does not ask whether it makes sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    return 1 if value is None else f"{value} more"


def varied(settings: Settings) -> dict[str, Settings]:
    """The settings with each field changed in turn; of the iteration that the stage is of, too."""
    found = {"seed": replace(settings, seed=settings.seed + 1)}
    for section in fields(settings):
        value = getattr(settings, section.name)
        if section.name == "iteration":
            for field in fields(Iteration):
                rule = replace(value[0], **{field.name: changed(getattr(value[0], field.name))})
                found[f"iteration.{field.name}"] = replace(settings, iteration=[rule])
        elif is_dataclass(value):
            for field in fields(value):
                other = replace(value, **{field.name: changed(getattr(value, field.name))})
                found[f"{section.name}.{field.name}"] = replace(settings, **{section.name: other})
    return found


@pytest.mark.parametrize("name", KEYS)
def test_a_key_knows_what_its_stage_reads(tmp_path, name):
    file = tmp_path / "file"
    file.write_text("anything")
    settings = Settings(
        name="test",
        model=Model(path="m"),
        respond=Respond(prompts_per_iteration=1),
        eft=Eft(sources=[str(file)]),
        prompts=Prompts(seeds=str(file)),
        evaluation=Evaluation(instructions=str(file), prompts=str(file)),
        iteration=[Iteration()],
    )
    key, expected = KEYS[name]
    files = (
        "eft.sources",
        "prompts.seeds",
        "prompts.evaluation",
        "evaluation.instructions",
        "evaluation.prompts",
    )  # they count by content, which the tests below change
    before = key(settings, file)
    seen = {field for field, other in varied(settings).items() if field not in files and key(other, file) != before}
    assert seen == expected
    other = tmp_path / "other"
    other.write_text("something else")
    assert key(settings, other) != before


def test_the_sources_of_eft_and_prompts_count_by_content(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    settings = Settings(
        name="test", model=Model(path="m"), respond=Respond(prompts_per_iteration=1), iteration=[Iteration()]
    )

    def keys(name: str) -> tuple[str, str, str]:
        path = str(tmp_path / name)
        eft = replace(settings, eft=Eft(sources=[path]))
        seeded = replace(settings, prompts=Prompts(seeds=path))
        evaluated = replace(settings, prompts=Prompts(seeds=str(tmp_path / "a"), evaluation=[path]))
        model = tmp_path / "a"
        return eft_key(eft, model), prompts_key(seeded, model), prompts_key(evaluated, model)

    assert keys("a") == keys("b")
    assert not set(keys("a")) & set(keys("c"))
