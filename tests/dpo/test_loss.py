"""DPO's terms worked by hand on a vocabulary of three tokens."""

import pytest
import torch
from torch import Tensor

from dpo.data import Example
from dpo.loss import chosen_nll, completion_logprob, dpo_loss
from dpo.packing import lay_out

LOGITS = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [1.0, 1.0, 1.0]])  # row i: of the token that follows i
EXAMPLE = Example("p", [2, 0], ([1, 0], [2]))


class Bigram(torch.nn.Module):
    def forward(self, ids_t: Tensor, positions_t: Tensor, attend, head) -> Tensor:
        return head(torch.nn.functional.one_hot(ids_t, 3).float(), LOGITS.t().contiguous())


def test_dpo_by_hand():
    """log pi(chosen) = log p(1|0) + log p(0|1), log pi(rejected) = log p(2|0).

    p(.|0) = softmax(0, 1, 2): log p(1|0) = 1 - 2.40761 = -1.40761, log p(2|0) = -0.40761.
    p(.|1) = softmax(3, 0, 1): log p(0|1) = 3 - 3.16985 = -0.16985.
    With a reference of (-2, -1) and beta 0.5: rewards 0.5 (-1.57745 + 2) = 0.21127 and 0.5 (-0.40761 + 1) = 0.29620,
    margin -0.08492, loss log(1 + e^0.08492) = 0.73651.
    """
    batch = lay_out([EXAMPLE], [0])
    policy = batch.sums(completion_logprob(Bigram(), batch))
    torch.testing.assert_close(policy, torch.tensor([[-1.57745, -0.40761]]), atol=2e-5, rtol=0)
    terms = dpo_loss(policy, torch.tensor([[-2.0, -1.0]]), beta=0.5)
    expected = {"loss": 0.73651, "reward_chosen": 0.21127, "reward_rejected": 0.29620, "margin": -0.08492}
    expected |= {"accuracy": 0.0, "logp_chosen": -1.57745, "logp_rejected": -0.40761}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=2e-5)
    nll = chosen_nll(batch, completion_logprob(Bigram(), batch))
    assert nll.tolist() == pytest.approx([(1.40761 + 0.16985) / 2], abs=2e-5), "a token"
