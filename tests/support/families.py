"""Small models of Mistral, Qwen2 and Qwen3 whose weights a formula makes, so that none need be stored."""

from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import LlamaConfig
from model.llama import Llama
from model.weights import split_parameters
from stages.files import write_json

BASE = {"vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "rms_norm_eps": 1e-5}
BASE |= {"num_attention_heads": 8, "max_position_embeddings": 512, "hidden_act": "silu", "bos_token_id": 1}
BASE |= {"eos_token_id": 2, "rope_theta": 10_000.0, "tie_word_embeddings": False}
VARIANTS = {
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 100, "hidden_size": 64},
    "mistral-head_dim": {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": None, "head_dim": 10},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 1, "use_sliding_window": False, "sliding_window": 30},
    "qwen2-tied": {"model_type": "qwen2", "num_key_value_heads": 8, "hidden_size": 64, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 16, "attention_bias": False},
    "qwen3-tied": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": True},
}
IDS = [(7 * i * i + 3 * i) % 128 + 3 for i in range(36)]


def formula(name: str, shape: Iterable[int]) -> Tensor:
    """A tensor of Hugging Face's `name`, fp32, far from its initial value, so that no term vanishes."""
    sizes = torch.Size(shape)
    wave = torch.sin(0.7390851 * (torch.arange(sizes.numel(), dtype=torch.float64) + crc32(name.encode()) % 1000) ** 2)
    wave = 0.5 * wave if name.endswith("bias") else 1 + 0.4 * wave if "norm" in name else 0.25 * wave
    return wave.float().view(sizes)


def write_model(folder: Path, variant: str) -> Path:
    """A variant as a Hugging Face directory."""
    write_json(folder / "config.json", BASE | VARIANTS[variant])
    with torch.device("meta"):
        model = Llama(LlamaConfig.load(folder))
    tensors = split_parameters(model.named_parameters(), model.config)
    save_file({name: formula(name, tensor.shape) for name, tensor in tensors}, folder / "model.safetensors")
    return folder
