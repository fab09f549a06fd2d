"""The settings of a run: a dataclass for each section of the TOML file, with symbols named as in the paper.

A field's type carries its bounds (`stages/config.py`); `check` holds the rules between several settings.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.assumptions import Assumptions
from stages.config import Amount, Count, CountOrZero, Positive, Share, read_config
from stages.files import UserError

PromptStyle = Literal["full", "compact"]
VerdictPosition = Literal["first", "last"]
Protocol = Literal["scores", "pairwise"]


@dataclass(frozen=True)
class Model:
    path: str
    """The seed: a Hugging Face directory (config.json, safetensors, tokenizer.json)."""
    prepare: str = ""
    """How `prepare.seed_model` makes the seed: "smollm2-135m", "tiny" or "tiny-judge"; "": the user brings it."""
    architecture: str = ""
    """A folder whose config.json stands in for a missing `path` in estimates (`make plan`, `dpo.memory`)."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """The type of matrix products. "auto" is bfloat16 where the processor multiplies it natively, else int8 in
    generation on a CPU with VNNI, else float32. Training takes float32 in place of int8."""
    attention: Literal["triton", "sdpa"] = "triton"
    """On CUDA: the kernels of `kernels/`, or PyTorch's own operations, which help to find a fault in the kernels. A CPU
    always takes PyTorch's."""

    @property
    def shape(self) -> str:
        """The folder whose config.json gives the model's shape."""
        missing = not (Path(self.path) / "config.json").is_file()
        return self.architecture if self.architecture and missing else self.path


@dataclass(frozen=True)
class EngineOptions:
    threads: Count = 2
    """CPU threads a rank; a setting, because results of training in bfloat16 depend on it. Without a GPU, generation
    runs as many processes of one thread each; a rank under torchrun runs one thread."""
    block_size: Count = 16
    """Tokens in a block of the KV cache."""
    num_kv_blocks: Count = 4096
    """Blocks in the KV cache. A block of Llama-3-8B takes 2 MiB in bfloat16 (128 KiB a token)."""
    max_num_batched_tokens: Count = 2048
    """Tokens in a forward pass at most; a longer prompt is prefilled in chunks."""
    max_num_seqs: Count = 128
    """Sequences decoded together at most."""
    cuda_graphs: bool = True
    """On CUDA, with `attention = "triton"`: decode with graphs. Off: operation by operation, for debugging."""
    shard_requests: Count = 256
    """Requests in a work shard at most; the requests of one prompt always share a shard."""


@dataclass(frozen=True)
class Training:
    """The settings that SFT and DPO have in common."""

    epochs: Count = 1
    learning_rate: Amount = 5e-6
    batch_size: Count = 32
    """Examples (SFT) or pairs (DPO) a step, over all ranks."""
    warmup_ratio: Share = 0.1
    weight_decay: Amount = 0.0
    max_grad_norm: Positive = 1.0
    held_out: Share = 0.05
    """Share of the examples or pairs kept out of training."""


@dataclass(frozen=True)
class Sft(Training):
    """Fine-tuning of the seed on judging and meta-judging; the held-out examples give the held-out loss."""

    epochs: Count = 2
    enabled: bool = True
    """Off: the seed itself is M0."""
    examples: list[str] = field(default_factory=list)
    """JSON-lines files of labelled judgments, comparisons and answers, or of prompts with scored responses
    (data/README.md); examples are taken in the order of files and lines."""
    sft_delta: str = ""
    """A low-rank file of the change that SFT makes (`prepare/sft_delta.py`). M0 is then the seed plus this change, so
    that a small machine need not train M0. Empty: train."""
    sft_delta_megabytes: Positive = 12.0
    """Size at most of the file that `iterate.py --make-sft-delta` writes."""
    verdict_token_weight: Amount = 1.0
    """Weight in the loss of a verdict's tokens: a judgment's score, a comparison's winner and the score before it."""
    answer_weight: Amount = 1.0
    """Weight of each token of an actor's answer. All other completion tokens weigh 1."""
    curriculum: bool = False
    """Whether examples are taken in order, lesson by lesson, rather than shuffled."""


@dataclass(frozen=True)
class Eft:
    """Evaluation fine-tuning: judge examples from human rankings (`prepare/eft.py`), added to `sft.examples`."""

    sources: list[str] = field(default_factory=list)
    """JSON-lines files of OpenAssistant's message trees or of groups of ranked replies. Empty: no such examples."""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """Languages of the messages that are kept."""
    max_turns: Count = 1
    """User turns in a conversation at most: 1 is a first question alone."""
    N: Count = 4
    """Rounds of judgments sampled for each group; the first round whose order agrees with the humans' is kept."""
    order: Literal["strict", "weak"] = "weak"
    """Agreement of orders: strict, every better reply scores higher; weak, none scores lower, and not all are equal."""
    downsample: bool = True
    """Whether examples of the most frequent score are dropped down to the number of the second most frequent."""
    held_out: Share = 0.25
    """Share of the groups set aside for measuring judges."""


UNSEEN = "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"


@dataclass(frozen=True)
class Prompts:
    """New prompts from seed prompts (`prepare/new_prompts.py`); the new prompts are the pool."""

    seeds: str = ""
    """A JSON-lines file of {id, prompt}. Empty: the pool is `respond.prompts`."""
    model: str = ""
    """Hugging Face directory of the model that writes prompts; empty: the run's seed."""
    count: Count = 20000
    """Prompts wanted."""
    max_attempts: Count = 200000
    """Completions sampled at most."""
    round_attempts: Count = 4000
    """Completions sampled in a round; prompts kept in earlier rounds serve as examples."""
    shots: Count = 8
    """Examples in a request."""
    generated_shots: CountOrZero = 2
    """How many of the examples are new prompts of earlier rounds, once there are that many."""
    temperature: Amount = 0.6
    top_p: Share = 0.9
    max_new_tokens: Count = 256
    min_words: Count = 3
    max_words: Count = 150
    max_repetition: Share = 0.2
    """Share of repeated sequences among a prompt's three-word sequences, at most."""
    max_rouge_l: Share = 0.7
    """A prompt is dropped unless its ROUGE-L F-measure with every seed and kept prompt is below this."""
    evaluation: list[str] = field(default_factory=list)
    """JSON-lines files of {prompt}; a new prompt that shares a word sequence with one of them is dropped."""
    ngram: Count = 8
    """Words of such a sequence."""
    words: list[str] = field(default_factory=lambda: [*UNSEEN.split(), "go to"])
    """A prompt with one of these is dropped: a language model can't see, or do, what the prompt asks for."""


@dataclass(frozen=True)
class Respond:
    prompts_per_iteration: Count
    """Prompts drawn for each iteration; no prompt is drawn twice."""
    prompts: str = ""
    """The pool: a JSON-lines file of {id, prompt}. Empty where `[prompts]` makes the pool."""
    K: Count = 7
    """Responses to each prompt."""
    temperature: Amount = 0.8
    top_p: Share = 0.95
    max_new_tokens: Count = 1024


@dataclass(frozen=True)
class Judge:
    N: Count = 11
    """Judgments of each response."""
    temperature: Amount = 0.8
    top_p: Share = 0.95
    max_new_tokens: Count = 512
    prompt_style: PromptStyle = "full"
    """The paper's rubric, or a short one for small models."""
    verdict_position: VerdictPosition = "last"
    """Which line of a judgment holds the score."""
    fractions: bool = False
    """Whether a score such as 4.5 counts (the rubric forbids it; the paper accepted it)."""
    score: Literal["sampled", "expected"] = "sampled"
    """A response's score: the mean of its N judgments' scores (the paper), or the mean of the distribution over the
    score (`judging/expected.py`). With "expected" and the verdict first, only meta-judged responses get judgments."""
    minimum_valid: Count = 1
    """A response with fewer judgments that hold a score has no score."""
    scores_file: str = ""
    """A JSON-lines file of {id, score, text}, a row for each response, that takes the judge's place: scores of an
    external reward model. "{run}" and "{t}" in the name stand for the run's folder and the iteration. The text is
    optional; it shows that the score belongs to this response, not to one with the same id in an earlier run."""

    @property
    def scores_needed(self) -> int:
        """How many rows with a score a response needs to have a score itself."""
        return 1 if self.score_first else self.minimum_valid

    @property
    def score_first(self) -> bool:
        """Whether a response's score is read without any text before it."""
        return self.score == "expected" and self.verdict_position == "first"


@dataclass(frozen=True)
class Metajudge:
    temperature: Amount = 0.8
    top_p: Share = 0.95
    max_new_tokens: Count = 512
    prompt_style: PromptStyle = "full"
    verdict_position: VerdictPosition = "last"
    model: str = "current"
    """The model that compares: "current", the iteration's model (the paper); "initial", M0 in every iteration; or a
    Hugging Face directory."""
    opponents: CountOrZero = 0
    """How many others each judgment is compared with, an even number; 0: all others (the paper)."""
    max_score_gap: Amount | None = None
    """Largest difference between the scores of two judgments that are compared; none: no limit (the paper)."""
    elo_penalty: Positive = 0.01
    """lambda of the penalty (lambda / 2) sum eps^2 that keeps Elo scores finite."""


@dataclass(frozen=True)
class Dpo(Training):
    """Training on the preference pairs; the held-out pairs choose the epoch by their preference accuracy."""

    beta: Amount = 0.1
    epochs: Count = 10
    held_out: Share = 0.1
    reference: Literal["previous", "initial"] = "previous"
    """The model that the iteration starts from (the paper), or the SFT model."""
    nll_weight: Amount = 0.0
    """Weight of -log pi(chosen) a token, added to the loss, which keeps the likelihood of chosen texts from falling."""


@dataclass(frozen=True)
class TrainerOptions:
    tokens_per_microbatch: Count = 4096
    """Tokens in a micro-batch at most; a longer pair is dropped and counted."""
    share_prefixes: bool = True
    """Whether a micro-batch computes a shared beginning once: a pair's prompt, in SFT the rubric."""
    activation_checkpointing: bool = False
    """Whether to keep only a layer's input and compute the layer again in backward."""
    compile: bool = False
    """Whether `torch.compile` fuses each layer apart from its attention; on a CPU this needs a C++ compiler."""
    save_every: CountOrZero = 0
    """Steps between resumable checkpoints of 12 bytes a parameter; 0: at the end of each epoch."""
    evaluate_every: CountOrZero = 0
    """Steps between measurements on the held-out examples; 0: only at the end of each epoch."""
    timeout_minutes: Positive = 30.0
    """How long a rank waits for the others; the first rank writes an export, 16 GB of Llama-3-8B, alone."""
    tensorboard: bool = False
    """Whether to write metrics for TensorBoard, too; needs `pip install tensorboard`."""


@dataclass(frozen=True)
class Iteration:
    rho: Share = 0.0
    """Quality tier of length control."""
    length_control: bool = True
    """Off: ties in score are broken by the seed, not by length."""
    judge_pairs: bool = True
    """Whether this iteration trains on judge pairs too."""
    max_response_characters: int | None = None
    """An actor pair whose chosen response is longer is dropped."""
    max_judgment_characters: int | None = None
    """A judge pair whose chosen judgment is longer is dropped."""
    epoch: int | None = None
    """The epoch whose checkpoint becomes the next model; none: the one with the best held-out accuracy."""


@dataclass(frozen=True)
class Evaluation:
    """How the seed, M_0 and each M_t are measured, on data that no training sees. A measurement without a file is left
    out."""

    judge_cases: str = ""
    """Labelled groups, or pairs, on which the judge is measured. "{run}" stands for the run's folder:
    `{run}/sft/eft/held_out.jsonl` holds the groups that `[eft]` sets aside."""
    comparisons: str = ""
    """Pairs of judgments on which the meta-judge is measured."""
    N: Count = 1
    """Judgments of each response."""
    seed_judges: bool = True
    """Whether the seed, too, is measured as judge and meta-judge. Off: the seed only answers."""
    instructions: str = ""
    """Prompts with rules for the answer that code can check."""
    prompts: str = ""
    """Open prompts {id, prompt}, whose answers are compared with the seed's answers."""
    judge: str = "current"
    """The model that compares answers: "current", the one that answered; "initial", M0; or a Hugging Face directory."""
    protocol: Protocol = "scores"
    """How answers are compared: each is scored alone, as in the loop; or both are shown, in both orders."""
    duel_samples: Count = 1
    """Judgments of each answer, or comparisons in each order."""


@dataclass(frozen=True)
class Limits:
    """Limits that stop a run before training if an iteration has gone wrong; each is off by default."""

    parse_rate: Share = 0.0
    """Least share of judgments that hold a score."""
    actor_yield: Share = 0.0
    """Least share of prompts that give an actor pair."""
    judge_yield: Share = 0.0
    """Least share of prompts that give a judge pair, in iterations with judge pairs."""
    max_top_score_share: Share = 1.0
    """Greatest share of scores that are 5, the highest."""


@dataclass(frozen=True)
class Settings:
    name: str
    model: Model
    respond: Respond
    iteration: list[Iteration]
    seed: int = 0
    nproc_per_node: Count = 1
    """Ranks that `iterate.py` starts for each stage."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    sft: Sft = field(default_factory=Sft)
    eft: Eft = field(default_factory=Eft)
    prompts: Prompts = field(default_factory=Prompts)
    judge: Judge = field(default_factory=Judge)
    metajudge: Metajudge = field(default_factory=Metajudge)
    dpo: Dpo = field(default_factory=Dpo)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    evaluation: Evaluation = field(default_factory=Evaluation)
    limits: Limits = field(default_factory=Limits)
    plan: Assumptions = field(default_factory=Assumptions)


def as_dict(section: Any) -> dict[str, Any]:
    """A section as plain values, for keys and manifests."""
    return dataclasses.asdict(section)


def check(settings: Settings, path: Path) -> None:
    """Check settings that depend on one another. Raises `UserError` naming the config, the key and what to do."""
    eft, sft, judge, meta, prompts = settings.eft, settings.sft, settings.judge, settings.metajudge, settings.prompts
    evaluation, iterations = settings.evaluation, settings.iteration
    needed = len(iterations) * settings.respond.prompts_per_iteration
    sets_aside = sft.enabled and eft.sources and eft.held_out > 0 and not sft.sft_delta
    wrong = {
        "the pool comes from respond.prompts or from prompts.seeds; set one of them": (
            settings.respond.prompts and prompts.seeds
        ),
        f"prompts.count is {prompts.count}, but the iterations need {needed}": prompts.seeds and prompts.count < needed,
        f"prompts.generated_shots is {prompts.generated_shots}; shots are {prompts.shots}": (
            prompts.generated_shots > prompts.shots
        ),
        f"prompts.min_words is {prompts.min_words}; max_words are {prompts.max_words}": (
            prompts.min_words > prompts.max_words
        ),
        "prompts.words has an empty entry; take it out": not all(map(str.strip, prompts.words)),
        "evaluation.judge_cases are groups that [eft] sets aside, but this config sets none aside; name another file": (
            "{run}/sft/eft" in evaluation.judge_cases and not sets_aside
        ),
        f"metajudge.opponents is {meta.opponents}; it must be even, or 0 for all": meta.opponents % 2,
        "metajudge.max_score_gap goes with opponents = 0 alone": meta.max_score_gap is not None and meta.opponents,
        f"judge.minimum_valid is {judge.minimum_valid}, judge.N {judge.N}; none would be scored": (
            judge.minimum_valid > judge.N and not judge.scores_file
        ),
        'judge.scores_file takes the judge\'s place; leave judge.score = "expected" out': (
            judge.scores_file and judge.score == "expected"
        ),
        "judge.scores_file is one file for several iterations; put {t} into its name": (
            judge.scores_file and len(iterations) > 1 and "{t}" not in judge.scores_file
        ),
        "judge.scores_file leaves no judgments to compare; set judge_pairs = false in each [[iteration]]": (
            judge.scores_file and any(iteration.judge_pairs for iteration in iterations)
        ),
    }
    for key in ("N", "duel_samples"):
        value = getattr(evaluation, key)
        once = 'judge.score = "expected" with the verdict first has one score a response; set it to 1'
        wrong[f"evaluation.{key} is {value}, but {once}"] = judge.score_first and value > 1
    for message, broken in wrong.items():
        if broken:
            raise UserError(f"{path}: {message}")


def load_settings(path: Path | str) -> Settings:
    """Read and check a TOML config. Raises `UserError` naming file and key."""
    settings = read_config(Settings, Path(path))
    check(settings, Path(path))
    return settings
