"""A stage's key changes with every setting that the stage reads, and with no other."""

from dataclasses import fields, is_dataclass, replace

import pytest

from dpo.sft import SFT
from dpo.train import DPO
from evaluation.measure import MEASURE
from judging.expected import SCORE
from judging.judge import JUDGE
from judging.metajudge import METAJUDGE
from judging.pairs import PAIRS
from prepare.eft import EFT
from prepare.examples import EXAMPLES
from prepare.new_prompts import NEW_PROMPTS
from sampling.respond import RESPOND
from stages import files
from stages.settings import Eft, Evaluation, Iteration, Model, Prompts, Respond, Settings, Training
from stages.stage import Stage


def of(section: str, names: str) -> set[str]:
    return {f"{section}.{name}" for name in names.split()}


SAMPLING = " temperature top_p max_new_tokens "
PROMPT = " prompt_style verdict_position "
TRAINED = " ".join(field.name for field in fields(Training))
MACHINE = {"seed"} | of("model", "dtype attention")
SHARDS = " shard_requests shard_multiple"
ENGINE = "threads block_size num_kv_blocks max_num_batched_tokens max_num_seqs cuda_graphs" + SHARDS
GENERATION = MACHINE | of("engine", ENGINE)
JUDGMENT = GENERATION | of("judge", SAMPLING + PROMPT + "fractions min_new_tokens")
META = GENERATION | of("metajudge", SAMPLING + PROMPT) | of("guards", "hide_scores")
FILTER = "count max_attempts round_attempts min_words max_words max_repetition max_rouge_l ngram words shots"
RULE = "rho length_control judge_pairs labels max_response_characters max_judgment_characters"
TRAINING = MACHINE | of("trainer", "tokens_per_microbatch share_prefixes compile lora_rank")

PAIRED = {"seed"} | of("metajudge", "max_score_gap elo_penalty")
PAIRED |= of("guards", "max_judge_pair_share max_score_share distinct_scores")
MEASURED = of("evaluation", "N protocol duel_samples samples")

READS: dict[Stage, set[str]] = {
    RESPOND: GENERATION | of("respond", SAMPLING + "K"),
    SCORE: GENERATION | of("judge", PROMPT + "score"),
    JUDGE: JUDGMENT | of("judge", "N score"),
    METAJUDGE: META | of("metajudge", "opponents max_score_gap"),
    PAIRS: of("iteration", RULE) | of("judge", PROMPT + "minimum_valid") | PAIRED,
    MEASURE: JUDGMENT | META | of("respond", SAMPLING) | of("judge", "score") | MEASURED,
    EFT: JUDGMENT | of("eft", "languages max_turns N held_out order downsample"),
    NEW_PROMPTS: GENERATION | of("prompts", SAMPLING + FILTER + " generated_shots"),
    EXAMPLES: of("sft", "verdict_token_weight answer_weight")
    | of("judge", PROMPT + "fractions")
    | of("metajudge", PROMPT)
    | of("guards", "hide_scores"),
    SFT: TRAINING | of("sft", TRAINED + " curriculum"),
    DPO: TRAINING | of("dpo", TRAINED + " beta nll_weight") | of("iteration", "epoch"),
}
FILES = {"eft.sources", "prompts.seeds", "prompts.evaluation", "sft.examples"}  # which count by their content


def changed(value):
    """Another value of the same type; for a key it need not make sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "more"] if isinstance(value, list) else 1 if value is None else f"{value} more"


def varied(settings: Settings) -> dict[str, Settings]:
    """The settings with each field changed in turn, also those of the iteration."""
    variants = {"seed": replace(settings, seed=settings.seed + 1)}
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        section = value[0] if name == "iteration" else value
        for field in fields(section) if is_dataclass(section) else ():
            variant = replace(section, **{field.name: changed(getattr(section, field.name))})
            new = [variant] if name == "iteration" else variant
            variants[f"{name}.{field.name}"] = replace(settings, **{name: new})
    return variants


SETTINGS = Settings("test", Model("m"), Respond(prompts_per_iteration=1), [Iteration()])


@pytest.mark.parametrize("stage", READS, ids=lambda stage: stage.name)
def test_a_key_depends_on_what_its_stage_reads(tmp_path, stage):
    file, other_file = tmp_path / "file", tmp_path / "other"
    file.write_text("anything")
    other_file.write_text("something else")
    evaluation = Evaluation(instructions=str(file), prompts=str(file))
    sources = {"eft": Eft(sources=[str(file)]), "prompts": Prompts(seeds=str(file)), "evaluation": evaluation}
    settings, inputs = replace(SETTINGS, **sources), dict.fromkeys(stage.inputs, file)

    def key(settings: Settings, t: int = 1, **changes) -> str:
        return stage.job(settings, tmp_path, t, **inputs | changes).key

    before = key(settings)
    variants = {name: variant for name, variant in varied(settings).items() if name not in FILES}
    assert {name for name, variant in variants.items() if key(variant) != before} == READS[stage]
    for name in (*stage.inputs, *stage.optional):
        assert key(settings, **{name: other_file}) != before, name
    if stage.per_iteration and stage is not DPO:
        assert key(replace(settings, iteration=[Iteration()] * 2), 2) != before


def test_a_key_depends_on_the_content_of_files_that_the_config_names(tmp_path):
    a, b, c = (str(tmp_path / name) for name in "abc")
    for path, text in ((a, "same"), (b, "same"), (c, "other")):
        files.write_atomic(path, text)

    def keys(path: str) -> list[str]:
        prompts = (Prompts(seeds=path), Prompts(seeds=a, evaluation=[path]))
        jobs = [(EFT, {"eft": Eft(sources=[path])}), *((NEW_PROMPTS, {"prompts": own}) for own in prompts)]
        return [stage.job(replace(SETTINGS, **own), tmp_path, model=a).key for stage, own in jobs]

    assert keys(a) == keys(b)
    assert not set(keys(a)) & set(keys(c))
