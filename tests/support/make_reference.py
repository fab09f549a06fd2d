"""Makes tests/fixtures/*: small seeded Llama checkpoints and their logits by transformers (fp32); families.json, logits
and greedy tokens of the models in families.py.

Run by hand with transformers installed: `python tests/support/make_reference.py`. Tests read only the files.
"""

import json
from pathlib import Path

import torch
from families import BASE as FAMILY
from families import IDS, VARIANTS, formula
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASE = {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
BASE |= {"max_position_embeddings": 512, "rms_norm_eps": 1e-5, "pad_token_id": None, "bos_token_id": 1}
BASE |= {"eos_token_id": 2}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SHAPES = {
    "llama2": {"num_key_value_heads": 6, "rope_theta": 10_000.0},
    "llama3": {"num_key_value_heads": 2, "rope_theta": 500_000.0, "tie_word_embeddings": False},
    "llama32": {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    "head_dim": {"num_key_value_heads": 3, "head_dim": 16, "rope_theta": 10_000.0},
}


@torch.no_grad()
def main() -> None:
    for number, (name, shape) in enumerate(SHAPES.items()):
        settings = BASE | shape
        if "rope_theta" in settings:
            settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
        torch.manual_seed(number)
        model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
        for parameter in model.parameters():  # far from the initial values, so that no term vanishes
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
            if parameter.dim() == 1:
                parameter.add_(1.0)
        folder = FIXTURES / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink()
        ids = torch.randint(3, settings["vocab_size"], (2, 150))
        save_file({"ids": ids, "logits": model(ids).logits}, folder / "reference.safetensors")
    write_families()


@torch.no_grad()
def write_families() -> None:
    """Of each model the last three tokens' logits, every seventh, and 64 greedy tokens."""
    rows = {}
    for name, shape in VARIANTS.items():
        settings = FAMILY | shape
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).eval()
        for part, parameter in model.named_parameters():
            parameter.copy_(formula(part, parameter.shape))
        ids = torch.tensor([IDS])
        logits, whole = model(ids).logits[0], model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=None)
        sample = {"logits": logits[-3:, ::7].double().round(decimals=5).tolist(), "deviation": logits.std().item()}
        rows[name] = {"parameters": model.num_parameters(), **sample, "greedy": whole[0, len(IDS) :].tolist()}
    (FIXTURES / "families.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
