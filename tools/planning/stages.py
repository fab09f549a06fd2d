"""The stages of a run in the order of `iterate.py`, with what each takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dpo.data import Example
from dpo.data import Stage as Trained
from dpo.train import fixed_epoch
from evaluation.folders import ModelMeasurements
from model.chat import ChatFormat
from model.config import LlamaConfig
from sampling.generate import cut_units
from stages.files import read_jsonl
from stages.settings import Settings
from tools.planning.inputs import named_files
from tools.planning.machine import Machine
from tools.planning.requests import Requests, Sample
from tools.planning.texts import chat_format
from tools.planning.training import SAMPLED_BATCHES, Training, training
from tools.simulation import Simulation


@dataclass(frozen=True)
class Stage:
    """A process, or one on each rank, and what it takes."""

    name: str
    kind: str
    seconds: float
    """From its start to its end."""
    ranks: int
    """How many are held so long."""
    requests: int = 0
    """Completions, or examples that training sees."""
    prompt_tokens: float = 0.0
    """Each request's whole prompt counted; of training, one epoch's."""
    computed_tokens: float = 0.0
    """Shared prefixes once."""
    new_tokens: float = 0.0
    units: int = 0
    """Work units for ranks to claim, of a round where there are several."""

    @property
    def rank_hours(self) -> float:
        return self.ranks * self.seconds / 3600


@cache
def _load(path: str) -> tuple[LlamaConfig, ChatFormat]:
    config = LlamaConfig.load(path)
    return config, chat_format(Path(path), config.vocab_size)


@dataclass
class Run:
    """A run that is planned; the methods add stages as those of `iterate.Run` run them."""

    settings: Settings
    config: LlamaConfig
    machine: Machine
    requests: Requests
    chat: ChatFormat
    ranks: int
    stages: list[Stage] = field(default_factory=list)
    simulated: dict[str, tuple[Sample, Simulation, int]] = field(default_factory=dict)
    """Of each kind of generating stage, with the units gone through: iterations are taken to be alike."""
    trainings: dict[str, Training] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """Of each iteration, expected: actor pairs and judge pairs."""
    judged_replies: int = 0

    @property
    def others(self) -> dict[str, tuple[str, str]]:
        """The models besides the seed, by the kind of stage that needs one: the setting, and the folder it names."""
        settings, found = self.settings, {}
        if settings.iteration and settings.prompts.seeds and settings.prompts.model:
            found["pool"] = ("prompts.model", settings.prompts.model)
        if self.compares and settings.metajudge.model not in ("current", "initial"):
            found["metajudge"] = ("metajudge.model", settings.metajudge.model)
        if settings.evaluation.prompts and settings.evaluation.judge not in ("current", "initial"):
            found["duel"] = ("evaluation.judge", settings.evaluation.judge)
        return found

    @property
    def compares(self) -> bool:
        """Whether an iteration wants judge pairs."""
        return any(iteration.judge_pairs for iteration in self.settings.iteration)

    def model(self, kind: str) -> tuple[LlamaConfig, ChatFormat]:
        """Of a kind of generating stage: the seed's, too, where another model is named that is not there."""
        _, path = self.others.get(kind, ("", ""))
        if not path or not (Path(path) / "config.json").is_file():
            return self.config, self.chat
        return _load(path)

    def iterate(self) -> "Run":
        """Seed -> SFT -> T iterations."""
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
        """New prompts, in rounds; each round starts an engine anew."""
        options = self.settings.prompts
        attempts = min(round(options.count / self.settings.plan.prompts_kept), options.max_attempts)
        rounds = -(-attempts // options.round_attempts)
        size = min(options.round_attempts, attempts)
        self.generation("pool", "pool", lambda: self.requests.pool(size), rounds)

    def sft(self) -> None:
        """M0's training, and before it the seed's judgments of ranked replies."""
        kinds = self.labelled()
        if self.settings.eft.sources:
            sample = self.generation("sft/eft", "eft", self.requests.eft)
            self.judged_replies = sample.requests // self.settings.eft.N
            kinds["judgments"] += round(self.settings.plan.eft_yield * self.judged_replies)
        kinds = {kind: count for kind, count in kinds.items() if count}
        if kinds:
            self.alone("sft/examples", "examples")
            count = SAMPLED_BATCHES * self.settings.sft.batch_size
            self.training("sft", 0, self.requests.lessons(kinds, count), sum(kinds.values()))

    def labelled(self) -> dict[str, int]:
        """SFT examples of each kind, those of EFT left out."""
        sft = self.settings.sft
        rows = [row for path in sft.examples if Path(path).is_file() for row in read_jsonl(path)]
        return {
            "decisions": sft.constructed_decisions,
            "judgments": sft.constructed_judgments + sum(len(row.get("responses", [0])) for row in rows),
            "comparisons": sft.constructed_comparisons,
            "answers": sft.constructed_answers,
        }

    def evaluate(self, t: int, against_seed: bool) -> None:
        """M_t, or with t = -1 the seed, on held-out data; not on files that are missing."""
        place, evaluation = ModelMeasurements.of(Path(), t), self.settings.evaluation
        seed, judges = t < 0, t >= 0 or evaluation.seed_judges
        there = {name for key, name in named_files(self.settings) if Path(name).is_file()}
        suffix = "-seed" if seed else ""
        if judges and ("{run}" in evaluation.judge_cases or evaluation.judge_cases in there):
            self.generation(str(place.agreement), "agreement" + suffix, lambda: self.requests.agreement(seed))
        if judges and evaluation.comparisons in there:
            kind = "meta-agreement" + suffix
            self.generation(str(place.meta_agreement), kind, lambda: self.requests.meta_agreement(seed))
        if there & {evaluation.instructions, evaluation.prompts}:
            self.generation(str(place.held_out), "held-out", self.requests.held_out)
        if evaluation.prompts in there and against_seed:
            self.generation(str(place.duel), "duel", self.requests.duel)

    def iteration(self, t: int) -> None:
        """Responses, judgments, comparisons, pairs, DPO."""
        settings, plan = self.settings, self.settings.plan
        wanted = settings.iteration[t - 1].judge_pairs
        self.generation(f"iter{t}/responses", "respond", self.requests.respond)
        asked = settings.judge
        if not asked.scores_file:
            if asked.score == "expected":
                self.generation(f"iter{t}/scores", "score", self.requests.score)
            if wanted or asked.score == "sampled" or asked.verdict_position == "last":
                self.generation(f"iter{t}/judgments", "judge", self.requests.judge)
            if wanted:
                self.generation(f"iter{t}/comparisons", "metajudge", self.requests.metajudge)
        self.alone(f"iter{t}/pairs", "pairs")
        prompts = settings.respond.prompts_per_iteration
        actor, judge = round(plan.actor_yield * prompts), round(plan.judge_yield * prompts) if wanted else 0
        self.pairs.append((actor, judge))
        if actor + judge:
            drawn = self.requests.pairs(actor, judge, SAMPLED_BATCHES * settings.dpo.batch_size)
            self.training("dpo", t, drawn, actor + judge)

    def generation(self, name: str, kind: str, make: Callable[[], Sample], rounds: int = 1) -> Sample:
        """A stage whose units the ranks claim: the time is that of the rank with the most units."""
        if kind not in self.simulated:
            self.simulated[kind] = self.simulate(make(), *self.model(kind))
        sample, simulation, units = self.simulated[kind]
        if not sample.items:  # `checks.empty` says so
            return sample
        scale = sample.requests / simulation.requests
        all_units = max(units, round(units * scale))
        most = -(-all_units // self.ranks) / all_units
        machine = self.machine.of(self.model(kind)[0])
        work = machine.generation_seconds(simulation.steps) * scale * most
        self.stages.append(
            Stage(
                name,
                kind,
                machine.start_seconds + rounds * (machine.load_seconds + work),
                self.ranks,
                requests=rounds * sample.requests,
                prompt_tokens=rounds * scale * simulation.prompt_tokens,
                computed_tokens=rounds * scale * simulation.computed_tokens,
                new_tokens=rounds * scale * simulation.new_tokens,
                units=all_units,
            )
        )
        return sample

    def simulate(self, sample: Sample, config: LlamaConfig, chat: ChatFormat) -> tuple[Sample, Simulation, int]:
        """The sample's units, gone through one after another, each with an empty cache as in a run."""
        simulation = Simulation()
        units = cut_units(sample.items, self.settings.engine.shard_requests)
        for unit in units:
            requests = [item.request(chat) for item in unit]
            lengths = {item.name: self.requests.texts.length(sample.new_tokens, sample.limit) for item in unit}
            simulation.run(requests, lengths, self.settings.engine, config.max_position_embeddings)
        return sample, simulation, len(units)

    def alone(self, name: str, kind: str) -> None:
        """A stage of one process and little work."""
        self.stages.append(Stage(name, kind, self.machine.start_seconds, self.ranks))

    def training(self, kind: Trained, t: int, drawn: list[Example], examples: int) -> None:
        """SFT, or an iteration's DPO: the reference's pass, updates, looks at what is held out, exports and states."""
        settings, machine = self.settings, self.machine
        section, name = (settings.sft, "sft/checkpoint") if kind == "sft" else (settings.dpo, f"iter{t}/checkpoint")
        epoch = fixed_epoch(kind, settings, t)
        found = self.trainings[name] = training(self.config, settings, section, drawn, examples, self.ranks, epoch)
        each = [machine.update_seconds(batch) for batch in found.updates]
        seconds = machine.start_seconds + machine.load_seconds * (2 if found.reference else 1)
        seconds += machine.forward_seconds(found.reference) + found.epochs * machine.forward_seconds(found.held_out)
        seconds += found.epochs * found.batches * sum(each) / max(len(each), 1)
        # A state follows all epochs but the last, or so many steps.
        size, every = self.config.parameter_count(), settings.trainer.save_every
        states = int(found.epochs * found.batches) // every if every else found.epochs - 1
        seconds += machine.disk_seconds(2 * size * found.exports + 12 * size * states)
        self.stages.append(
            Stage(
                name,
                kind,
                seconds,
                self.ranks,
                requests=examples,
                prompt_tokens=found.prompt_tokens,
                computed_tokens=found.computed_tokens,
                new_tokens=found.new_tokens,
            )
        )
