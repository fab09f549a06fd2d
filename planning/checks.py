"""Will it fit? Each check says what is, and where it is wrong which setting to change."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from files import read_jsonl
from judging.rubric import judge_prompt, meta_prompt
from planning.stages import Run

Status = Literal["ok", "warning", "will not fit"]


@dataclass(frozen=True)
class Check:
    status: Status
    what: str
    change: str = ""
    """The setting, and what to do with it."""


def checks(run: Run) -> Iterator[Check]:
    """All of those that need no machine."""
    yield from paths(run)
    yield from context(run)
    yield from token_budget(run)
    yield from cache(run)
    yield from batches(run)
    yield from units(run)
    yield from pool(run)


def paths(run: Run) -> Iterator[Check]:
    """Files that the config names."""
    settings = run.settings
    model, sft, evaluation = settings.model, settings.sft, settings.evaluation
    if not model.prepare:
        yield _there(str(Path(model.path) / "config.json"), "model.path")
    named = [(path, "sft.examples") for path in sft.examples * sft.enabled]
    named += [(path, "eft.sources") for path in settings.eft.sources * sft.enabled]
    named += [(sft.seed_judge, "sft.seed_judge")] if sft.enabled else []
    named += [(settings.respond.prompts, "respond.prompts"), (settings.prompts.seeds, "prompts.seeds")]
    named += [(path, "prompts.evaluation") for path in settings.prompts.evaluation]
    named += [(evaluation.cases, "evaluation.cases"), (evaluation.comparisons, "evaluation.comparisons")]
    if settings.prompts.model:
        named.append((str(Path(settings.prompts.model) / "config.json"), "prompts.model"))
    if settings.metajudge.model not in ("current", "initial"):
        named.append((str(Path(settings.metajudge.model) / "config.json"), "metajudge.model"))
    for path, key in named:
        if path and "{" not in path:
            yield _there(path, key)


def _there(path: str, key: str) -> Check:
    if Path(path).is_file():
        return Check("ok", f"{path} is there")
    return Check("warning", f"{path} is not there", f"put it there or change {key}")


def context(run: Run) -> Iterator[Check]:
    """The longest requests that can come, against the model's context and the cache."""
    settings, size = run.settings, run.config.max_position_embeddings
    room = min(size, settings.engine.blocks * settings.engine.block_size)
    which = "the model's context" if room == size else "the KV cache (engine.blocks)"
    for name, (prompt, new, key) in longest(run).items():
        what = f"longest {name}: {prompt} tokens and {new} new ones, {which} has {room}"
        if prompt >= room:
            yield Check("will not fit", what, f"lower {key}")
        elif prompt + new > room:
            yield Check("warning", f"{what}: completions may be cut off", f"lower {key}")
        else:
            yield Check("ok", what)


def longest(run: Run) -> dict[str, tuple[int, int, str]]:
    """Of each kind of request: tokens of its prompt, of its completion, and what makes it long."""
    settings, texts, chat = run.settings, run.requests.texts, run.chat
    respond, judge, meta = settings.respond, settings.judge, settings.metajudge
    prompt = texts.text(longest_prompt(run))
    response, judgment = texts.text(respond.max_new_tokens), texts.text(judge.max_new_tokens)
    asked = {
        "response": [{"role": "user", "content": prompt}],
        "judgment": judge_prompt(prompt, response, judge.form, judge.verdict),
        "comparison": meta_prompt(prompt, response, judgment, judgment, meta.form, meta.verdict),
    }
    made = {
        "response": (respond.max_new_tokens, "respond.max_new_tokens"),
        "judgment": (judge.max_new_tokens, "respond.max_new_tokens"),
        "comparison": (meta.max_new_tokens, "respond.max_new_tokens or judge.max_new_tokens"),
    }
    kinds = ["response"] + ["judgment"] * (not judge.scores)
    kinds += ["comparison"] * any(iteration.judge_pairs for iteration in settings.iteration)
    return {kind: (len(chat.prompt_ids(asked[kind])), *made[kind]) for kind in kinds}


def longest_prompt(run: Run) -> int:
    """Tokens of the pool's longest prompt, or of the longest that may be made."""
    path = Path(run.settings.respond.prompts)
    if run.settings.respond.prompts and path.is_file():
        texts = (row["prompt"] for row in read_jsonl(path, ("prompt",)))
        return max(len(run.chat.tokenizer.encode(text)) for text in texts)
    return run.settings.prompts.max_new_tokens


def token_budget(run: Run) -> Iterator[Check]:
    """Pairs against a micro-batch."""
    settings, budget = run.settings, run.settings.trainer.token_budget
    for name, found in run.trainings.items():
        if found.dropped == 1:
            yield Check("will not fit", f"{name}: no example fits {budget} tokens", "raise trainer.token_budget")
        elif found.dropped > 0.02:
            what = f"{name}: {found.dropped:.0%} of the examples are over {budget} tokens and will be dropped"
            yield Check("warning", what, "raise trainer.token_budget")
    requests = longest(run)
    sides = {"response": settings.respond.max_new_tokens, "judgment": settings.judge.max_new_tokens}
    pairs = {kind: requests[kind][0] + 2 * new for kind, new in sides.items() if kind in requests}
    kind, tokens = max(pairs.items(), key=lambda item: item[1])
    what = f"longest pair, of {kind}s: {tokens} tokens, trainer.token_budget is {budget}"
    if tokens > budget:
        yield Check("warning", f"{what}: such pairs are dropped", "raise trainer.token_budget")
    else:
        yield Check("ok", what)


def cache(run: Run) -> Iterator[Check]:
    """The cache, and how many sequences run together, by what was simulated."""
    engine = run.settings.engine
    for kind, (_, simulation, _) in run.simulated.items():
        if simulation.too_long:
            share = simulation.too_long / simulation.requests
            yield Check("warning", f"{kind}: {share:.1%} of the prompts leave no room", "lower respond.max_new_tokens")
        if simulation.preemptions:
            share = simulation.preemptions / simulation.requests
            yield Check(
                "warning",
                f"{kind}: {engine.blocks} blocks are too few: {share:.1%} of the sequences give way to others",
                "raise engine.blocks or lower engine.max_sequences",
            )
    most = max(run.simulated.items(), key=lambda item: item[1][1].most_blocks, default=None)
    if most:
        used = most[1][1].most_blocks
        yield Check("ok", f"KV cache: {used} of {engine.blocks} blocks in use at most ({most[0]})")
        together = (f"{kind} {together:.0f}" for kind, together in sequences_together(run).items())
        yield Check("ok", f"sequences together, on average of at most {engine.max_sequences}: {', '.join(together)}")


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
            yield Check("warning", what, f"lower engine.unit_requests{more}")
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
