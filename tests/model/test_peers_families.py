"""Each family against transformers, on small random models that each has saved: `make test-peers`."""

import pytest
import torch

from kernels.attention import VarlenAttention
from kernels.segments import Segments
from model.llama import logits_head
from model.weights import load_model, save_pretrained
from sampling.engine import Engine
from sampling.request import Request, Sampling

pytestmark = pytest.mark.peers
BASE = {"vocab_size": 307, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "bos_token_id": 1}
BASE |= {"num_attention_heads": 8, "max_position_embeddings": 256, "eos_token_id": 2, "pad_token_id": None}
SHAPES = [  # heads a key-value head: 1, 4, 8
    *({"num_key_value_heads": 8}, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    *({"num_key_value_heads": 1, "head_dim": 20}, {"num_key_value_heads": 2, "head_dim": 6}),
]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_logits_and_greedy_tokens_of_what_either_saved(family, shape, tmp_path):
    """A Mistral's window just holds all tokens; a Qwen2's is not in use."""
    transformers = pytest.importorskip("transformers")
    windows = {"mistral": {"sliding_window": 104}, "qwen2": {"use_sliding_window": False, "sliding_window": 9}}
    config = transformers.AutoConfig.for_model(family, **BASE, **shape, **windows.get(family, {}))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in theirs.named_parameters():  # far from the initial values, so that no term vanishes
        parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15) + ("norm" in name))
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        ours = load_model(folder, torch.float32)
        ids = torch.randint(3, 307, (40,))
        attend = VarlenAttention(Segments.make([len(ids)]))
        wanted = theirs(ids[None]).logits[0]
        assert (ours(ids, torch.arange(40), attend, logits_head) - wanted).abs().max() <= 1e-4 * wanted.std()
        engine = Engine(ours, num_kv_blocks=64, block_size=8, max_num_batched_tokens=17, max_num_seqs=4)
        [done] = engine.run([Request("a", ids.tolist(), Sampling(0.0, 1.0, 64), 0)])
        whole = theirs.generate(ids[None], max_new_tokens=64, do_sample=False, eos_token_id=None)
        assert done.ids == whole[0, 40:].tolist() and len(done.ids) == 64
        for parameter in ours.parameters():  # then our own weights, in a model that they load
            parameter += 0.05 * torch.randn_like(parameter)
        save_pretrained(ours.named_parameters(), ours.config, folder, tmp_path / "ours")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
