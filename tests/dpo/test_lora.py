"""LoRA: gradients of the formula, full training's direction, ranks, states, exports, memory, the loop."""

import shutil
from dataclasses import replace

import processes
import pytest
import torch
from plain_llama import PlainLlama, plain_dpo
from processes import ITERATE, ROOT
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from training import arguments, changed, losses, make_model, parameters, run, run_killed, run_ranks

from dpo.lora import adapters, trained_parameters
from dpo.memory import count
from dpo.sft import SFT
from dpo.train import training_settings
from dpo.trainer import Trainer, local_gradients
from model.config import LlamaConfig
from stages.files import digest, read_json, read_jsonl, read_manifest, write_jsonl
from stages.settings import load_settings

LORA = changed(dpo={"learning_rate": 1e-2}, trainer={"lora_rank": 4, "lora_alpha": 8.0})
ROWS = {"qkv_proj": {"q_proj": 32, "k_proj": 16, "v_proj": 16}, "gate_up_proj": {"gate_proj": 48, "up_proj": 48}}


def parts_of(name: str, b: Tensor) -> dict[str, Tensor]:
    """The rows of B by Hugging Face's names of the matrices that the matrix `name` stacks."""
    path, _, last = name.rpartition(".")
    sizes = ROWS.get(last, {last: len(b)})
    return {f"model.{path}.{part}": rows for part, rows in zip(sizes, b.split(list(sizes.values())), strict=True)}


def first_gradients(monkeypatch, settings, given, fill=None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained parameters before the first step, once `fill` has changed the adapters, and the step's gradients."""
    values, gradients = dict[str, Tensor](), dict[str, Tensor]()
    step, reduce = Trainer.step, Trainer.reduce_gradients

    def filled(self, batch):
        if not values and fill:
            for adapter in adapters(self.model).values():
                fill(adapter)
        values.update(values or {name: p.detach().clone() for name, p in self.model.named_parameters()})
        return step(self, batch)

    def kept(self):
        square = reduce(self)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        found = zip(names, local_gradients(self.model.parameters()), strict=True)
        gradients.update(gradients or {name: gradient.clone() for name, gradient in found})
        return square

    monkeypatch.setattr(Trainer, "step", filled)
    monkeypatch.setattr(Trainer, "reduce_gradients", kept)
    run(settings, given)
    monkeypatch.undo()
    return values, gradients


@torch.no_grad()
def random_b(adapter) -> None:
    adapter.B.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(adapter.B.numel()))


def assert_gradients(values, gradients, model: PlainLlama, loss) -> None:
    """`gradients` are those of `loss(model)` in fp64, where `model` has W + s B A in place of each W."""
    low = {name: values[name].double().requires_grad_() for name in gradients}
    matrices = {name.removesuffix(".lora.A") for name in low if name.endswith(".A")}
    assert len(matrices) == 2 * 4 and {name for name in values if name in low} == set(low)
    for name in matrices:
        for part, rows in parts_of(name, low[f"{name}.lora.B"]).items():
            weight = model.weights[f"{part}.weight"]
            model.weights[f"{part}.weight"] = weight.detach() + 2.0 * rows @ low[f"{name}.lora.A"]  # 2 = alpha / r
    loss(model).backward()
    for name, value in low.items():
        assert value.grad is not None and value.grad.norm() > 1e-4
        assert (gradients[name] - value.grad).norm() <= 1e-5 * value.grad.norm(), name


OPTIONS = {"tokens_per_microbatch": 60, "share_prefixes": False, "activation_checkpointing": True}


@pytest.mark.parametrize("options", [{}, OPTIONS, pytest.param({"compile": True}, marks=pytest.mark.slow)], ids=str)
def test_dpo_gradients_are_those_of_the_formula_in_fp64(folder, monkeypatch, options):
    """The reference is the model without adapters, whatever they are when the first step begins."""
    settings = changed(LORA, dpo={"epochs": 1, "batch_size": 12}, trainer=options)
    values, gradients = first_gradients(monkeypatch, settings, arguments(folder), random_b)
    pairs, model = list(read_jsonl(folder / "pairs.jsonl")), folder / "model"
    assert_gradients(values, gradients, PlainLlama(model), lambda m: plain_dpo(m, PlainLlama(model), pairs, beta=0.1))


def test_sft_gradients_are_those_of_the_formula_in_fp64(folder, monkeypatch):
    rows = [{"id": str(i), "prompt_ids": [3, i], "completion_ids": [5, i, 7]} for i in range(8)]
    write_jsonl(folder / "sft.jsonl", rows)
    settings = changed(LORA, sft={"epochs": 1, "batch_size": 8})
    given = arguments(folder, SFT, data=[folder / "sft.jsonl"])
    values, gradients = first_gradients(monkeypatch, settings, given, random_b)

    def loss(model: PlainLlama) -> Tensor:
        return -torch.cat([model.logprobs(row["prompt_ids"], row["completion_ids"]) for row in rows]).mean()

    assert_gradients(values, gradients, PlainLlama(folder / "model"), loss)


@torch.no_grad()
def orthonormal_a(adapter) -> None:
    torch.nn.init.orthogonal_(adapter.A)


def test_lora_of_full_rank_has_the_direction_of_full_training(folder, monkeypatch):
    """With B = 0 and A^T A = I a step along -dL/dB = -s G A^T moves s B A along -s^2 G, G full training's gradient."""
    settings = changed(LORA, dpo={"epochs": 1}, trainer={"lora_rank": 48, "lora_alpha": 48.0})
    values, gradients = first_gradients(monkeypatch, settings, arguments(folder), orthonormal_a)
    whole = changed(settings, trainer={"lora_rank": 0})
    _, full = first_gradients(monkeypatch, whole, arguments(folder, place="full"))
    names = [name.removesuffix(".lora.B") for name in gradients if name.endswith(".B")]
    assert len(names) == 8
    for name in names:
        expected, moved = full[f"{name}.weight"], gradients[f"{name}.lora.B"] @ values[f"{name}.lora.A"]
        assert (moved - expected).norm() <= 1e-5 * expected.norm(), name
        assert not gradients[f"{name}.lora.A"].any()


def test_a_killed_run_continues_to_the_same_bytes_and_two_ranks_are_one(folder, monkeypatch):
    """A state holds adapters and moments alone. Two ranks run it whole, and finish what one rank began."""
    settings = changed(LORA, dpo={"epochs": 3, "held_out": 0.25}, trainer={"save_every": 4})
    whole = run(settings, arguments(folder, place="whole"))
    assert losses(whole)[-3:].mean() < 0.95 * losses(whole)[:3].mean()
    run_killed(monkeypatch, 7, settings, arguments(folder))
    (state,) = (folder / "run" / "train").glob("state-*")
    names = FileSystemReader(state).read_metadata().state_dict_metadata
    assert len(names) == 3 * 2 * 8 and all(".lora." in name for name in names)
    shutil.copytree(folder / "run", folder / "begun")
    run(settings, arguments(folder))
    assert digest(folder / "run" / "out") == digest(folder / "whole" / "out")
    both = run_ranks(*((settings, arguments(folder, place=place)) for place in ("ranks", "begun")))
    for metrics, place in zip(both, ("ranks", "begun"), strict=True):
        for ours, row in zip(metrics, whole, strict=True):
            names = ("loss", "grad_norm", "margin", "logp_chosen", "tokens")
            assert [ours.get(name) for name in names] == pytest.approx([row.get(name) for name in names], abs=1e-5)
        for a, b in zip(parameters(folder / place / "out"), parameters(folder / "whole" / "out"), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-2)
        assert (read_manifest(folder / place / "out") or {})["ranks"] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_is_merged_and_for_peft(tmp_path, folder, dtype):
    """W + s B A of the adapter's own file, in fp64, is the merged model up to its rounding to bf16."""
    settings = changed(LORA, model={"dtype": dtype}, trainer={"save_adapters": True})
    run(settings, arguments(folder))
    out = folder / "run" / "out"
    before, after = (load_file(place / "model.safetensors") for place in (folder / "model", out))
    low, config = load_file(out / "adapter/adapter_model.safetensors"), read_json(out / "adapter/adapter_config.json")
    assert config["r"] == 4 and config["lora_alpha"] == 8 and "adapter/adapter_config.json" in str(read_manifest(out))
    matrices = [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
    adapted = {f"model.layers.{i}.{name}" for i in range(2) for name in matrices}
    assert low.keys() == {f"base_model.model.{name}.lora_{x}.weight" for name in adapted for x in "AB"}
    for name, weight in before.items():
        prefix, change = f"base_model.model.{name.removesuffix('.weight')}.lora_", torch.zeros(())
        if name.removesuffix(".weight") in adapted:
            change = 2.0 * low[f"{prefix}B.weight"].double() @ low[f"{prefix}A.weight"].double()
            assert change.norm() > 1e-3 * weight.norm()
        torch.testing.assert_close(after[name].double(), weight.double() + change, rtol=2**-8, atol=1e-6)


def test_targets_and_the_key_of_the_work(folder, monkeypatch):
    """Without LoRA no setting of it is part of the key: earlier runs stay complete."""
    options = {"lora_targets": ["o_proj"], "compile": False}
    _, gradients = first_gradients(monkeypatch, changed(LORA, trainer=options), arguments(folder))
    assert {name.partition("self_attn.")[2] for name in gradients} == {"o_proj.lora.A", "o_proj.lora.B"}
    without = changed(LORA, trainer={"lora_rank": 0, "lora_alpha": 3.0})
    assert not [name for name in training_settings(without, without.dpo) if "lora" in name]
    assert training_settings(LORA, LORA.dpo)["lora_targets"] == LORA.trainer.lora_targets


@pytest.mark.parametrize("layers", [2, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tokens", "recompute", "limit"), [(4096, True, 24e9), (8192, False, 60e9)])
def test_llama_3_8b_fits_one_gpu(layers, tokens, recompute, limit):
    settings = load_settings(ROOT / "configs" / "llama3-8b-one-gpu.toml")
    options = {"tokens_per_microbatch": tokens, "activation_checkpointing": recompute}
    config = replace(LlamaConfig.load(ROOT / "configs" / "architectures" / "llama-3-8b"), num_hidden_layers=layers)
    memory = count(config, settings := changed(settings, trainer=options), 1)
    adapted = layers * 16 * (4096 + 6144 + 2 * 4096 + 4096 + 2 * 14336 + 14336 + 4096)
    assert trained_parameters(config, settings.trainer) == adapted
    assert memory["parameters, fp32"] == memory["gradients, fp32"] == 4 * adapted
    assert memory["Adam's moments, fp32"] == 8 * adapted
    assert memory["frozen parameters, bf16"] == 2 * (8_030_261_248 - (32 - layers) * 218_112_000)
    # bf16, for each token: a block's input; or residuals, norms, attention's output, q, k, v, gate, up, and h.
    kept = layers * tokens * 2 * (4096 if recompute else 5 * 4096 + 6144 + 3 * 14336)
    assert kept < memory["activations kept for backward"] < 1.05 * kept + 0.1e9
    assert memory["needed"] < limit - (32 - layers) * (2 * 218_112_000 + 16 * adapted / layers + kept / layers)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_tiny_loop_runs_with_lora(tmp_path, ranks):
    (tmp_path / "data").symlink_to(ROOT / "data")
    text = f'extends = "{ROOT / "configs" / "tiny" / "lora.toml"}"\nnproc_per_node = {ranks}\n'
    (tmp_path / "tiny.toml").write_text(text + "[[iteration]]\njudge_pairs = false\n")
    code, _, err = processes.run(tmp_path, *ITERATE)
    assert code == 0, err
    manifest = read_manifest(tmp_path / "runs" / "tiny-lora" / "iter1" / "checkpoint") or {}
    assert manifest["first_loss"] == pytest.approx(0.693147, abs=1e-5) and manifest["ranks"] == ranks


@pytest.mark.peers
def test_peft_loads_the_adapter(folder):
    """PEFT's own merge of the adapter, on the model as transformers reads it, is the merged export."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    make_model(folder / "model", tied=False)
    run(changed(LORA, trainer={"save_adapters": True}), arguments(folder))
    out = folder / "run" / "out"
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, out / "adapter").merge_and_unload()
    merged = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    before = load_file(folder / "model" / "model.safetensors")
    assert merged.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(merged[name], weight, rtol=2**-8, atol=1e-6)
        assert torch.equal(weight, before[name]) == ("_proj" not in name)
