"""The settings of a run: a dataclass for each section of the TOML file, with symbols named as in the paper."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from stages.command import UserError
from stages.config import Amount, Count, CountOrZero, Positive, PositiveShare, Share, Temperature, read_config

PromptStyle = Literal["full", "compact"]
VerdictPosition = Literal["first", "last"]
Matrix = Literal["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
Protocol = Literal["scores", "pairwise"]
as_dict = asdict  # a section as plain values, for keys and manifests


@dataclass(frozen=True)
class Model:
    path: str  # the seed: a Hugging Face directory (config.json, safetensors, tokenizer.json)
    prepare: str = ""  # how `prepare.seed_model` makes the seed ("smollm2-135m", ...); empty: the user brings it
    architecture: str = ""  # a folder whose config.json stands in for a missing `path` in `make plan`
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """The type of matrix products. "auto" is bfloat16 where the processor multiplies it natively, else int8 in
    generation on a CPU with VNNI, else float32. Training takes float32 in place of int8."""
    attention: Literal["triton", "sdpa"] = "triton"  # on CUDA: our kernels, or, to find faults in them, PyTorch's

    @property
    def shape(self) -> str:
        """The folder whose config.json gives the model's shape."""
        missing = not (Path(self.path) / "config.json").is_file()
        return self.architecture if self.architecture and missing else self.path


@dataclass(frozen=True)
class EngineOptions:
    threads: Count = 2
    """CPU threads; bfloat16 training depends on it. Generation runs as many processes; several ranks have one each."""
    block_size: Count = 16  # tokens in a block of the KV cache
    num_kv_blocks: Count = 4096  # a block of Llama-3-8B takes 2 MiB in bfloat16 (128 KiB a token)
    max_num_batched_tokens: Count = 2048  # tokens in a forward pass; a longer prompt is prefilled in chunks
    max_num_seqs: Count = 128  # sequences decoded together
    cuda_graphs: bool = True  # on CUDA, with `attention = "triton"`: decode with graphs; off for debugging
    shard_requests: Count = 256  # requests in a work shard at most; those of one prompt always share a shard
    shard_multiple: Count = 2  # of which the number of shards is a multiple: as many ranks have the same amount of work

    def shards(self, requests: int) -> int:
        """The number of shards that so many requests are cut into."""
        return self.shard_multiple * -(-requests // (self.shard_requests * self.shard_multiple))


@dataclass(frozen=True)
class Training:  # what SFT and DPO have in common
    epochs: Count = 1
    learning_rate: Amount = 5e-6
    batch_size: Count = 32  # examples (SFT) or pairs (DPO) a step, over all ranks
    warmup_ratio: Share = 0.1
    weight_decay: Amount = 0.0
    max_grad_norm: Positive = 1.0
    held_out: Share = 0.05  # share of the examples or pairs kept out of training


@dataclass(frozen=True)
class Sft(Training):  # of the seed, on judging and meta-judging; the held-out examples give the held-out loss
    epochs: Count = 2
    enabled: bool = True  # off: the seed itself is M0
    examples: list[str] = field(default_factory=list)
    """JSON-lines files of labelled judgments, comparisons and answers, or of prompts with scored responses
    (data/README.md); examples are taken in the order of files and lines."""
    after: list[str] = field(default_factory=list)
    """Configs whose M0, or mean of M0s, this SFT continues to train; without examples that is M0. Empty: the seed."""
    sft_delta: str = ""
    """A low-rank file of the change that SFT makes (`prepare/sft_delta.py`); M0 is the seed plus it. Empty: train."""
    verdict_token_weight: Amount = 1.0  # of a judgment's score, a comparison's winner and the score before it
    answer_weight: Amount = 1.0  # of each token of an actor's answer; all other completion tokens weigh 1
    curriculum: bool = False  # examples are taken in order, lesson by lesson, rather than shuffled


@dataclass(frozen=True)
class Eft:  # evaluation fine-tuning: judge examples from human rankings (`prepare/eft.py`), added to `sft.examples`
    sources: list[str] = field(default_factory=list)  # files of OpenAssistant's trees, or of groups of ranked replies
    languages: list[str] = field(default_factory=lambda: ["en"])  # of the messages that are kept; none: all
    max_turns: Count = 1  # user turns in a conversation at most: 1 is a first question alone
    N: Count = 4  # rounds of judgments of each group; the first whose order agrees with the humans' is kept
    order: Literal["strict", "weak"] = "weak"  # strict: better replies score higher; weak: not lower, some higher
    downsample: bool = True  # drop examples of the most frequent score, down to the number of the second most frequent
    held_out: Share = 0.25  # share of the groups set aside for measuring judges


UNSEEN = "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"


@dataclass(frozen=True)
class Prompts:  # new prompts from seed prompts (`prepare/new_prompts.py`); the new prompts are the pool
    seeds: str = ""  # a JSON-lines file of {id, prompt}; empty: the pool is `respond.prompts`
    model: str = ""  # Hugging Face directory of the model that writes prompts; empty: the run's seed
    count: Count = 20000  # prompts wanted
    max_attempts: Count = 200000  # completions sampled at most
    round_attempts: Count = 4000  # completions sampled in a round; prompts of earlier rounds serve as examples
    shots: Count = 8  # examples in a request
    generated_shots: CountOrZero = 2  # of which new prompts of earlier rounds, once there are so many
    temperature: Temperature = 0.6
    top_p: Share = 0.9
    max_new_tokens: Count = 256
    min_words: Count = 3
    max_words: Count = 150
    max_repetition: Share = 0.2  # share of repeated sequences among a prompt's three-word sequences
    max_rouge_l: Share = 0.7  # of a new prompt's ROUGE-L F-measures with each seed and kept prompt
    evaluation: list[str] = field(default_factory=list)  # files of {prompt}, which new prompts must not overlap
    ngram: Count = 8  # successive words in common that count as an overlap
    words: list[str] = field(default_factory=lambda: [*UNSEEN.split(), "go to"])
    """A prompt with one of the words, which ask for what a language model can't see or do, is dropped."""


@dataclass(frozen=True)
class Respond:
    prompts_per_iteration: Count  # no prompt is drawn twice
    prompts: list[str] = field(default_factory=list)  # the pool: files of {id, prompt}; none where `[prompts]` makes it
    K: Count = 7  # responses to each prompt
    temperature: Temperature = 0.8
    top_p: Share = 0.95
    max_new_tokens: Count = 1024


@dataclass(frozen=True)
class Judge:
    N: Count = 11  # judgments of each response
    temperature: Temperature = 0.8
    top_p: Share = 0.95
    max_new_tokens: Count = 512
    min_new_tokens: CountOrZero = 0  # a judgment ends after so many at the earliest, not at a bare verdict
    prompt_style: PromptStyle = "full"  # the paper's rubric, or a short one for small models
    verdict_position: VerdictPosition = "last"  # which line of a judgment holds the score
    fractions: bool = False  # whether a score such as 4.5 counts (the rubric forbids it; the paper accepted it)
    score: Literal["sampled", "expected"] = "sampled"
    """A response's score: the mean of its N judgments' scores (the paper), or the mean of the distribution over the
    score (`judging/expected.py`). With "expected" and the verdict first, only meta-judged responses get judgments."""
    minimum_valid: Count = 1  # a response with fewer judgments that hold a score has no score
    scores_file: str = ""
    """A JSON-lines file of {id, score, text}, a row for each response, that takes the judge's place: the scores of a
    reward model. "{run}" and "{t}" in its name are the run's folder and the iteration. A text, optional, is checked."""

    @property
    def score_first(self) -> bool:
        """Whether a response's score is read without any text before it."""
        return self.score == "expected" and self.verdict_position == "first"

    @property
    def scores_needed(self) -> int:
        """How many rows with a score a response needs to have a score itself."""
        return 1 if self.score_first else self.minimum_valid


@dataclass(frozen=True)
class Metajudge:
    temperature: Temperature = 0.8
    top_p: Share = 0.95
    max_new_tokens: Count = 512
    prompt_style: PromptStyle = "full"
    verdict_position: VerdictPosition = "last"
    model: str = "current"  # the iteration's model (the paper); "initial": M0; or a Hugging Face directory
    opponents: CountOrZero = 0  # how many others each judgment is compared with, an even number; 0: all (the paper)
    max_score_gap: Amount | None = None  # between the scores of compared judgments; none: no limit (the paper)
    elo_penalty: Positive = 0.01  # lambda of the penalty (lambda / 2) sum eps^2 that keeps Elo scores finite


@dataclass(frozen=True)
class Guards:  # against a judge that collapses in training; each is off by default, as in the paper
    max_judge_pair_share: PositiveShare = 1.0  # share of judge pairs in an iteration's pairs at most
    max_score_share: PositiveShare = 1.0  # share of the judge pairs whose chosen judgments give one score at most
    distinct_scores: bool = False  # no judge pair of two judgments with the same score
    hide_scores: bool = False  # the meta-judge reads judgments without their verdict lines, also in SFT


@dataclass(frozen=True)
class Dpo(Training):  # on the preference pairs; the held-out pairs choose the epoch by their preference accuracy
    beta: Amount = 0.1
    epochs: Count = 10
    held_out: Share = 0.1
    reference: Literal["previous", "initial"] = "previous"  # the iteration's first model (the paper), or M0
    nll_weight: Amount = 0.0  # of -log pi(chosen) a token in the loss; keeps chosen texts from becoming less likely


@dataclass(frozen=True)
class TrainerOptions:
    tokens_per_microbatch: Count = 4096  # at most; a longer pair is dropped and counted
    share_prefixes: bool = True  # compute a shared beginning once: a pair's prompt, in SFT the rubric
    activation_checkpointing: bool = False  # keep only a layer's input, and compute the layer again in backward
    compile: bool = False  # fuse each layer apart from its attention; on a CPU this needs a C++ compiler
    lora_rank: CountOrZero = 0  # r of LoRA's adapters, which are trained in place of the weights; 0: no LoRA
    lora_alpha: Positive = 16.0  # an adapter's product counts alpha / r times
    lora_targets: list[Matrix] = field(default_factory=lambda: [*get_args(Matrix)])  # the matrices with an adapter
    save_adapters: bool = False  # write the adapters for PEFT, too, into the folder `adapter` of the merged model
    shard_degree: CountOrZero = 0  # ranks that share a copy of the model, such as a node's; 0: all ranks
    reshard_after_forward: bool = True  # false: gathered weights, whole gradients stay until an update's last backward
    save_every: CountOrZero = 0  # steps between resumable states, 12 bytes a trained parameter; 0: epochs alone
    evaluate_every: CountOrZero = 0  # steps between measurements on the held-out examples; 0: epochs alone
    timeout_minutes: Positive = 30.0  # how long a rank waits for the others, as for the first to write an export
    tensorboard: bool = False  # write metrics for TensorBoard, too; needs `pip install tensorboard`


@dataclass(frozen=True)
class Iteration:
    rho: Share = 0.0  # quality tier of length control
    length_control: Literal["shortest", "balanced", "off"] = "shortest"
    """Of the best responses the shortest and of the worst the longest (the paper); those with which all the chosen ones
    together are as long as the rejected ones; or the best and the worst, with ties drawn."""
    judge_pairs: bool = True  # whether this iteration trains on judge pairs too
    labels: Literal["judge", "rules", "coin"] = "judge"
    """What says which of a pair is chosen. For experiments: "rules", code that checks the prompts' rules, an oracle in
    the judge's place; "coin", the method's pairs, each turned round or not by a coin, a control."""
    max_response_characters: Count | None = None  # an actor pair whose chosen response is longer is dropped
    max_judgment_characters: Count | None = None  # a judge pair whose chosen judgment is longer is dropped
    epoch: Count | None = None  # whose checkpoint becomes the next model; none: that with the best held-out accuracy


@dataclass(frozen=True)
class Evaluation:  # how the seed and each M_t are measured, on data that no training sees. Without a file: not at all
    judge_cases: str = ""  # a file of labelled groups or pairs; [eft] sets one aside: `{run}/sft/eft/held_out.jsonl`
    comparisons: str = ""  # pairs of judgments on which the meta-judge is measured
    N: Count = 1  # judgments of each response
    seed_judges: bool = True  # off: the seed is not measured as judge and meta-judge; it only answers
    instructions: str = ""  # prompts with rules for the answer that code can check
    samples: Count = 1  # answers to each of these
    prompts: str = ""  # open prompts {id, prompt}, whose answers are compared with the seed's answers
    judge: str = "current"  # compares answers: the model that answered; "initial": M0; or a Hugging Face directory
    protocol: Protocol = "scores"  # answers are scored alone, as in the loop; or compared, in both orders
    duel_samples: Count = 1  # judgments of each answer, or comparisons in each order

    @property
    def on_rules(self) -> bool:
        """Whether each model judges its own answers to the instructions, several of each, where code knows the best."""
        return bool(self.judge_cases and self.instructions and self.samples > 1)


@dataclass(frozen=True)
class Limits:  # limits that stop a run before training if an iteration has gone wrong; each is off by default
    parse_rate: Share = 0.0  # least share of judgments that hold a score
    actor_yield: Share = 0.0  # least share of prompts that give an actor pair
    judge_yield: Share = 0.0  # least share of prompts that give a judge pair, in iterations with judge pairs
    max_top_score_share: Share = 1.0  # greatest share of scores that are 5, the highest


@dataclass(frozen=True)
class Assumptions:  # of `make plan` and the forecast, on texts, yields and machines; no stage's output depends on it
    response_tokens: Positive = 430.0
    judgment_tokens: Positive = 180.0
    comparison_tokens: Positive = 220.0
    prompt_tokens: ClassVar[float] = 40.0  # without the chat format
    spread: Positive = 0.5  # standard deviation of the tokens in a text, divided by their mean
    ranked_replies: Count = 10500  # in all files of `eft.sources`, three to a prompt
    prompts_kept: ClassVar[float] = 0.5  # share of attempts that give a new prompt
    distinct_judgments: PositiveShare = 0.95  # share that hold a score and differ from the others of their response
    eft_yield: ClassVar[float] = 0.2  # share of judged replies that become examples
    actor_yield: Share = 0.6  # share of prompts that give an actor pair
    judge_yield: Share = 0.5  # share of prompts that give a judge pair, in an iteration with judge pairs
    product_utilisation: PositiveShare = 0.5  # share of a GPU's peak that matrix products reach in generation
    bandwidth_utilisation: PositiveShare = 0.6  # share of its memory bandwidth that reading weights and keys reaches
    training_utilisation: PositiveShare = 0.4  # share of its peak that training reaches
    step_milliseconds: Amount = 8.0  # of a generation step besides the model: scheduling and kernel launches
    network_gigabytes_per_second: Positive = 50.0  # between nodes, for each GPU
    disk_gigabytes_per_second: Positive = 1.0
    start_seconds: Amount = 30.0  # from the start of a stage's processes until they load weights


@dataclass(frozen=True)
class Settings:
    name: str
    model: Model
    respond: Respond
    iteration: list[Iteration]
    seed: int = 0
    nproc_per_node: Count = 1  # ranks that `iterate.py` starts for each stage
    engine: EngineOptions = field(default_factory=EngineOptions)
    sft: Sft = field(default_factory=Sft)
    eft: Eft = field(default_factory=Eft)
    prompts: Prompts = field(default_factory=Prompts)
    judge: Judge = field(default_factory=Judge)
    metajudge: Metajudge = field(default_factory=Metajudge)
    guards: Guards = field(default_factory=Guards)
    dpo: Dpo = field(default_factory=Dpo)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    evaluation: Evaluation = field(default_factory=Evaluation)
    limits: Limits = field(default_factory=Limits)
    plan: Assumptions = field(default_factory=Assumptions)

    def judges(self, t: int) -> bool:
        """Whether the model judges in iteration t, rather than that a file or code gives the scores."""
        return not self.judge.scores_file and self.iteration[t - 1].labels != "rules"


def load_settings(path: Path | str) -> Settings:
    """Read a TOML config, and check settings that depend on one another. Raises `UserError` naming file and key."""
    settings = read_config(Settings, Path(path))
    eft, sft, judge, meta, prompts = settings.eft, settings.sft, settings.judge, settings.metajudge, settings.prompts
    respond, evaluation, iterations = settings.respond, settings.evaluation, settings.iteration
    trainer, scores, needed = settings.trainer, judge.scores_file, len(iterations) * respond.prompts_per_iteration
    sets_aside = sft.enabled and eft.sources and eft.held_out > 0 and not sft.sft_delta
    own_cases, scored = "{run}/sft/eft" in evaluation.judge_cases, evaluation.protocol == "scores"
    samples, last = max(evaluation.N, evaluation.duel_samples * scored), settings.dpo.epochs
    late = [f"iteration[{t}].epoch is {rule.epoch}" for t, rule in enumerate(iterations) if (rule.epoch or 0) > last]
    judges, same_file = any(rule.judge_pairs for rule in iterations), len(iterations) > 1 and "{t}" not in scores
    by_rules = [rule for rule in iterations if rule.labels == "rules"]
    untaught = any(rule.judge_pairs for rule in by_rules)
    alone = respond.K == 1 and not all(rule.judge_pairs for rule in iterations)
    off = any(rule.rho and rule.length_control == "off" for rule in iterations)
    unvaried = 'with score = "expected" and the verdict first, no score varies'
    rules: list[tuple[Any, str]] = [
        (respond.prompts and prompts.seeds, "the pool comes from respond.prompts or from prompts.seeds; set one"),
        (prompts.model and not prompts.seeds, "prompts.model writes prompts after prompts.seeds; set seeds, too"),
        (prompts.seeds and prompts.count < needed, f"prompts.count is {prompts.count}, the iterations need {needed}"),
        (prompts.generated_shots > prompts.shots, f"prompts.generated_shots exceeds prompts.shots, {prompts.shots}"),
        (prompts.min_words > prompts.max_words, f"prompts.min_words exceeds prompts.max_words, {prompts.max_words}"),
        (own_cases and not sets_aside, "evaluation.judge_cases: [eft] sets no groups aside; name another file"),
        (alone, "respond.K is 1, but a pair of responses needs two; raise it, or set judge_pairs = true"),
        (late, f"{''.join(late[:1])}, but dpo.epochs is {last}; choose 1 to {last}"),
        (off, 'iteration.rho belongs to length control, but length_control is "off"; leave one of them out'),
        (meta.opponents % 2, f"metajudge.opponents is {meta.opponents}; it must be even, or 0 for all"),
        (meta.max_score_gap is not None and meta.opponents, "metajudge.max_score_gap goes with opponents = 0 alone"),
        (settings.guards.distinct_scores and meta.max_score_gap == 0, "guards.distinct_scores needs max_score_gap > 0"),
        (settings.guards.max_score_share < 1 / 6, "guards.max_score_share must be at least 1/6: there are six scores"),
        (not scores and judge.minimum_valid > judge.N, f"judge.minimum_valid is more than judge.N, {judge.N}"),
        (judge.min_new_tokens > judge.max_new_tokens, "judge.min_new_tokens exceeds judge.max_new_tokens"),
        (scores and judge.score == "expected", 'judge.scores_file replaces the judge; leave score = "expected" out'),
        (scores and same_file, "judge.scores_file is one file for several iterations; put {t} into its name"),
        (scores and judges, "judge.scores_file leaves nothing to meta-judge; set judge_pairs = false"),
        (scores and by_rules, 'judge.scores_file and iteration.labels = "rules" both replace the judge; leave one out'),
        (judges and judge.N == 1, "judge.N is 1, but a judge pair needs two judgments; set judge_pairs = false"),
        (untaught, 'iteration.labels = "rules" leaves nothing to meta-judge; set judge_pairs = false'),
        (trainer.lora_rank and not trainer.lora_targets, "trainer.lora_targets is empty; name a matrix"),
        (trainer.save_adapters and not trainer.lora_rank, "trainer.save_adapters needs adapters; set lora_rank"),
        (judge.score_first and samples > 1, f"evaluation.N and duel_samples must be 1: {unvaried}"),
    ]
    if broken := [message for holds, message in rules if holds]:
        raise UserError(f"{path}: {broken[0]}")
    return settings


def earlier_sfts(sft: Sft, later: tuple[str, ...] = ()) -> dict[str, Settings]:
    """By config, the SFTs that this one continues, each after those that it continues itself. Raises `UserError` for a
    circle."""
    found: dict[str, Settings] = {}
    for name in sft.after:
        if name in later:
            raise UserError(f"{name}: sft.after leads back to this config; name configs that do not continue it")
        settings = load_settings(name)
        found |= earlier_sfts(settings.sft, (*later, name)) | {name: settings}
    return found
