"""The settings of a run: one dataclass a section of the TOML file, symbols named as in the paper.

Loading is strict: an unknown key, a missing section or a wrong type is an error that names file, section and key.
"""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.files import UserError
from stages.validity import check


@dataclass(frozen=True)
class Model:
    path: str
    """The seed: a Hugging Face directory (config.json, safetensors, tokenizer.json)."""
    prepare: str = ""
    """How `prepare.seed_model` makes a missing one: "smollm2-135m", "tiny", "tiny-judge" or "": the user brings it."""
    architecture: str = ""
    """A folder with the config.json to count with (`make plan`, `dpo.memory`) while `path` is not there."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """What products compute in; auto is bfloat16 where the processor multiplies it natively, else on a CPU with VNNI
    int8 in generation, else float32. Training, which int8 is not for, takes float32 in its place."""
    attention: Literal["triton", "sdpa"] = "triton"
    """On CUDA: the kernels of `kernels/`, or PyTorch's own operations in their place, to tell whether a fault is the
    kernels'. A CPU always takes PyTorch's."""

    @property
    def shape(self) -> str:
        """The folder whose config.json gives the model's shape."""
        stands_in = self.architecture and not (Path(self.path) / "config.json").is_file()
        return self.architecture if stands_in else self.path


@dataclass(frozen=True)
class Engine:
    threads: int = 2
    """CPU threads a rank: a setting, not a reading of the machine, since training in bfloat16 depends on it. Without
    a GPU, generation runs as many processes of one thread each; a rank that torchrun starts runs one."""
    block_size: int = 16
    """Tokens a block of the KV cache."""
    blocks: int = 4096
    """Blocks of the KV cache: its size. A block of Llama-3-8B takes 2 MiB in bfloat16 (128 KiB a token)."""
    token_budget: int = 2048
    """Tokens a forward pass at most: chunked prefill beyond it."""
    max_sequences: int = 128
    """Sequences decoded together at most."""
    cuda_graphs: bool = True
    """On CUDA, with `attention = "triton"`, decode with graphs. Off: op by op, for debugging."""
    unit_requests: int = 256
    """Requests a work unit at most, but for whole prompts."""


@dataclass(frozen=True)
class Sft:
    enabled: bool = True
    """Off: the seed itself is M0."""
    examples: list[str] = field(default_factory=list)
    """JSON-lines files of labelled judgments and comparisons, or of prompts with scored responses."""
    constructed_decisions: int = 0
    """Examples of the first lesson: a good answer or one to another question, and the score alone."""
    constructed_judgments: int = 0
    """Judgments made by construction from `prompts` and `answers`: the second lesson, and part of the third."""
    constructed_comparisons: int = 0
    """Meta-judgments by construction: the third lesson. Models too small to meta-judge untaught need them."""
    constructed_answers: int = 0
    """The model's own answers among the examples, so that it keeps the actor's part."""
    prompts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    seed_judge: str = ""
    """The difference that this section's training makes, as a low-rank file (`prepare/sft_delta.py`): M0 is the seed
    with it added, so that a small machine need not train it anew. Empty: train."""
    seed_judge_megabytes: float = 12.0
    """Size at most of the file that `iterate.py --make-seed-judge` writes there."""
    epochs: int = 2
    learning_rate: float = 5e-6
    batch_size: int = 32
    """Examples a step, over all ranks."""
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    decision_weight: float = 1.0
    """Weight in the loss of a token that decides: a judgment's score, a comparison's winner and the score before it."""
    answer_weight: float = 1.0
    """Weight of each token of an actor's answer. All other completion tokens weigh 1."""
    in_order: bool = False
    """Whether the examples are taken in order, lesson by lesson, rather than shuffled."""
    held_out: float = 0.05
    """Share of the examples kept out of training, for the held-out loss."""


@dataclass(frozen=True)
class Eft:
    """Evaluation fine-tuning: judge examples from human rankings (`prepare/eft.py`), added to `sft.examples`."""

    sources: list[str] = field(default_factory=list)
    """OpenAssistant's message trees, or groups of ranked replies, as JSON lines. Empty: no such examples."""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """Languages of the messages that are kept."""
    max_turns: int = 1
    """Prompter's turns in a conversation at most: 1 is a first question alone."""
    N: int = 4
    """Judgments sampled of each reply; the first round of them whose order agrees with the humans' is kept."""
    order: Literal["strict", "weak"] = "weak"
    """When an order agrees: every better reply scores higher; or none scores lower, and not all are equal."""
    downsample: bool = True
    """Whether examples of the most frequent score are dropped until it is as frequent as the second."""
    held_out: float = 0.25
    """Share of the groups that are set aside to measure judges on."""


@dataclass(frozen=True)
class Prompts:
    """New prompts from seed prompts (`prepare/new_prompts.py`); they become the pool."""

    seeds: str = ""
    """A JSON-lines file of {id, prompt}. Empty: the pool is `respond.prompts`."""
    model: str = ""
    """Hugging Face directory of the model that writes them; empty: the run's seed."""
    count: int = 20000
    """Prompts wanted."""
    max_attempts: int = 200000
    """Completions sampled at most."""
    round_attempts: int = 4000
    """Completions sampled between two filterings; what the earlier rounds kept serves as examples."""
    shots: int = 8
    """Examples shown."""
    generated_shots: int = 2
    """Of these, how many are new prompts of earlier rounds, once there are that many."""
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 256
    min_words: int = 3
    max_words: int = 150
    max_repetition: float = 0.2
    """Share of a prompt's three-word sequences that have come before in it, at most."""
    max_rouge_l: float = 0.7
    """A prompt whose ROUGE-L F-measure with a seed or a kept prompt is not below this is dropped."""
    evaluation: list[str] = field(default_factory=list)
    """JSON-lines files of {prompt} that no new prompt may share a word sequence with."""
    ngram: int = 8
    """Words of such a sequence."""
    words: list[str] = field(
        default_factory=lambda: [
            "image",
            "images",
            "graph",
            "graphs",
            "picture",
            "pictures",
            "file",
            "files",
            "map",
            "maps",
            "draw",
            "plot",
            "go to",
            "video",
            "audio",
            "music",
            "flowchart",
            "diagram",
        ]
    )
    """A prompt with one of these is dropped: what a model of texts can't see, or do."""


@dataclass(frozen=True)
class Respond:
    prompts_per_iteration: int
    """Prompts drawn each iteration; draws of different iterations do not overlap."""
    prompts: str = ""
    """The pool: a JSON-lines file of {id, prompt}. Empty where `[prompts]` makes it."""
    K: int = 7
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 1024


@dataclass(frozen=True)
class Judge:
    N: int = 11
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    form: Literal["full", "compact"] = "full"
    verdict: Literal["first", "last"] = "last"
    """Which line of a judgment holds the score."""
    fractions: bool = False
    """Whether a score such as 4.5 counts (the rubric forbids it; the paper accepted it)."""
    score: Literal["sampled", "expected"] = "sampled"
    """What a response's score is: the mean of its N judgments' scores (the paper), or the mean of the distribution over
    the score (`judging/expected.py`). With that and the verdict first, N judgments are sampled of the meta-judged
    response alone."""
    minimum_valid: int = 1
    """A response with fewer parsed judgments has no score."""
    scores_file: str = ""
    """A JSON-lines file of {id, score, text}, a row a response, that takes the judge's place: an external reward
    model's. "{run}" and "{t}" in the name stand for the run's folder and the iteration; the text, which may be left
    out, shows that the score is of this response and not of one of the same id in an earlier run."""

    @property
    def scores_needed(self) -> int:
        """How many rows with a score a response must have to have one itself."""
        return 1 if self.score == "expected" and self.verdict == "first" else self.minimum_valid


@dataclass(frozen=True)
class Metajudge:
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    form: Literal["full", "compact"] = "full"
    verdict: Literal["first", "last"] = "last"
    model: str = "current"
    """Who compares: "current" is the iteration's model (the paper), "initial" M0 in every iteration, frozen; or a
    Hugging Face directory."""
    opponents: int = 0
    """With how many others each judgment is compared, an even number; 0: with all (the paper)."""
    max_score_gap: float | None = None
    """Only judgments whose scores differ by no more are compared; none: all (the paper)."""
    elo_penalty: float = 0.01
    """lambda of the penalty (lambda / 2) sum eps^2 that keeps Elo scores finite."""


@dataclass(frozen=True)
class Dpo:
    beta: float = 0.1
    epochs: int = 10
    learning_rate: float = 5e-6
    batch_size: int = 32
    """Pairs a step, over all ranks."""
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    reference: Literal["previous", "initial"] = "previous"
    """The model that the iteration starts from (the paper), or the SFT model."""
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round, in [0, 0.5)."""
    nll_weight: float = 0.0
    """Weight of -log pi(chosen) a token, added to the loss: against likelihoods that fall on both sides."""
    held_out: float = 0.1
    """Share of the pairs kept out of training, to choose the epoch by their preference accuracy."""


@dataclass(frozen=True)
class Trainer:
    token_budget: int = 4096
    """Tokens a micro-batch at most; a longer pair is dropped and counted."""
    share_prefixes: bool = True
    """Whether a micro-batch computes once what its sequences begin with: a pair's prompt, in SFT the rubric."""
    activation_checkpointing: bool = False
    """Keep a block's input alone and compute the block again in backward."""
    compile: bool = False
    """Whether `torch.compile` fuses what is in a block besides its attention; a CPU needs a C++ compiler for it."""
    save_every: int = 0
    """Steps between resumable checkpoints; 0: at the end of each epoch. A state takes 12 bytes a parameter to write."""
    evaluate_every: int = 0
    """Steps between looks at the held-out examples; 0: at the end of each epoch alone."""
    timeout_minutes: float = 30.0
    """How long a rank waits for the others; the first one writes an export, 16 GB of Llama-3-8B, alone."""
    tensorboard: bool = False
    """Whether the metrics also go to TensorBoard's files; needs `pip install tensorboard`."""


@dataclass(frozen=True)
class Iteration:
    rho: float = 0.0
    """Quality tier of length control, in [0, 1]."""
    length_control: bool = True
    """Off: ties in score are broken by the seed, not by length."""
    judge_pairs: bool = True
    """Whether this iteration trains on judge pairs too."""
    max_response_characters: int | None = None
    """An actor pair whose chosen response is longer is dropped."""
    max_judgment_characters: int | None = None
    """A judge pair whose chosen judgment is longer is dropped."""
    epoch: int | None = None
    """Which epoch's checkpoint becomes the next model; none: the best held-out preference accuracy."""


@dataclass(frozen=True)
class Evaluation:
    """How each model, the seed, M_0 and M_t, is measured on data that no training sees; what names no file is left
    out."""

    cases: str = ""
    """Labelled groups, or pairs, on which the judge is measured before and after SFT and after each iteration.
    "{run}" stands for the run's folder: `{run}/sft/eft/held_out.jsonl` are the groups that `[eft]` sets aside."""
    comparisons: str = ""
    """Pairs of judgments on which the meta-judge is measured, likewise."""
    N: int = 1
    """Judgments a response."""
    seed_judges: bool = True
    """Whether the seed, too, is measured as judge and meta-judge. Off: a seed that has not learnt to only answers."""
    instructions: str = ""
    """Prompts whose answers code can check."""
    prompts: str = ""
    """Open prompts {id, prompt}; their answers are compared with the seed's."""
    judge: str = "current"
    """Who compares them: "current" is the model that answered, "initial" M0 for every model; or a Hugging Face
    directory."""
    way: Literal["scores", "pairwise"] = "scores"
    """Each answer is scored alone, as in the loop; or both are shown, in both orders."""
    duel_N: int = 1
    """Judgments an answer for this, or comparisons in each order."""


@dataclass(frozen=True)
class Limits:
    """What stops a run before it trains on an iteration that has gone wrong; each is off by default."""

    parse_rate: float = 0.0
    """Judgments that hold a score, at least."""
    actor_yield: float = 0.0
    """Prompts that give an actor pair, at least."""
    judge_yield: float = 0.0
    """Prompts that give a judge pair, at least, where the iteration wants them."""
    saturation: float = 1.0
    """Scores that are the highest there is, 5, at most."""


@dataclass(frozen=True)
class Plan:
    """What `make plan` assumes of texts, yields and machines. No stage reads it."""

    prompt_tokens: float = 40.0
    """Mean of a prompt of the pool, where the pool is not there yet; the chat format comes on top."""
    response_tokens: float = 430.0
    judgment_tokens: float = 180.0
    comparison_tokens: float = 220.0
    seed_judgment_tokens: float = 180.0
    """Of a judgment by the seed, which may not have learnt when to stop."""
    seed_comparison_tokens: float = 220.0
    reply_tokens: float = 200.0
    """Of a human reply in `eft.sources`, where they are not there."""
    spread: float = 0.5
    """Standard deviation of a text's tokens over their mean."""
    groups: int = 3500
    """Groups of ranked replies in `eft.sources`, where they are not there."""
    replies: int = 3
    """Replies in such a group."""
    prompts_kept: float = 0.5
    """Attempts at a new prompt that give one."""
    distinct_responses: float = 1.0
    """Responses that are not equal to another of their prompt."""
    distinct_judgments: float = 0.95
    """Judgments that hold a score and are not equal to another of their response."""
    eft_yield: float = 0.2
    """Judged replies that become examples."""
    actor_yield: float = 0.6
    """Prompts that give an actor pair."""
    judge_yield: float = 0.5
    """Prompts that give a judge pair, in an iteration that wants them."""
    product_utilisation: float = 0.5
    """Share of a GPU's peak that generation's products reach."""
    bandwidth_utilisation: float = 0.6
    """Share of a GPU's memory bandwidth that reading weights and keys reaches."""
    training_utilisation: float = 0.4
    """Share of a GPU's peak that training reaches."""
    step_milliseconds: float = 8.0
    """What a step of generation takes besides the model: scheduling on the host, launches."""
    gpus_per_node: int = 8
    network_gigabytes_per_second: float = 50.0
    """Between nodes, for each GPU."""
    disk_gigabytes_per_second: float = 1.0
    start_seconds: float = 30.0
    """A stage's processes, until they load weights."""


@dataclass(frozen=True)
class Settings:
    name: str
    model: Model
    respond: Respond
    iteration: list[Iteration]
    seed: int = 0
    nproc_per_node: int = 1
    """Ranks that `iterate.py` starts for each stage."""
    engine: Engine = field(default_factory=Engine)
    sft: Sft = field(default_factory=Sft)
    eft: Eft = field(default_factory=Eft)
    prompts: Prompts = field(default_factory=Prompts)
    judge: Judge = field(default_factory=Judge)
    metajudge: Metajudge = field(default_factory=Metajudge)
    dpo: Dpo = field(default_factory=Dpo)
    trainer: Trainer = field(default_factory=Trainer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    limits: Limits = field(default_factory=Limits)
    plan: Plan = field(default_factory=Plan)


def load_settings(path: Path | str) -> Settings:
    """Read and check a TOML config. Raises `UserError` naming file and key."""
    path = Path(path)
    settings = _build(Settings, _read(path), f"{path}: ")
    check(settings, path)
    return settings


def _read(path: Path, extended: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config's table, laid over that of the config which its key `extends` names, relative to its own folder."""
    if not path.is_file():
        raise UserError(f"{path}: no such config; choose one of configs/*.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error}); mend the line") from None
    if (below := table.pop("extends", None)) is None:
        return table
    base = path.parent / str(below)
    if base.resolve() in extended:
        raise UserError(f"{path}: extends: {below} extends this config again; take one of the two out")
    return _laid_over(_read(base, (*extended, path.resolve())), table)


def _laid_over(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`table`'s keys replace `base`'s, within sections too; lists, such as the iterations, as a whole."""
    merged = dict(base)
    for key, value in table.items():
        inner = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _laid_over(base[key], value) if inner else value
    return merged


def as_dict(section: Any) -> dict[str, Any]:
    """A section as plain values, for keys and manifests."""
    return dataclasses.asdict(section)


def _build(cls: type, table: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in hints:
            raise UserError(f"{where}{key}: unknown key; known here: {', '.join(hints)}")
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in table:
            raise UserError(f"{where}{item.name}: missing; add this key")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in table.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(typing.cast(type, hint), value, f"{where}.")
    if origin is list and isinstance(value, list):
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is Literal and value in arguments:
        return value
    if origin is types.UnionType:
        hint = arguments[0]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{where}: expected {wanted}, got {value!r}; mend the value")
