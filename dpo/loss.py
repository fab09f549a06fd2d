"""Log-probabilities of completions, and the losses computed from them.

Shapes: t tokens, d hidden_size, v vocabulary, n targets of a micro-batch, e examples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo.packing import MicroBatch
from kernels import launch
from kernels.attention import VarlenAttention
from kernels.launch import Attention
from model.llama import Llama


def completion_logprob(model: Llama, batch: MicroBatch, attention: Attention = "triton") -> Tensor:
    """log pi(token | all tokens before it) of every completion token, fp32 [n], for policy and reference."""

    def head(hidden_td: Tensor, weight_vd: Tensor) -> Tensor:
        if launch.use_triton(attention, hidden_td):
            from kernels.logprob_triton import linear_logprob
        else:
            from kernels.logprob import linear_logprob
        return linear_logprob(batch.predicting(hidden_td), weight_vd, batch.targets_n)

    return model(batch.ids_t, batch.positions_t, VarlenAttention(batch.segments, attention), head)


def dpo_loss(policy_e2: Tensor, reference_e2: Tensor, beta: float) -> dict[str, Tensor]:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7) of each pair [e], from log pi and log pi_ref of chosen
    y_w and rejected y_l, summed over tokens:

        reward(y) = beta log(pi(y|x) / pi_ref(y|x))    loss = -log sigmoid(reward(y_w) - reward(y_l))
    """
    reward_chosen, reward_rejected = (beta * (policy_e2 - reference_e2)).unbind(1)
    margin = reward_chosen - reward_rejected
    logp_chosen, logp_rejected = policy_e2.unbind(1)
    terms = {"loss": -F.logsigmoid(margin), "reward_chosen": reward_chosen, "reward_rejected": reward_rejected}
    terms |= {"margin": margin, "accuracy": (margin > 0).float()}
    return terms | {"logp_chosen": logp_chosen, "logp_rejected": logp_rejected}


def chosen_nll(batch: MicroBatch, logprob_n: Tensor) -> Tensor:
    """-log pi(y_w|x) / |y_w| of each pair [e], which keeps the likelihood of chosen (arXiv 2404.19733, eq. 1)."""
    return -(batch.sums(logprob_n) / batch.sums(torch.ones_like(logprob_n)))[:, 0]


def sft_loss(batch: MicroBatch, logprob_n: Tensor) -> dict[str, Tensor]:
    """-sum of weight * log pi(token) over each completion [e]."""
    return {"loss": -batch.sums(batch.weights_n * logprob_n)[:, 0]}
