"""The stages of a planned run, in the order of `iterate.py`, with the work and time of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dpo.data import Example
from dpo.data import Objective as Trained
from dpo.train import fixed_epoch
from evaluation.folders import ModelMeasurements
from model.chat import ChatFormat
from model.config import LlamaConfig
from stages.files import read_jsonl
from stages.settings import Settings
from stages.shards import cut_shards
from tools.planning.inputs import named_files, named_models
from tools.planning.requests import Requests, Sample
from tools.planning.roofline import Roofline
from tools.planning.texts import chat_format
from tools.planning.training import SAMPLED_BATCHES, TrainingWork, training_work
from tools.simulation import Simulation


@dataclass(frozen=True)
class PlannedStage:
    """A stage, on one rank or all of them, and what it takes."""

    name: str
    kind: str
    seconds: float
    """From its start to its end."""
    ranks: int
    """Ranks that are held for these seconds."""
    requests: int = 0
    """Completions, or examples that training sees."""
    prompt_tokens: float = 0.0
    """The whole prompts of all requests; of training, one epoch's."""
    computed_tokens: float = 0.0
    """Tokens computed: shared prefixes count once."""
    new_tokens: float = 0.0
    shards: int = 0
    """Shards for ranks to claim; where a stage has rounds, of one round."""

    @property
    def rank_hours(self) -> float:
        return self.ranks * self.seconds / 3600


@cache
def _load(path: str) -> tuple[LlamaConfig, ChatFormat]:
    config = LlamaConfig.load(path)
    return config, chat_format(Path(path), config.vocab_size)


@dataclass
class PlannedRun:
    """A run's stages, with what each takes; the methods add stages as those of `iterate.Run` run them."""

    settings: Settings
    config: LlamaConfig
    machine: Roofline
    requests: Requests
    chat: ChatFormat
    ranks: int
    stages: list[PlannedStage] = field(default_factory=list)
    simulated: dict[str, tuple[Sample, Simulation, int]] = field(default_factory=dict)
    """The sample, simulation and number of shards of each kind of generating stage: all iterations share them."""
    trainings: dict[str, TrainingWork] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """Actor pairs and judge pairs expected of each iteration."""

    @property
    def other_models(self) -> dict[str, tuple[str, str]]:
        """The models besides the seed by the kind of stage that uses each: the setting, and the folder it names."""
        kinds = {"prompts.model": "pool", "metajudge.model": "metajudge", "evaluation.judge": "duel"}
        return {kinds[key]: (key, path) for key, path in named_models(self.settings).items() if key in kinds}

    @property
    def compares(self) -> bool:
        """Whether an iteration wants judge pairs."""
        return any(iteration.judge_pairs for iteration in self.settings.iteration)

    def model(self, kind: str) -> tuple[LlamaConfig, ChatFormat]:
        """Config and chat format of a generating stage's model; the seed's where the model is not there."""
        _, path = self.other_models.get(kind, ("", ""))
        if not path or not (Path(path) / "config.json").is_file():
            return self.config, self.chat
        return _load(path)

    def iterate(self) -> "PlannedRun":
        """Add all stages: seed -> SFT -> T iterations."""
        settings = self.settings
        if settings.iteration and settings.prompts.seeds:
            self.pool()
        if settings.sft.enabled and not settings.sft.sft_delta:
            self.sft()
        first = -1 if settings.sft.enabled else 0
        for t in range(first, len(settings.iteration) + 1):
            if t > 0:
                self.iteration(t)
            self.evaluate(t, against_seed=t > first)
        return self

    def pool(self) -> None:
        """New prompts, in rounds; each round loads the model again."""
        options = self.settings.prompts
        attempts = min(round(options.count / self.settings.plan.prompts_kept), options.max_attempts)
        rounds = -(-attempts // options.round_attempts)
        size = min(options.round_attempts, attempts)
        self.generation("pool", "pool", lambda: self.requests.pool(size), rounds)

    def sft(self) -> None:
        """The seed's judgments of ranked replies, then M0's training."""
        kinds = self.labelled()
        if self.settings.eft.sources:
            sample = self.generation("sft/eft", "eft", self.requests.eft)
            judged_replies = sample.requests // self.settings.eft.N
            kinds["judgments"] += round(self.settings.plan.eft_yield * judged_replies)
        kinds = {kind: count for kind, count in kinds.items() if count}
        if kinds:
            self.alone("sft/examples", "examples")
            count = SAMPLED_BATCHES * self.settings.sft.batch_size
            self.training("sft", 0, self.requests.lessons(kinds, count), sum(kinds.values()))

    def labelled(self) -> dict[str, int]:
        """SFT examples of each kind, without those of EFT."""
        sft = self.settings.sft
        rows = [row for path in sft.examples if Path(path).is_file() for row in read_jsonl(path)]
        return {
            "decisions": sft.constructed_decisions,
            "judgments": sft.constructed_judgments + sum(len(row.get("responses", [0])) for row in rows),
            "comparisons": sft.constructed_comparisons,
            "answers": sft.constructed_answers,
        }

    def evaluate(self, t: int, against_seed: bool) -> None:
        """M_t, or with t = -1 the seed, on held-out data; files that are missing are left out."""
        measurements, evaluation = ModelMeasurements.of(Path(), t), self.settings.evaluation
        seed, judges = t < 0, t >= 0 or evaluation.seed_judges
        there = {name for key, name in named_files(self.settings) if Path(name).is_file()}
        suffix = "-seed" if seed else ""
        if judges and ("{run}" in evaluation.judge_cases or evaluation.judge_cases in there):
            self.generation(str(measurements.agreement), "agreement" + suffix, lambda: self.requests.agreement(seed))
        if judges and evaluation.comparisons in there:
            kind = "meta-agreement" + suffix
            self.generation(str(measurements.meta_agreement), kind, lambda: self.requests.meta_agreement(seed))
        if there & {evaluation.instructions, evaluation.prompts}:
            self.generation(str(measurements.held_out), "held-out", self.requests.held_out)
        if evaluation.prompts in there and against_seed:
            self.generation(str(measurements.duel), "duel", self.requests.duel)

    def iteration(self, t: int) -> None:
        """Responses, judgments, comparisons, pairs, DPO."""
        settings, plan = self.settings, self.settings.plan
        wanted = settings.iteration[t - 1].judge_pairs
        self.generation(f"iter{t}/responses", "respond", self.requests.respond)
        judge = settings.judge
        if not judge.scores_file:
            if judge.score == "expected":
                self.generation(f"iter{t}/scores", "score", self.requests.score)
            if wanted or not judge.score_first:
                self.generation(f"iter{t}/judgments", "judge", self.requests.judge)
            if wanted:
                self.generation(f"iter{t}/comparisons", "metajudge", self.requests.metajudge)
        self.alone(f"iter{t}/pairs", "pairs")
        prompts = settings.respond.prompts_per_iteration
        actor_pairs, judge_pairs = round(plan.actor_yield * prompts), round(plan.judge_yield * prompts) * wanted
        self.pairs.append((actor_pairs, judge_pairs))
        if actor_pairs + judge_pairs:
            drawn = self.requests.pairs(actor_pairs, judge_pairs, SAMPLED_BATCHES * settings.dpo.batch_size)
            self.training("dpo", t, drawn, actor_pairs + judge_pairs)

    def generation(self, name: str, kind: str, make: Callable[[], Sample], rounds: int = 1) -> Sample:
        """A stage whose shards the ranks claim: its time is that of the rank with the most shards."""
        if kind not in self.simulated:
            self.simulated[kind] = self.simulate(make(), *self.model(kind))
        sample, simulation, sampled_shards = self.simulated[kind]
        if not sample.items:  # `checks.empty` reports it
            return sample
        scale = sample.requests / simulation.requests
        shards = max(sampled_shards, round(sampled_shards * scale))
        most = -(-shards // self.ranks) / shards
        machine = self.machine.of(self.model(kind)[0])
        work = machine.generation_seconds(simulation.steps) * scale * most
        self.stages.append(
            PlannedStage(
                name,
                kind,
                machine.start_seconds + rounds * (machine.load_seconds + work),
                self.ranks,
                requests=rounds * sample.requests,
                prompt_tokens=rounds * scale * simulation.prompt_tokens,
                computed_tokens=rounds * scale * simulation.computed_tokens,
                new_tokens=rounds * scale * simulation.new_tokens,
                shards=shards,
            )
        )
        return sample

    def simulate(self, sample: Sample, config: LlamaConfig, chat: ChatFormat) -> tuple[Sample, Simulation, int]:
        """The sample's shards simulated one after another, each with an empty cache as in a run."""
        simulation = Simulation()
        shards = cut_shards(sample.items, self.settings.engine.shard_requests)
        for shard in shards:
            requests = [item.request(chat) for item in shard]
            lengths = {item.name: self.requests.texts.length(sample.new_tokens, sample.limit) for item in shard}
            simulation.run(requests, lengths, self.settings.engine, config.max_position_embeddings)
        return sample, simulation, len(shards)

    def alone(self, name: str, kind: str) -> None:
        """A stage of one process and little work."""
        self.stages.append(PlannedStage(name, kind, self.machine.start_seconds, self.ranks))

    def training(self, kind: Trained, t: int, drawn: list[Example], examples: int) -> None:
        """SFT, or an iteration's DPO: the reference's pass, updates, held-out evaluations, exports and states."""
        settings, machine = self.settings, self.machine
        section, name = (settings.sft, "sft/checkpoint") if kind == "sft" else (settings.dpo, f"iter{t}/checkpoint")
        epoch = fixed_epoch(kind, settings, t)
        work = self.trainings[name] = training_work(self.config, settings, section, drawn, examples, self.ranks, epoch)
        each = [machine.update_seconds(batch) for batch in work.updates]
        seconds = machine.start_seconds + machine.load_seconds * (2 if work.reference else 1)
        seconds += machine.forward_seconds(work.reference) + work.epochs * machine.forward_seconds(work.held_out)
        seconds += work.epochs * work.batches * sum(each) / max(len(each), 1)
        # A state is written every `save_every` steps, or after all epochs but the last.
        size, every = self.config.parameter_count(), settings.trainer.save_every
        states = int(work.epochs * work.batches) // every if every else work.epochs - 1
        seconds += machine.disk_seconds(2 * size * work.exports + 12 * size * states)
        self.stages.append(
            PlannedStage(
                name,
                kind,
                seconds,
                self.ranks,
                requests=examples,
                prompt_tokens=work.prompt_tokens,
                computed_tokens=work.computed_tokens,
                new_tokens=work.new_tokens,
            )
        )
