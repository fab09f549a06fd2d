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

from files import UserError


@dataclass(frozen=True)
class Model:
    path: str
    """The seed: a Hugging Face directory (config.json, safetensors, tokenizer.json)."""
    prepare: str = ""
    """How `model.prepare` makes the seed when it is missing: "smollm2-135m", "tiny" or "" (the user brings it)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto is bfloat16 where the processor multiplies it natively, else float32."""
    attention: Literal["triton", "sdpa"] = "triton"
    """On CUDA: the kernels of `kernels/`, or PyTorch's own operations in their place, to tell whether a fault is the
    kernels'. A CPU always takes PyTorch's."""


@dataclass(frozen=True)
class Engine:
    threads: int = 2
    """CPU threads a rank: a setting, not a reading of the machine, since results in bfloat16 depend on it."""
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
    """Requests a work unit, rounded up to whole prompts."""


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
    """The difference that this section's training makes, as a low-rank file (`model/lowrank.py`): M0 is the seed with
    it added, so that a small machine need not train it anew. Empty: train."""
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
class Respond:
    prompts: str
    """The pool: a JSON-lines file of {id, prompt}."""
    prompts_per_iteration: int
    """Prompts drawn each iteration; draws of different iterations do not overlap."""
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
    minimum_valid: int = 1
    """A response with fewer parsed judgments has no score."""


@dataclass(frozen=True)
class Metajudge:
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    form: Literal["full", "compact"] = "full"
    verdict: Literal["first", "last"] = "last"


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
    """Steps between resumable checkpoints; 0: at the end of each epoch."""
    evaluate_every: int = 0
    """Steps between looks at the held-out examples; 0: at the end of each epoch alone."""
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
    cases: str = ""
    """Labelled groups on which the judge is measured before and after SFT and after each iteration; empty: not."""
    comparisons: str = ""
    """Pairs of judgments on which the meta-judge is measured, likewise."""
    N: int = 1
    """Judgments a response."""


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
    judge: Judge = field(default_factory=Judge)
    metajudge: Metajudge = field(default_factory=Metajudge)
    dpo: Dpo = field(default_factory=Dpo)
    trainer: Trainer = field(default_factory=Trainer)
    evaluation: Evaluation = field(default_factory=Evaluation)


def load_settings(path: Path | str) -> Settings:
    """Read and check a TOML config. Raises `UserError` naming file and key."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config; choose one of configs/*.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error}); mend the line") from None
    settings = _build(Settings, table, f"{path}: ")
    _check(settings, path)
    return settings


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


def _check(settings: Settings, path: Path) -> None:
    positive = {
        "nproc_per_node": settings.nproc_per_node,
        "respond.K": settings.respond.K,
        "respond.prompts_per_iteration": settings.respond.prompts_per_iteration,
        "judge.N": settings.judge.N,
        "judge.minimum_valid": settings.judge.minimum_valid,
        "sft.batch_size": settings.sft.batch_size,
        "sft.epochs": settings.sft.epochs,
        "dpo.batch_size": settings.dpo.batch_size,
        "dpo.epochs": settings.dpo.epochs,
        "trainer.token_budget": settings.trainer.token_budget,
        "iteration": len(settings.iteration),
    } | {f"engine.{key}": value for key, value in as_dict(settings.engine).items() if not isinstance(value, bool)}
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"{path}: {key} is {value}; it must be at least 1")
    shares = {f"iteration[{i}].rho": item.rho for i, item in enumerate(settings.iteration)}
    for section in ("respond", "judge", "metajudge"):
        sampling = getattr(settings, section)
        if sampling.temperature < 0:
            raise UserError(f"{path}: {section}.temperature is {sampling.temperature}; it must not be negative")
        shares[f"{section}.top_p"] = sampling.top_p
    training = {
        "trainer.save_every": settings.trainer.save_every,
        "trainer.evaluate_every": settings.trainer.evaluate_every,
    }
    for section in ("sft", "dpo"):
        options = getattr(settings, section)
        training |= {f"{section}.{key}": getattr(options, key) for key in ("learning_rate", "weight_decay")}
        shares[f"{section}.warmup_ratio"] = options.warmup_ratio
        if options.max_grad_norm <= 0:
            raise UserError(f"{path}: {section}.max_grad_norm is {options.max_grad_norm}; it must be above 0")
    for key, value in (training | {"dpo.beta": settings.dpo.beta, "dpo.nll_weight": settings.dpo.nll_weight}).items():
        if value < 0:
            raise UserError(f"{path}: {key} is {value}; it must not be negative")
    if not 0 <= settings.dpo.label_smoothing < 0.5:
        raise UserError(f"{path}: dpo.label_smoothing is {settings.dpo.label_smoothing}; it must lie in [0, 0.5)")
    for key, value in (shares | {"sft.held_out": settings.sft.held_out, "dpo.held_out": settings.dpo.held_out}).items():
        if not 0 <= value <= 1:
            raise UserError(f"{path}: {key} is {value}; it must lie in [0, 1]")
