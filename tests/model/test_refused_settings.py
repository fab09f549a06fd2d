"""What a model's files say and this project does not do is an error that names it; harmless keys are none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.chat import load_stop_ids
from model.config import LlamaConfig, RopeScaling
from model.weights import load_model
from stages.command import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN = json.loads((FIXTURES / "llama3" / "config.json").read_text())
SCALED = json.loads((FIXTURES / "llama32" / "config.json").read_text())
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def read(**changes) -> LlamaConfig:
    return LlamaConfig.from_dict(PLAIN | changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("partial_rotary_factor", 0.5), ("quantization_config", {"quant_method": "fp8"}), ("sliding_window", 4096)),
        *(("attention_multiplier", 0.01), ("logits_scaling", 8.0), ("final_logit_softcapping", 30.0)),
        *(("layer_types", ["sliding_attention"]), ("use_qk_norm", True), ("original_max_position_embeddings", 64)),
        *(
            ("attention_bias", True),
            ("mlp_bias", "false"),
            ("hidden_act", "gelu"),
            ("model_type", "gemma"),
            ("model_type", ["llama"]),
        ),
        *(("attention_dropout", 0.1), ("rope_interleaved", True), ("tie_word_embeddings", "false")),
        *(("tie_word_embeddings", 1), ("hidden_size", "48"), ("hidden_size", 48.0), ("hidden_size", [48])),
        *(("vocab_size", True), ("vocab_size", 0), ("vocab_size", 10**400), ("intermediate_size", -1)),
        *(("num_attention_heads", {}), ("num_attention_heads", None), ("num_key_value_heads", 2.0), ("head_dim", "8")),
        *(("rms_norm_eps", "1e-5"), ("rms_norm_eps", 0), ("rms_norm_eps", -1e-5), ("rms_norm_eps", float("nan"))),
        *(("max_position_embeddings", 1e5), ("num_hidden_layers", 10**7), ("rope_parameters", [1]), ("head_dim", 7)),
        ("layer_types", ["full_attention"]),
    ],
)
def test_a_key_that_is_not_computed_or_has_a_wrong_type_is_named(key, value):
    with pytest.raises(UserError, match=rf"^config\.json: .*{key}"):
        read(**{key: value})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rope_parameters": None, "rope_scaling": {"factor": 8.0}}, "rope type None"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope type None"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, "RoPE is described twice"),
        ({"rope_theta": 1e6}, "RoPE is described twice"),
        ({"rope_parameters": {"rope_type": "llama3", "type": "default", **LLAMA3}}, "RoPE is described twice"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "more than its type has"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "more than its type has"),
        ({"rope_parameters": {"rope_type": "llama3"}}, r"rope_scaling\.factor: missing"),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "attention_factor": 1.0}}, "attention_factor: unknown"),
        (
            {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "factor": "8"}},
            r"rope_scaling\.factor: expected float",
        ),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "factor": 0}}, r"rope_scaling\.factor is 0"),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4}}, "two frequencies do not fit"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, "rope_theta: expected float"),
        ({"num_key_value_heads": 4}, "the numbers of heads"),
    ],
)
def test_what_contradicts_itself_is_an_error(changes, complaint):
    with pytest.raises(UserError, match=rf"^config\.json: .*{complaint}"):
        read(**changes)


@pytest.mark.parametrize("theta", [5e-324, 0.5, 1e300, -1, "1e4"])
def test_a_theta_without_sense_is_named(theta):
    with pytest.raises(UserError, match=r"^config\.json: rope_theta"):
        read(rope_parameters={"rope_type": "default", "rope_theta": theta}, rope_theta=None)


def test_both_generations_of_files_say_the_same_of_rope():
    """transformers 4 and 5 write it so; a base without a word is 10,000, as in LLaMA's first files."""
    old = {key: value for key, value in PLAIN.items() if key != "rope_parameters"}
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    for spelled in (
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}, "rope_theta": 500000},
    ):
        config = LlamaConfig.from_dict(old | spelled)
        assert (config.rope_theta, config.rope_scaling) == (500000.0, scaling)
    assert (LlamaConfig.from_dict(old).rope_theta, LlamaConfig.from_dict(old).rope_scaling) == (10000.0, None)


@pytest.mark.parametrize(
    "published",
    [
        {
            "_name_or_path": "meta-llama/Llama-2-7b-chat-hf",
            "pretraining_tp": 2,
            "pad_token_id": 0,
            "rope_scaling": None,
        },
        {"unsloth_fixed": True, "unsloth_version": "2025.1", "architectures": ["LlamaForCausalLM"], "torch_dtype": "x"},
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {}}},
        {"dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "head_dim": None, "mlp_bias": None},
    ],
    ids=["llama-2", "unsloth", "smollm2", "null"],
)
def test_harmless_keys_change_nothing(published):
    plain = {key: value for key, value in PLAIN.items() if key != "rope_parameters"}
    assert LlamaConfig.from_dict(plain | published) == LlamaConfig.from_dict(plain | {"head_dim": 8})


@pytest.mark.parametrize(
    "value", ["</s>", 1.5, -1, 10**9, 131, True, [2, "3"], [[2]], {"id": 2}, "2"], ids=lambda value: str(value)
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ends_of_sequence_are_ids_of_the_vocabulary(tmp_path, file, value):
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    (tmp_path / file).write_text(json.dumps((PLAIN if file == "config.json" else {}) | {"eos_token_id": value}))
    with pytest.raises(UserError, match=r"the ends of sequence are .* below 131"):
        load_stop_ids(tmp_path)


def test_the_generation_config_goes_before_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PLAIN | {"eos_token_id": 7}))
    for value, ids in ((None, {7}), (0, {0}), ([130, 4], {4, 130}), ([], set())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert load_stop_ids(tmp_path) == ids


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of three layers with tied embeddings."""
    return Path(shutil.copytree(FIXTURES / "llama32", tmp_path / "model"))


def rewrite(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)


def test_a_head_of_its_own_is_not_dropped(folder):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lm_head__weight=embedding.clone())
    assert torch.equal(load_model(folder, torch.float32).embed_tokens.weight, embedding)
    for other in (embedding + (torch.arange(len(embedding)) == 130)[:, None], embedding[:-1], embedding.bfloat16()):
        rewrite(folder, lm_head__weight=other.contiguous())
        with pytest.raises(UserError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
            load_model(folder, torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_quantized_weights_are_no_plain_numbers(folder, dtype):
    rewrite(folder, model__norm__weight=torch.ones(48).to(dtype))
    with pytest.raises(UserError, match=r"tensor model\.norm\.weight is of [A-Z]\w+; quantized"):
        load_model(folder, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_plain_floats_are_read_at_their_values(folder, dtype):
    rewrite(folder, model__norm__weight=torch.full((48,), 0.375, dtype=dtype))
    assert load_model(folder, torch.float32).norm.weight.tolist() == [0.375] * 48


def test_a_tensor_in_two_shards_is_read_from_the_one_that_the_index_names(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    norm = "model.norm.weight"
    save_file(tensors, folder / "a.safetensors")
    save_file({norm: tensors[norm] + 1}, folder / "b.safetensors")
    for place, moved in (("a", 0), ("b", 1)):
        places = dict.fromkeys(tensors, "a.safetensors") | {norm: f"{place}.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert torch.equal(load_model(folder, torch.float32).norm.weight, tensors[norm] + moved)
    del tensors[norm]
    save_file(tensors, folder / "b.safetensors")  # which the index says has it
    with pytest.raises(UserError, match=rf"tensor {norm} is missing"):
        load_model(folder, torch.float32)


def test_a_tensor_in_two_shards_that_the_index_does_not_name_is_an_error(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    norm = "model.norm.weight"
    save_file(tensors, folder / "a.safetensors")
    save_file({norm: tensors[norm] + 1, "model.rotary_emb.inv_freq": torch.ones(1)}, folder / "b.safetensors")
    places = dict.fromkeys(tensors, "a.safetensors") | {"model.rotary_emb.inv_freq": "b.safetensors"}
    del places[norm]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=rf"b\.safetensors: tensor {norm} stands in another file, too"):
        load_model(folder, torch.float32)


def test_a_tensor_that_ends_like_the_head_is_not_dropped(folder):
    rewrite(folder, model__layers__0__lm_head__weight=torch.ones(1))
    with pytest.raises(UserError, match=r"tensor model\.layers\.0\.lm_head\.weight is unexpected"):
        load_model(folder, torch.float32)


def test_an_adapter_beside_the_weights_is_an_error(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json: adapters are not applied"):
        load_model(folder, torch.float32)


def test_a_whole_file_beside_an_index_that_does_not_name_it_is_an_error(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "a.safetensors"}}')
    shutil.copy(folder / "model.safetensors", folder / "a.safetensors")
    with pytest.raises(UserError, match=r"index\.json: its weight_map is no table of all files"):
        load_model(folder, torch.float32)
