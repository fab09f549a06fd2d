"""A number that is not finite ends with the name of what it came from: a setting, a request, an example, a tensor, a
file; and no JSON file holds one."""

import json
import math
import typing
from dataclasses import fields, is_dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import SETTINGS, arguments, changed, make_inputs, run
from workload import FIXTURE

from dpo.metrics import MetricsLog
from dpo.reference import reference_logprob
from kernels.attention import forward
from kernels.metadata import build_metadata
from kernels.paged import PagedAttention, empty_cache
from kernels.segments import Segments
from model.weights import load_model, save_pretrained
from sampling import sampler
from sampling.engine import Engine
from sampling.llm import SamplingParams
from sampling.request import Request, Sampling
from stages.command import UserError
from stages.config import read_config
from stages.files import read_json, read_jsonl, write_json, write_jsonl
from stages.settings import Settings

WRONG = ["nan", "inf", "-inf", "-0.001", "1" + "0" * 400]


def numbers(section: type = Settings, place: str = "") -> list[str]:
    """The places of all settings that are fractions, such as "dpo.beta"."""
    found = []
    for name, hint in typing.get_type_hints(section).items():
        if is_dataclass(hint):
            found += numbers(typing.cast(type, hint), f"{place}{name}.")
        elif float in (hint, *typing.get_args(hint)) and name in {field.name for field in fields(section)}:
            found.append(f"{place}{name}")
    return found


@pytest.mark.parametrize("place", numbers())
def test_no_setting_takes_one(tmp_path, place):
    """Nor a negative number, nor one that no float holds."""
    path, (section, name) = tmp_path / "config.toml", place.split(".")
    for value in WRONG:
        needed = 'name = "x"\niteration = []\nmodel.path = "x"\nrespond.prompts_per_iteration = 1\n'
        path.write_text(f"{needed}{section}.{name} = {value}\n")
        with pytest.raises(UserError, match=rf"config\.toml: {section}\.{name}( is|: expected float)"):
            read_config(Settings, path)


def test_the_settings_are_found():
    assert {"dpo.beta", "dpo.nll_weight", "sft.answer_weight", "metajudge.max_score_gap"} <= set(numbers())


@pytest.mark.parametrize("temperature", ["1e-40", "1e-46", "0.0009"])
def test_no_temperature_makes_quotients_that_overflow(tmp_path, temperature):
    for section in ("respond", "judge", "metajudge", "prompts"):
        needed = 'name = "x"\niteration = []\nmodel.path = "x"\nrespond.prompts_per_iteration = 1\n'
        (tmp_path / "config.toml").write_text(f"{needed}{section}.temperature = {temperature}\n")
        with pytest.raises(UserError, match=rf"{section}\.temperature is .*; it must be 0, or at least 0\.001"):
            read_config(Settings, tmp_path / "config.toml")
    with pytest.raises(UserError, match=r"temperature must be 0 or at least 0\.001"):
        SamplingParams(float(temperature))


@pytest.mark.parametrize("change", [{"temperature": math.nan}, {"temperature": math.inf}, {"top_p": math.nan}])
def test_nor_does_the_front_door_of_the_engine(change):
    with pytest.raises(UserError, match=r"temperature must be 0 or at least 0\.001"):
        SamplingParams(**change)


def spoiled_engine(value: float) -> Engine:
    """An engine whose head gives logits that are not finite, after weights that are."""
    model = load_model(FIXTURE, torch.float32)
    with torch.no_grad():
        model.norm.weight.fill_(1e30)
        head_vd = (model.lm_head or model.embed_tokens).weight
        head_vd[7] = 1e30
        head_vd[7, ::2] *= math.copysign(1, value)
    return Engine(model, num_kv_blocks=32, block_size=8, max_num_batched_tokens=64, max_num_seqs=4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_logits_name_their_request(temperature, value):
    with pytest.raises(UserError, match=r"p3/r1: logits that are not finite"):
        list(spoiled_engine(value).run([Request("p3/r1", [3, 4, 5], Sampling(temperature, 0.95, 4), 0)]))


def spoil(q: torch.Tensor, k: torch.Tensor, what: str) -> None:
    """Change a query, a key, or all of them, so that some scores are not finite."""
    if what == "overflow":
        q *= 1e25
        k *= 1e25
    else:
        {"q": q, "k": k}[what[0]][5, 0, 0] = float(what[1:])


SPOILED = {"qnan": [5], "qinf": [5], "knan": range(5, 12), "overflow": range(12)}


@pytest.mark.parametrize("what", SPOILED)
def test_attention_has_no_numbers_where_scores_are_not_finite(what):
    """PyTorch's kernel for CPUs would give zeros there. In training, in prefill, behind a prefix in the cache."""
    q, k, v = (torch.randn(12, heads, 16, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    spoil(q, k, what)
    wanted = [i not in SPOILED[what] for i in range(12)]
    out_thd, _ = forward(q, k, v, Segments.make([12]))
    assert out_thd.flatten(1).isfinite().all(1).tolist() == wanted
    cache, rope = empty_cache((1, 2, 5, 2, 4, 16), torch.float32, q.device), (torch.ones(1), torch.zeros(1))
    for spans in ([(0, 12)], [(0, 4), (4, 12)]):
        out = []
        for start, end in spans:
            attend = PagedAttention(cache, build_metadata([], [(start, end, [0, 1, 2])], 4), 4)
            out.append(attend(0, torch.cat((q, k), 1)[start:end], v[start:end], rope))
        assert not torch.cat(out)[SPOILED[what]].flatten(1).isfinite().all(1).any()


@pytest.mark.kernels
@pytest.mark.parametrize("what", SPOILED)
def test_so_has_the_kernel(device, what):
    from kernels import attention_triton

    q, k, v = (torch.randn(12, heads, 16, device=device) for heads in (4, 2, 2))
    spoil(q, k, what)
    out_thd, _ = attention_triton.forward(q, k, v, Segments.make([12], device=device))
    assert not out_thd[SPOILED[what]].flatten(1).isfinite().all(1).any()


def rows(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Six distributions of 300 tokens, of which those in the middle are not finite; greedy and drawn."""
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    logits[1, 7], logits[2, 299], logits[3] = math.nan, math.inf, -math.inf
    logits[4, 3] = math.nan
    settings = torch.tensor([0.0, 0.0, 0.8, 0.8, 0.8, 0.8]), torch.full((6,), 0.9), torch.arange(6), torch.arange(6)
    return tuple(x.to(device) for x in (logits, *settings))


def check_rows(sample, device: torch.device) -> None:
    logits, *settings = rows(device)
    ids, logprobs = sample(logits, *settings)
    assert logprobs.isfinite().tolist() == [True, False, False, False, False, True]
    assert ids.min() >= 0 and ids.max() < 300
    fine = torch.tensor([0, 5], device=device)
    alone, expected = sample(logits[fine], *(x[fine] for x in settings))
    assert torch.equal(ids[fine], alone) and torch.equal(logprobs[fine], expected)


def test_the_sampler_marks_such_a_row_and_no_other():
    check_rows(sampler.sample, torch.device("cpu"))


@pytest.mark.kernels
def test_the_kernel_marks_such_a_row_and_no_other(device):
    from kernels import topp

    check_rows(topp.sample, device)


@pytest.fixture
def folder(tmp_path):
    return make_inputs(tmp_path)


def test_a_loss_on_held_out_pairs_names_the_pair(folder, monkeypatch):
    def poisoned(*given):
        return reference_logprob(*given).index_fill_(0, torch.arange(12), torch.nan)

    monkeypatch.setattr("dpo.train.reference_logprob", poisoned)
    monkeypatch.setattr("dpo.trainer.Trainer.train_epoch", lambda self, bar: None)
    with pytest.raises(UserError, match=r"the loss is not finite in p\d+;"):
        run(changed(dpo={"held_out": 0.5}), arguments(folder))
    assert "NaN" not in (folder / "run" / "train" / "metrics.jsonl").read_text()


def test_the_references_log_probabilities_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr("dpo.reference.completion_logprob", lambda model, batch, _: batch.weights_n * math.nan)
    with pytest.raises(UserError, match=r'reference/\S+: not written, for a number is not finite: {"id": "p0"'):
        run(SETTINGS, arguments(folder))
    assert not list((folder / "run").rglob("*.jsonl"))


def test_weights_that_training_has_spoiled_are_not_exported(folder):
    """Of the first step at this rate no loss says anything: there is no second."""
    settings = changed(dpo={"learning_rate": 1e38, "weight_decay": 1e10, "epochs": 1, "batch_size": 12})
    with pytest.raises(UserError, match=r"epoch-1\S*: tensor \S+weight has numbers that are not finite"):
        run(settings, arguments(folder))
    assert not (folder / "run" / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_name_their_tensor(folder, tmp_path, value):
    path, name = folder / "model" / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    model = load_model(folder / "model", torch.float32)
    tensors = load_file(path)
    tensors[name][3, 5] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"{folder}/model: tensor {name.removeprefix('model.')} has numbers"):
        load_model(folder / "model", torch.float32)
    with torch.no_grad():
        model.norm.weight[0] = value
    with pytest.raises(UserError, match=r"out: tensor model\.norm\.weight has numbers that are not finite"):
        save_pretrained(model.named_parameters(), model.config, folder / "model", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_no_json_file_is_read_with_one(tmp_path, value):
    """Scores from a file, and any other rows."""
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"id": "a", "score": 1e308}}\n{{"id": "b", "score": {value}}}\n')
    with pytest.raises(UserError, match=rf"scores\.jsonl, line 2: not JSON .*{value}"):
        list(read_jsonl(path))
    (tmp_path / "report.json").write_text(f'{{"rate": [{value}]}}')
    with pytest.raises(UserError, match=rf"report\.json: not JSON .*{value}"):
        read_json(tmp_path / "report.json")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_json_file_is_written_with_one(tmp_path, value):
    """The error shows the beginning of what would have been written, up to the number."""
    row, shown = {"id": "p3", "NaN": {"rates": [0.5, value]}, "after": 1}, json.dumps(value)
    for write, given in ((write_json, row), (write_jsonl, [{"id": "p2"}, row])):
        with pytest.raises(UserError, match=rf'out: not written, .*{{"id": "p3", "NaN": {{"rates": \[0\.5, {shown}$'):
            write(tmp_path / "out", given)
    log = MetricsLog(tmp_path / "log")
    log.write({"step": 0, "loss": 0.5})
    with pytest.raises(UserError, match=rf'metrics\.jsonl: not written, .*"loss": {shown}$'):
        log.write({"step": 1, "loss": value})
    assert list(read_jsonl(tmp_path / "log" / "metrics.jsonl")) == [{"step": 0, "loss": 0.5}]
    assert not (tmp_path / "out").exists()
