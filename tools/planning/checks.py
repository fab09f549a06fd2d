"""Will a run fit? Each check states a fact and, where the fact is a fault, the setting to change."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo.data import Example
from dpo.packing import own_prefix
from judging.rubric import judge_prompt, meta_prompt
from model.chat import ChatFormat
from prepare.new_prompts import request_prompt
from stages.files import read_jsonl
from tools.planning.inputs import missing_inputs
from tools.planning.stages import PlannedRun

Status = Literal["ok", "warning", "will not fit"]


SHORTER = {
    "pool": "lower prompts.shots or prompts.max_new_tokens",
    "eft": "leave long replies out of eft.sources",
    "agreement": "leave long responses out of evaluation.judge_cases, or of eft.sources where those set them aside",
    "meta-agreement": "leave long judgments out of evaluation.comparisons",
    "held-out": "lower respond.max_new_tokens, or leave long prompts out of evaluation.prompts",
    "duel": "lower respond.max_new_tokens",
    "respond": "lower respond.max_new_tokens, or leave long prompts out of the pool",
    "judge": "lower respond.max_new_tokens",
    "metajudge": "lower respond.max_new_tokens or judge.max_new_tokens",
}
"""How to make a stage's requests shorter."""


@dataclass(frozen=True)
class Check:
    status: Status
    what: str
    change: str = ""
    """What to do with which setting."""


def checks(run: PlannedRun) -> Iterator[Check]:
    """All checks that need no machine."""
    yield from paths(run)
    yield from other_models(run)
    yield from empty(run)
    yield from context(run)
    yield from tokens_per_microbatch(run)
    yield from cache(run)
    yield from batches(run)
    yield from shards(run)
    yield from pool(run)


def paths(run: PlannedRun) -> Iterator[Check]:
    """Files and models that the config names."""
    missing = [Check("warning", f"{key}: {fault}", advice) for key, fault, advice in missing_inputs(run.settings)]
    yield from missing or [Check("ok", "the files and models that the config names are there")]


def other_models(run: PlannedRun) -> Iterator[Check]:
    """Models besides the seed: the shape of one that is not there is unknown."""
    for kind, (key, path) in run.other_models.items():
        config, _ = run.model(kind)
        if config is run.config:
            yield Check("warning", f"{key}: {path} is not there and is counted as if it were the seed", "put it there")
        else:
            yield Check("ok", f"{key}: {path} has {config.parameter_count() / 1e9:.2f} billion parameters")


def empty(run: PlannedRun) -> Iterator[Check]:
    """Stages without a request."""
    for kind, (sample, _, _) in run.simulated.items():
        if sample.items:
            continue
        if kind == "eft":
            change = "lower eft.held_out or name other eft.sources"
            yield Check("will not fit", "eft: no group of ranked replies is left to learn from", change)
        elif kind == "metajudge":
            yield Check("warning", "metajudge: no two judgments to compare are expected", "raise judge.N")
        else:
            what = f"{kind}: the content of evaluation.judge_cases is unknown before the run and is not counted"
            yield Check("warning", what, "change evaluation.judge_cases, or eft.held_out where that sets them aside")


def context(run: PlannedRun) -> Iterator[Check]:
    """The longest possible requests, against the model's context and the cache."""
    for kind, (prompt, new) in longest(run).items():
        size, cached = limits(run, kind)
        room = min(size, cached)
        which = "the model's context" if room == size else "the KV cache (engine.num_kv_blocks)"
        what = f"{kind}: at most {prompt} tokens and {new} new ones, {which} has {room}"
        if prompt >= room:
            yield Check("will not fit", what, shorter(run, kind))
        elif prompt + new > room:
            yield Check("warning", f"{what}: completions may be cut off", shorter(run, kind))
        else:
            yield Check("ok", what)


def limits(run: PlannedRun, kind: str) -> tuple[int, int]:
    """Tokens that fit the context of a stage's model, and the cache."""
    engine, (config, _) = run.settings.engine, run.model(kind)
    return config.max_position_embeddings, engine.num_kv_blocks * engine.block_size


def shorter(run: PlannedRun, kind: str) -> str:
    """What to change where a stage's requests are too long: the cache if it holds less than the context."""
    size, cached = limits(run, kind)
    return "raise engine.num_kv_blocks" if cached < size else SHORTER[kind.removesuffix("-seed")]


def longest(run: PlannedRun) -> dict[str, tuple[int, int]]:
    """Tokens of prompt and completion of the longest request of each kind that the pool and the iterations make."""
    settings = run.settings
    if not settings.iteration:
        return {}
    kinds = ["pool"] * bool(settings.prompts.seeds) + ["respond"]
    kinds += ["judge"] * (not settings.judge.scores_file) + ["metajudge"] * run.compares
    return {kind: longest_request(run, kind, run.model(kind)[1]) for kind in kinds}


def longest_request(run: PlannedRun, kind: str, chat: ChatFormat) -> tuple[int, int]:
    """Tokens of the prompt, in a model's chat format, and of the completion."""
    settings, texts, options = run.settings, run.requests.texts, run.settings.prompts
    judge, meta = settings.judge, settings.metajudge
    prompt = texts.text(longest_prompt(run, settings.respond.prompts))
    response = texts.text(settings.respond.max_new_tokens)
    if kind == "pool":
        shot = texts.text(max(longest_prompt(run, options.seeds), options.max_new_tokens))
        messages, new = request_prompt([shot] * options.shots), options.max_new_tokens
    elif kind == "respond":
        messages, new = [{"role": "user", "content": prompt}], settings.respond.max_new_tokens
    elif kind == "judge":
        messages, new = judge_prompt(prompt, response, judge.prompt_style, judge.verdict_position), judge.max_new_tokens
    else:
        judgment = texts.text(judge.max_new_tokens)
        messages = meta_prompt(prompt, response, judgment, judgment, meta.prompt_style, meta.verdict_position)
        new = meta.max_new_tokens
    return len(chat.prompt_ids(messages)), new


def longest_prompt(run: PlannedRun, path: str) -> int:
    """Tokens of the longest prompt in a file, or of the longest that may be made where there is no file."""
    if path and Path(path).is_file():
        texts = (row["prompt"] for row in read_jsonl(path, ("prompt",)))
        return max((len(run.chat.tokenizer.encode(text)) for text in texts), default=0)
    return run.settings.prompts.max_new_tokens


def tokens_per_microbatch(run: PlannedRun) -> Iterator[Check]:
    """Training examples against a micro-batch."""
    limit, change = run.settings.trainer.tokens_per_microbatch, "raise trainer.tokens_per_microbatch"
    for name, work in run.trainings.items():
        if work.dropped == 1:
            yield Check("will not fit", f"{name}: no example fits {limit} tokens", change)
        elif work.dropped > 0.02:
            what = f"{name}: {work.dropped:.0%} of the examples are over {limit} tokens and will be dropped"
            yield Check("warning", what, change)
    for name, tokens in longest_examples(run).items():
        what = f"longest {name}: {tokens} tokens, trainer.tokens_per_microbatch is {limit}"
        if tokens > limit:
            yield Check("warning", f"{what}: such examples are dropped", change)
        else:
            yield Check("ok", what)


def longest_examples(run: PlannedRun) -> dict[str, int]:
    """Tokens that the trainer counts for the longest example of each kind that the run will train on."""
    settings, longest_by_name = run.settings, {}
    kinds = [("pair of responses", "respond", 2)] * bool(settings.iteration)
    kinds += [("pair of judgments", "judge", 2)] * run.compares
    if "sft/checkpoint" in run.trainings:
        kinds += [("judgment of SFT", "judge", 1)]
        kinds += [("comparison of SFT", "metajudge", 1)] * bool(settings.sft.constructed_comparisons)
    for name, kind, completions in kinds:
        prompt, new = longest_request(run, kind, run.chat)
        example = Example("", [0] * prompt, ([0] * new,) * completions)
        longest_by_name[name] = example.tokens(own_prefix(example, settings.trainer))
    return longest_by_name


def cache(run: PlannedRun) -> Iterator[Check]:
    """The cache's use in the simulation, and how many sequences run together."""
    engine = run.settings.engine
    for kind, (_, simulation, _) in run.simulated.items():
        if simulation.too_long:
            share = simulation.too_long / simulation.requests
            yield Check("warning", f"{kind}: {share:.1%} of the prompts leave no room", shorter(run, kind))
        if simulation.preemptions:
            times = simulation.preemptions / simulation.requests
            yield Check(
                "warning",
                f"{kind}: {engine.num_kv_blocks} blocks are too few: a sequence gives way {times:.2g} times on average",
                "raise engine.num_kv_blocks or lower engine.max_num_seqs",
            )
    most = max(run.simulated.items(), key=lambda item: item[1][1].most_blocks, default=None)
    if most:
        used = most[1][1].most_blocks
        yield Check("ok", f"KV cache: {used} of {engine.num_kv_blocks} blocks in use at most ({most[0]})")
        means = ", ".join(f"{kind} {mean:.0f}" for kind, mean in sequences_together(run).items())
        yield Check("ok", f"sequences together, on average, of at most {engine.max_num_seqs}: {means}")


def sequences_together(run: PlannedRun) -> dict[str, float]:
    """Tokens drawn a step, on average: few where a shard's longest sequences run on alone."""
    return {
        kind: simulation.new_tokens / max(len(simulation.steps), 1)
        for kind, (_, simulation, _) in run.simulated.items()
    }


def batches(run: PlannedRun) -> Iterator[Check]:
    """Global batches against the number of ranks."""
    trained = {name.rsplit("/")[0] for name in run.trainings}
    for section in ["sft"] * ("sft" in trained) + ["dpo"] * bool(trained - {"sft"}):
        size = getattr(run.settings, section).batch_size
        what = f"{section}: a global batch of {size} on {run.ranks} ranks"
        if size < run.ranks:
            change = f"raise {section}.batch_size or train on fewer"
            yield Check("warning", f"{what}: {run.ranks - size} of them idle", change)
        elif size % run.ranks:
            yield Check("warning", f"{what} does not divide", f"change {section}.batch_size")
        else:
            yield Check("ok", what)


def shards(run: PlannedRun) -> Iterator[Check]:
    """Shards against ranks: a rank idles where it gets fewer shards than another."""
    idle = {}
    for stage in run.stages:
        if stage.shards:
            rounds = -(-stage.shards // run.ranks)
            idle[stage.kind] = (1 - stage.shards / (rounds * run.ranks), stage.shards)
    for kind, (share, count) in idle.items():
        if share > 0.2 and run.ranks > 1:
            what = f"{kind}: {count} shards on {run.ranks} ranks, which idle {share:.0%} of the time"
            more = " or raise prompts.round_attempts" if kind == "pool" else ""
            yield Check("warning", what, f"lower engine.shard_requests{more}")
    if idle and all(share <= 0.2 for share, _ in idle.values()):
        yield Check("ok", "there are enough shards for all ranks")


def pool(run: PlannedRun) -> Iterator[Check]:
    """The pool's prompts against what the iterations need."""
    settings, options = run.settings, run.settings.prompts
    wanted = len(settings.iteration) * settings.respond.prompts_per_iteration
    if not wanted:
        return
    if settings.prompts.seeds:
        expected = round(options.max_attempts * settings.plan.prompts_kept)
        what = f"pool: {min(expected, options.count)} new prompts expected, the iterations need {wanted}"
        if expected < wanted:
            yield Check("will not fit", what, "raise prompts.max_attempts")
        else:
            yield Check("ok", what)
    elif Path(settings.respond.prompts).is_file():
        count = sum(1 for _ in read_jsonl(settings.respond.prompts))
        what = f"pool: {count} prompts, the iterations need {wanted}"
        if count < wanted:
            yield Check("will not fit", what, "add prompts or lower respond.prompts_per_iteration")
        else:
            yield Check("ok", what)


def memory(needed: float, there: float, what: str, change: str) -> Check:
    """Bytes needed against a GPU's, or a machine's, memory."""
    fact = f"{what}: {needed / 1e9:.1f} of {there / 1e9:.0f} GB"
    return Check("ok", fact) if needed <= there else Check("will not fit", fact, change)


def free_disk(needed: float, there: float, folder: Path) -> Check:
    """Bytes needed against those free on the disk."""
    fact = f"disk: {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free in {folder}"
    if needed <= there:
        return Check("ok", fact)
    return Check("will not fit", fact, "free some, or run from a folder on a larger disk")
