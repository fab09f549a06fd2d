"""Will it fit? Each check says what is, and where it is wrong which setting to change."""

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
from tools.planning.inputs import named_files
from tools.planning.stages import Run

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
"""What makes a stage's requests shorter."""


@dataclass(frozen=True)
class Check:
    status: Status
    what: str
    change: str = ""
    """The setting, and what to do with it."""


def checks(run: Run) -> Iterator[Check]:
    """All of those that need no machine."""
    yield from paths(run)
    yield from other_models(run)
    yield from empty(run)
    yield from context(run)
    yield from tokens_per_microbatch(run)
    yield from cache(run)
    yield from batches(run)
    yield from units(run)
    yield from pool(run)


def paths(run: Run) -> Iterator[Check]:
    """Files that the config names."""
    model = run.settings.model
    if not model.prepare:
        yield _there(str(Path(model.path) / "config.json"), "model.path")
    for key, path in named_files(run.settings):
        yield _there(path, key)
    for key, path in run.others.values():
        yield _there(str(Path(path) / "config.json"), key)


def _there(path: str, key: str) -> Check:
    if Path(path).is_file():
        return Check("ok", f"{path} is there")
    return Check("warning", f"{path or key} is not there", f"put it there or change {key}")


def other_models(run: Run) -> Iterator[Check]:
    """Models besides the seed: of one that is not there nothing is known, on a CPU not how fast it is."""
    for kind, (key, path) in run.others.items():
        config, _ = run.model(kind)
        if config is run.config:
            yield Check("warning", f"{key}: {path} is not there and is counted as if it were the seed", "put it there")
        elif run.machine.of(config) is run.machine:
            yield Check("warning", f"{key}: {path} was not measured and is taken to be as fast as the seed")
        else:
            yield Check("ok", f"{key}: {path} has {config.parameter_count() / 1e9:.2f} billion parameters")


def empty(run: Run) -> Iterator[Check]:
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
            what = f"{kind}: what evaluation.judge_cases names is not known before the run: it is not counted"
            yield Check("warning", what, "change evaluation.judge_cases, or eft.held_out where that sets them aside")


def context(run: Run) -> Iterator[Check]:
    """The longest requests that can come, against the model's context and the cache."""
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


def limits(run: Run, kind: str) -> tuple[int, int]:
    """Tokens that the context of a stage's model has, and the cache."""
    return run.model(kind)[
        0
    ].max_position_embeddings, run.settings.engine.num_kv_blocks * run.settings.engine.block_size


def shorter(run: Run, kind: str) -> str:
    """What to change where a stage's requests are too long: the cache, if that is what is short."""
    size, cached = limits(run, kind)
    return "raise engine.num_kv_blocks" if cached < size else SHORTER[kind.removesuffix("-seed")]


def longest(run: Run) -> dict[str, tuple[int, int]]:
    """Of each kind of request that iterations, and the pool, make: tokens of its prompt, and of its completion."""
    settings = run.settings
    if not settings.iteration:
        return {}
    kinds = ["pool"] * bool(settings.prompts.seeds) + ["respond"]
    kinds += ["judge"] * (not settings.judge.scores_file) + ["metajudge"] * run.compares
    return {kind: longest_request(run, kind, run.model(kind)[1]) for kind in kinds}


def longest_request(run: Run, kind: str, chat: ChatFormat) -> tuple[int, int]:
    """Tokens of its prompt in a model's format, and of its completion."""
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


def longest_prompt(run: Run, path: str) -> int:
    """Tokens of a file's longest prompt, or of the longest that may be made."""
    if path and Path(path).is_file():
        texts = (row["prompt"] for row in read_jsonl(path, ("prompt",)))
        return max((len(run.chat.tokenizer.encode(text)) for text in texts), default=0)
    return run.settings.prompts.max_new_tokens


def tokens_per_microbatch(run: Run) -> Iterator[Check]:
    """Pairs against a micro-batch."""
    budget = run.settings.trainer.tokens_per_microbatch
    for name, found in run.trainings.items():
        if found.dropped == 1:
            yield Check(
                "will not fit", f"{name}: no example fits {budget} tokens", "raise trainer.tokens_per_microbatch"
            )
        elif found.dropped > 0.02:
            what = f"{name}: {found.dropped:.0%} of the examples are over {budget} tokens and will be dropped"
            yield Check("warning", what, "raise trainer.tokens_per_microbatch")
    for name, tokens in longest_examples(run).items():
        what = f"longest {name}: {tokens} tokens, trainer.tokens_per_microbatch is {budget}"
        if tokens > budget:
            yield Check("warning", f"{what}: such examples are dropped", "raise trainer.tokens_per_microbatch")
        else:
            yield Check("ok", what)


def longest_examples(run: Run) -> dict[str, int]:
    """Tokens that the trainer counts for the longest example of each kind that the run will train on."""
    settings, found = run.settings, {}
    kinds = [("pair of responses", "respond", 2)] * bool(settings.iteration)
    kinds += [("pair of judgments", "judge", 2)] * run.compares
    if "sft/checkpoint" in run.trainings:
        kinds += [("judgment of SFT", "judge", 1)]
        kinds += [("comparison of SFT", "metajudge", 1)] * bool(settings.sft.constructed_comparisons)
    for name, kind, completions in kinds:
        prompt, new = longest_request(run, kind, run.chat)
        example = Example("", [0] * prompt, ([0] * new,) * completions)
        found[name] = example.tokens(own_prefix(example, settings.trainer))
    return found


def cache(run: Run) -> Iterator[Check]:
    """The cache, and how many sequences run together, by what was simulated."""
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
        together = (f"{kind} {together:.0f}" for kind, together in sequences_together(run).items())
        yield Check("ok", f"sequences together, on average of at most {engine.max_num_seqs}: {', '.join(together)}")


def sequences_together(run: Run) -> dict[str, float]:
    """Tokens drawn a step: few, where the longest of a unit run on alone."""
    return {
        kind: simulation.new_tokens / max(len(simulation.steps), 1)
        for kind, (_, simulation, _) in run.simulated.items()
    }


def batches(run: Run) -> Iterator[Check]:
    """Global batches against ranks."""
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


def units(run: Run) -> Iterator[Check]:
    """Work units against ranks: who has none is idle, and so is who has none left."""
    idle = {}
    for stage in run.stages:
        if stage.units:
            rounds = -(-stage.units // run.ranks)
            idle[stage.kind] = (1 - stage.units / (rounds * run.ranks), stage.units)
    for kind, (share, count) in idle.items():
        if share > 0.2 and run.ranks > 1:
            what = f"{kind}: {count} units on {run.ranks} ranks, which idle {share:.0%} of the time"
            more = " or raise prompts.round_attempts" if kind == "pool" else ""
            yield Check("warning", what, f"lower engine.shard_requests{more}")
    if idle and all(share <= 0.2 for share, _ in idle.values()):
        yield Check("ok", "work units are enough for all ranks")


def pool(run: Run) -> Iterator[Check]:
    """Prompts against iterations."""
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
        there = sum(1 for _ in read_jsonl(settings.respond.prompts))
        what = f"pool: {there} prompts, the iterations need {wanted}"
        if there < wanted:
            yield Check("will not fit", what, "add prompts or lower respond.prompts_per_iteration")
        else:
            yield Check("ok", what)


def memory(needed: float, there: float, what: str, change: str) -> Check:
    """Bytes against a GPU's."""
    said = f"{what}: {needed / 1e9:.1f} of {there / 1e9:.0f} GB"
    return Check("ok", said) if needed <= there else Check("will not fit", said, change)


def free_disk(needed: float, there: float, folder: Path) -> Check:
    """Bytes against the disk's."""
    said = f"disk: {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free in {folder}"
    if needed <= there:
        return Check("ok", said)
    return Check("will not fit", said, "free some, or run from a folder on a larger disk")
