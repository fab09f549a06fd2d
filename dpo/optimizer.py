"""AdamW, its schedule, and clipping by the global norm."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stages.settings import Dpo, Sft


def make_optimizer(model: nn.Module, section: Sft | Dpo) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) on the fp32 parameters, with weight decay on matrices only.

    The moments are allocated at once, so that a saved state can be loaded into them and they lie together in memory.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=section.learning_rate, fused=True)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over the first `warmup_ratio` of the steps, then half a cosine period down to zero."""
    warmup = round(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This rank's shards of the gradients, fp32."""
    gradients = (p.grad for p in parameters if p.grad is not None)
    return [g.to_local() if hasattr(g, "to_local") else g for g in gradients]


def squared_norm(gradients: list[Tensor]) -> Tensor:
    """Sum of squares, fp64. The sums of all ranks add up to the squared norm of the whole gradient."""
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()


def clip(gradients: list[Tensor], norm: float, max_norm: float) -> None:
    """Scale the gradients, whose global norm is `norm`, down to `max_norm`, as `clip_grad_norm_` does."""
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
