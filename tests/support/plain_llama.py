"""A second, plain implementation of Llama and its kin, and the DPO loss: fp64, one sequence at a time."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class PlainLlama:
    """The model of a Hugging Face directory in fp64. `weights` have the names of the file and take gradients."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        loaded = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.double().requires_grad_() for name, tensor in loaded.items()}

    def logits(self, ids: list[int]) -> Tensor:
        """[tokens, vocabulary]."""
        config, w = self.config, self.weights
        x = w["model.embed_tokens.weight"][ids]
        for i in range(config["num_hidden_layers"]):
            layer = {name.removeprefix(f"model.layers.{i}."): tensor for name, tensor in w.items()}
            x = x + self._attention(layer, self._norm(x, layer["input_layernorm.weight"]))
            y = self._norm(x, layer["post_attention_layernorm.weight"])
            gate, up = y @ layer["mlp.gate_proj.weight"].T, y @ layer["mlp.up_proj.weight"].T
            x = x + (gate / (1 + torch.exp(-gate)) * up) @ layer["mlp.down_proj.weight"].T
        return self._norm(x, w["model.norm.weight"]) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()

    def _attention(self, layer: dict[str, Tensor], x: Tensor) -> Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        tokens, d = len(x), self.config.get("head_dim", self.config["hidden_size"] // heads)

        def projected(name: str) -> Tensor:
            y = x @ layer[f"self_attn.{name}_proj.weight"].T + layer.get(f"self_attn.{name}_proj.bias", 0.0)
            y, norm = y.view(tokens, -1, d).transpose(0, 1), layer.get(f"self_attn.{name}_norm.weight")
            return y if norm is None else self._norm(y, norm)

        q, k, v = map(projected, "qkv")
        angles = torch.arange(tokens)[:, None] / self.config["rope_theta"] ** (torch.arange(0, d, 2).double() / d)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

        def rotated(y: Tensor) -> Tensor:
            return y * cos + torch.cat((-y[..., d // 2 :], y[..., : d // 2]), -1) * sin

        k, v = (y.repeat_interleave(heads // kv_heads, 0) for y in (rotated(k), v))
        scores = rotated(q) @ k.transpose(1, 2) / d**0.5
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        out = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return out.transpose(0, 1).reshape(tokens, -1) @ layer["self_attn.o_proj.weight"].T

    def logprobs(self, prompt: list[int], completion: list[int]) -> Tensor:
        """log pi of each completion token."""
        logits = self.logits(prompt + completion)[len(prompt) - 1 : -1]
        return (logits - logits.exp().sum(-1, keepdim=True).log())[range(len(completion)), completion]


def plain_dpo(policy: PlainLlama, reference: PlainLlama, pairs: list[dict], beta: float) -> Tensor:
    """The mean of -log sigmoid(beta (log-ratio of chosen - log-ratio of rejected))."""
    losses = []
    for pair in pairs:
        texts = [(pair["prompt_ids"], pair[key]) for key in ("chosen_ids", "rejected_ids")]
        chosen, rejected = (policy.logprobs(*t).sum() - reference.logprobs(*t).sum().detach() for t in texts)
        losses.append(torch.log(1 + torch.exp(-beta * (chosen - rejected))))
    return torch.stack(losses).mean()
