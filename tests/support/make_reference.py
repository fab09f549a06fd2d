"""Makes tests/fixtures/*: small seeded Llama checkpoints and their logits by transformers (fp32).

Run by hand with transformers installed: `python tests/support/make_reference.py`. Tests read only the files.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

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


if __name__ == "__main__":
    main()
