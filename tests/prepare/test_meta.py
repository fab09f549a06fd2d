"""Meta's layout: converted weights give the logits of Meta's own model, from llama-models, and errors name the file."""

import json

import fairscale_one_rank  # noqa: F401
import pytest
import sentencepiece
import torch
from llama_models.checkpoint import reshard_mp
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer
from meta_layout import PARAMS, our_logits, seeded, sentencepiece_file, shards, written
from torch import Tensor

from model.chat import load_chat
from model.config import LlamaConfig, RopeScaling
from model.tokenizer import SentencePieceTokenizer, load_tokenizer
from model.weights import load_model
from prepare.meta import convert, main
from prepare.seed_model import prepare
from stages.command import UserError
from stages.settings import Model

IDS = torch.randint(0, 516, (60,), generator=torch.Generator().manual_seed(1))


def their_logits(params: dict, tensors: dict[str, Tensor], ids: Tensor = IDS) -> Tensor:
    theirs = Transformer(ModelArgs(**params, max_seq_len=64, max_batch_size=1))
    theirs.load_state_dict(tensors)
    return theirs(ids[None], 0)[0]


def equal(folder, expected: Tensor, ids: Tensor = IDS) -> bool:
    return bool((our_logits(folder, ids) - expected).abs().max() <= 1e-5 * expected.std())


@pytest.mark.parametrize(("count", "scaled"), [(1, False), (4, True)])
def test_logits_equal_metas(tmp_path, count, scaled):
    params = PARAMS | {"use_scaled_rope": scaled}
    tensors = seeded(params)
    ranks = shards(tensors, count)
    if count > 1:
        merged = reshard_mp(ranks, size=1, rank=0)
        assert all(torch.equal(merged[name], tensors[name]) for name in tensors)
    folder = convert(written(tmp_path / "meta", params, ranks), tmp_path / "hf")
    assert equal(folder, their_logits(params, tensors))
    assert not equal(folder, their_logits(params | {"use_scaled_rope": not scaled}, tensors))


def test_llama2s_layout(tmp_path):
    """Every head has its keys, params.json says neither vocabulary nor theta, the embedding is split by columns."""
    full = {key: PARAMS[key] for key in PARAMS if key not in ("n_kv_heads", "ffn_dim_multiplier")}
    full |= {"vocab_size": 320, "rope_theta": 10000.0}
    tensors, ids = seeded(full), IDS % 320
    told = {key: full[key] for key in full if key != "rope_theta"} | {"vocab_size": -1}
    ranks = [rank | {"rope.freqs": torch.ones(4)} for rank in shards(tensors, 2, embedding=1)]
    source = written(tmp_path / "meta", told, ranks, sentencepiece_file)
    folder = convert(source, tmp_path / "hf")
    assert equal(folder, their_logits(full, tensors, ids), ids)
    assert (folder / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    table = json.loads((folder / "config.json").read_text())
    assert table["vocab_size"] == 320 and table["max_position_embeddings"] == 4096 and table["eos_token_id"] == 2
    assert isinstance(load_tokenizer(folder), SentencePieceTokenizer)
    assert load_chat(folder).stop_ids == {2}


def test_a_converted_llama3(tmp_path, monkeypatch, capsys):
    """What lies beside the weights; bfloat16 is kept, and an `original` folder is found."""
    tensors = {name: tensor.bfloat16() for name, tensor in seeded(PARAMS).items()}
    written(tmp_path / "repository" / "original", PARAMS, shards(tensors, 2))
    folder = tmp_path / "hf"
    monkeypatch.setattr("sys.argv", ["meta", str(tmp_path / "repository"), str(folder), "--context", "77"])
    main()
    assert capsys.readouterr().out.strip() == str(folder)
    config = LlamaConfig.load(folder)
    assert (config.max_position_embeddings, config.rope_scaling, config.tie_word_embeddings) == (77, None, False)
    assert torch.equal(load_model(folder, torch.bfloat16).state_dict()["norm.weight"], tensors["norm.weight"])
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_chat(folder).stop_ids == {261, 269}


def test_a_converted_llama32(tmp_path):
    """Scaled RoPE brings the long context and a third stop id; a head that is the embedding is stored once."""
    params = PARAMS | {"use_scaled_rope": True}
    tensors = seeded(params)
    tensors["output.weight"] = tensors["tok_embeddings.weight"].clone()
    source = written(tmp_path / "meta", params, shards(tensors, 2))
    folder = convert(source, tmp_path / "hf", rope_factor=32.0)
    config = LlamaConfig.load(folder)
    assert config.tie_word_embeddings and config.max_position_embeddings == 131072
    assert config.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert load_chat(folder).stop_ids == {261, 268, 269}
    assert equal(convert(source, tmp_path / "8"), their_logits(params, tensors))


def changed(name: str, change=lambda tensor: None, *ranks: int):
    """A change of a tensor of some ranks; without a new value they lack it."""

    def apply(params: dict, tensors: list[dict[str, Tensor]]) -> None:
        for rank in ranks or (0, 1):
            if (value := change(tensors[rank].pop(name, None))) is not None:
                tensors[rank][name] = value

    return apply


WQ, NORM = "layers.1.attention.wq.weight", "layers.2.ffn_norm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (changed(WQ, lambda t: None, 1), rf"consolidated\.01\.pth: tensor {WQ} is missing"),
        (changed("vision_model.x", lambda _: torch.ones(2)), r"tensor vision_model\.x is unexpected"),
        (changed(WQ, lambda t: t[:-1]), rf"{WQ}: its shards \[31, 64\] float32, .* do not make \[64, 64\]"),
        (changed(WQ, lambda t: t[:-1], 1), rf"{WQ}: its shards"),
        (changed(WQ, lambda t: t.half(), 1), rf"{WQ}: its shards .*float16"),
        (changed(NORM, lambda t: t + 1, 1), rf"{NORM}: its shards"),
        (lambda params, ranks: params.pop("rope_theta"), "key 'rope_theta' is missing, which Llama 3 needs"),
        (lambda params, ranks: params.update(moe_args={}), "key 'moe_args' is not implemented"),
        (lambda params, ranks: ranks.pop(), r"output\.weight 258 rows; is a consolidated file missing"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, change, complaint):
    params, ranks = dict(PARAMS), shards(seeded(PARAMS), 2)
    change(params, ranks)
    with pytest.raises(UserError, match=complaint):
        convert(written(tmp_path / "meta", params, ranks), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_files_that_are_missing_or_damaged(tmp_path):
    folder = written(tmp_path / "meta", PARAMS, shards(seeded(PARAMS), 2))
    first, second = sorted(folder.glob("*.pth"))

    def refused(complaint: str) -> None:
        with pytest.raises(UserError, match=complaint):
            convert(folder, tmp_path / "hf")

    torch.save({"a": sentencepiece.SentencePieceTrainer}, second)  # a pickle that names more than tensors
    refused(r"consolidated\.01\.pth: not a file of tensors")
    first.unlink()
    refused(r"consolidated\.00\.pth is missing, but consolidated\.01\.pth is there")
    (folder / "params.json").write_text("{\n]")
    refused(r"params\.json, line 2: not JSON")


@pytest.mark.parametrize("below", ["", "original"])
def test_metas_layout_is_recognised_where_a_directory_of_hugging_face_is_wanted(tmp_path, below):
    folder = tmp_path / "llama"
    (folder / below).mkdir(parents=True)
    (folder / below / "params.json").write_text("{}")
    for load in (LlamaConfig.load, lambda path: prepare(Model(path=str(path)))):
        with pytest.raises(UserError, match=rf"python -m prepare\.meta {folder} {folder}-hf and point model\.path"):
            load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("n_layers", 10**7), ("n_layers", "3"), ("n_layers", None), ("n_layers", 3.0), ("use_scaled_rope", "false")),
        *(("dim", "64"), ("n_heads", 0), ("n_kv_heads", [4]), ("norm_eps", "1e-5"), ("rope_theta", {})),
    ],
)
def test_numbers_of_a_wrong_type_or_size_are_refused(tmp_path, key, value):
    folder = written(tmp_path / "meta", PARAMS | {key: value}, shards(seeded(PARAMS), 2))
    with pytest.raises(UserError, match=rf"(params|config)\.json: {TRANSLATED.get(key, key)}( is|: expected)"):
        convert(folder, tmp_path / "hf")


TRANSLATED = {"dim": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"}
TRANSLATED |= {"norm_eps": "rms_norm_eps"}
