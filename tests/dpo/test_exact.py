"""The trainer against the formulas in fp64, and a frozen problem whose losses do not depend on batching or ranks."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_llama import PlainLlama, plain_dpo
from training import arguments, changed, losses, make_model, make_pairs, parameters, run, run_ranks, run_stopped

from dpo.parallel import replicas
from dpo.sft import SFT
from model.config import LlamaConfig
from model.llama import Llama
from model.weights import split_parameters
from stages.command import UserError
from stages.files import digest, read_jsonl, read_manifest, write_jsonl

FROZEN = changed(dpo={"epochs": 4, "batch_size": 4, "learning_rate": 1e-3}, trainer={"tokens_per_microbatch": 4096})

KIN = {"": {}, "qwen2-": {"model_type": "qwen2", "num_key_value_heads": 1}}
KIN |= {"qwen3-": {"model_type": "qwen3", "head_dim": 12}, "untied-": {"tied": False}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models of each kind, and 20 pairs whose prompts are long enough to be shared."""
    folder = tmp_path_factory.mktemp("frozen")
    for kin, shape in KIN.items():
        make_model(folder / f"{kin}model", **shape)
        make_model(folder / f"{kin}other", seed=1, **shape)
    make_pairs(folder / "pairs.jsonl", count=20, prompt=(16, 40))
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> torch.Tensor:
    """The frozen problem's 20 losses: one rank, one micro-batch a step, prompts shared."""
    losses_20 = losses(run(FROZEN, arguments(folder, place="second")))
    assert len(losses_20) == 20 and losses_20[-4:].mean() < 0.9 * losses_20[:4].mean()
    return losses_20


OPTIONS = [{"tokens_per_microbatch": 80}, {"activation_checkpointing": True}]
OPTIONS += [{"tokens_per_microbatch": 120, "share_prefixes": False}]
OPTIONS += [{"tokens_per_microbatch": 80, "reshard_after_forward": False}]


@pytest.mark.parametrize("options", [*OPTIONS, pytest.param({"compile": True}, marks=pytest.mark.slow)], ids=str)
def test_a_frozen_problem_has_the_same_20_losses(folder, tmp_path, expected, options):
    metrics = run(changed(FROZEN, trainer=options), arguments(folder, place=tmp_path))
    assert len(metrics) == 20
    torch.testing.assert_close(losses(metrics), expected, atol=1e-5, rtol=0)


def test_two_ranks_are_one_rank(folder, expected, monkeypatch):
    """Four trainings with one start of two ranks: the frozen problem, the same with every option, one whose second
    batch leaves a rank without work (4 training pairs in batches of 3), and the rest of one that one rank began."""
    options = {"tokens_per_microbatch": 150, "share_prefixes": False, "activation_checkpointing": True}
    uneven = changed(FROZEN, dpo={"held_out": 0.2, "batch_size": 3, "epochs": 2})
    place = folder / "uneven"
    make_pairs(place / "pairs.jsonl", count=5)
    five = {"model": folder / "qwen3-model", "reference": folder / "qwen3-model"}
    one = run(uneven, arguments(place, place="one", **five))
    run_stopped(monkeypatch, signal.SIGTERM, 7, FROZEN, arguments(folder, place="begun"))
    plain, varied, two, continued = run_ranks(
        (FROZEN, arguments(folder, place="ranks")),
        (changed(FROZEN, trainer=options), arguments(folder, place="ranks-options")),
        (uneven, arguments(place, place="two", **five)),
        (FROZEN, arguments(folder, place="begun")),
    )
    for metrics in (plain, varied, continued):
        assert [row["step"] for row in metrics] == list(range(20))
        torch.testing.assert_close(losses(metrics), expected, atol=1e-5, rtol=0)
    names = ("loss", "margin", "accuracy", "logp_chosen", "logp_rejected", "grad_norm", "tokens")
    for a, b in zip(one, two, strict=True):  # with the norm, since Adam would hide a wrong scale of gradients
        values = ({name: row[name] for name in names if name in row} for row in (a, b))
        assert next(values) == pytest.approx(next(values), abs=1e-5, rel=1e-6)
    for a, b in zip(parameters(place / "one" / "out"), parameters(place / "two" / "out"), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-2)
    assert (read_manifest(place / "two" / "out") or {})["ranks"] == 2


def test_two_copies_of_two_shards_are_one_rank(folder, monkeypatch):
    """The whole of a training, once with gathered weights and gradients that stay between micro-batches, and the rest
    of one that one rank began. Micro-batches hold a pair or two, so each rank has several."""
    settings = changed(FROZEN, dpo={"epochs": 2}, trainer={"tokens_per_microbatch": 80, "shard_degree": 2})
    kept = changed(settings, trainer={"reshard_after_forward": False})
    models = {"model": folder / "untied-model", "reference": folder / "untied-model"}
    given = [arguments(folder, place=f"untied-{place}", **models) for place in ("one", "four", "kept", "begun")]
    one = run(settings, given[0])
    run_stopped(monkeypatch, signal.SIGTERM, 3, settings, given[3])
    for metrics in run_ranks((settings, given[1]), (kept, given[2]), (settings, given[3]), ranks=4):
        for name in ("loss", "grad_norm", "tokens"):
            assert [row[name] for row in metrics] == pytest.approx([row[name] for row in one], abs=1e-5, rel=1e-5), name
    for place in ("four", "kept", "begun"):
        for a, b in zip(*(parameters(folder / f"untied-{x}" / "out") for x in ("one", place)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("kin", ["", "untied-"])
def test_weights_that_stay_gathered_change_no_byte_on_one_rank(folder, tmp_path, kin):
    settings, digests = changed(FROZEN, dpo={"epochs": 1}, trainer={"tokens_per_microbatch": 80}), set[str]()
    for reshard in (True, False):
        models = dict.fromkeys(("model", "reference"), folder / f"{kin}model")
        given = arguments(folder, place=tmp_path / str(reshard), **models)
        run(changed(settings, trainer={"reshard_after_forward": reshard}), given)
        digests.add(digest(given.place / "out"))
    assert len(digests) == 1


@pytest.mark.parametrize(("degree", "expected"), [(0, 1), (1, 6), (2, 3), (3, 2), (6, 1), (8, 1)])
def test_copies_of_the_model_on_six_ranks(degree, expected):
    options = changed(trainer={"shard_degree": degree}).trainer
    assert replicas(6, options) == expected


def test_ranks_that_copies_do_not_share_evenly_are_refused():
    with pytest.raises(UserError, match=r"trainer\.shard_degree is 4, which does not divide 6 ranks"):
        replicas(6, changed(trainer={"shard_degree": 4}).trainer)


def first_gradients(monkeypatch, settings, given) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metrics of the first step and its gradients before clipping, under Hugging Face's names."""
    steps: list[list[torch.Tensor]] = []
    monkeypatch.setattr("dpo.trainer.clip", lambda gradients, norm, most: steps.append([g.clone() for g in gradients]))
    metrics = run(settings, given)
    config = LlamaConfig.load(given.inputs["model"])
    with torch.device("meta"):
        names = [name for name, _ in Llama(config).named_parameters()]
    return metrics[0], dict(split_parameters(zip(names, steps[0], strict=True), config))


def assert_gradients(gradients: dict[str, torch.Tensor], model: PlainLlama, grad_norm: float) -> None:
    assert gradients.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        assert weight.grad is not None and weight.grad.norm() > 1e-4
        assert (gradients[name] - weight.grad).norm() <= 1e-5 * weight.grad.norm(), name
    assert grad_norm == pytest.approx(torch.stack([w.grad.norm() for w in model.weights.values()]).norm().item())


@pytest.mark.parametrize(
    ("kin", "options"),
    [
        ("", {}),
        ("untied-", {"tokens_per_microbatch": 150, "share_prefixes": False}),
        ("untied-", {"tokens_per_microbatch": 150, "reshard_after_forward": False}),
        ("qwen2-", {}),
        ("qwen3-", {"activation_checkpointing": True}),
    ],
    ids=str,
)
def test_dpo_gradients_are_those_of_the_formula_in_fp64(folder, tmp_path, monkeypatch, kin, options):
    settings = changed(FROZEN, dpo={"epochs": 1, "batch_size": 20}, trainer=options)
    models = {"model": folder / f"{kin}model", "reference": folder / f"{kin}other"}
    given = arguments(folder, place=tmp_path, **models)
    metrics, gradients = first_gradients(monkeypatch, settings, given)
    policy, reference = map(PlainLlama, models.values())
    loss = plain_dpo(policy, reference, list(read_jsonl(folder / "pairs.jsonl")), beta=0.1)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6) and abs(loss.item() - 0.6931) > 0.01
    assert_gradients(gradients, policy, metrics["grad_norm"])


@pytest.mark.parametrize(
    ("options", "saved"),
    [({}, 7 * 30), ({"tokens_per_microbatch": 45}, 6 * 30), ({"share_prefixes": False}, 0)],
    ids=str,
)
def test_sft_gradients_are_those_of_the_formula_in_fp64(folder, tmp_path, monkeypatch, options, saved):
    """Prompts have a common beginning. The loss is the mean over tokens by weight."""
    head = list(range(3, 33))
    rows: list[dict[str, Any]] = [
        {"id": str(i), "prompt_ids": [*head, *[i] * (i % 3)], "completion_ids": [5, i, 7], "token_weights": [4, 1, i]}
        for i in range(8)
    ]
    write_jsonl(tmp_path / "sft.jsonl", rows)
    settings = changed(FROZEN, sft={"epochs": 1, "batch_size": 8}, trainer=options)
    given = arguments(folder, SFT, data=[tmp_path / "sft.jsonl"], place=tmp_path)
    metrics, gradients = first_gradients(monkeypatch, settings, given)
    model = PlainLlama(folder / "model")
    logprobs = torch.cat([model.logprobs(row["prompt_ids"], row["completion_ids"]) for row in rows])
    weights = torch.tensor([row["token_weights"] for row in rows]).flatten().double()
    loss = -(weights @ logprobs) / weights.sum()
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["tokens"] == sum(len(r["prompt_ids"]) + 2 for r in rows) - saved
    assert_gradients(gradients, model, metrics["grad_norm"])
