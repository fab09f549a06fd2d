"""The error of a rank that loses another rank."""

import os
from unittest import mock

import pytest
import torch
from training import start_rank, two_ranks

from dpo.parallel import distributed

RANK = """
import torch
from dpo.parallel import distributed, end_process

def work():
    with distributed(1, 0.05) as world:
        world.sum(torch.zeros(1))
        world.sum(torch.zeros(1))

end_process(work)
"""


@pytest.mark.parametrize(
    ("hangs", "complaint"),
    [
        (True, "another rank did not take part within 0.05 minutes (trainer.timeout_minutes)"),
        (False, "another rank has ended; its log says why"),
    ],
)
def test_a_rank_that_loses_another_prints_why(hangs, complaint):
    """This process is rank 1, which leaves the second sum out."""
    group = two_ranks()
    rank, err = start_rank(group, RANK, "0"), ""
    with mock.patch.dict(os.environ, group | {"RANK": "1"}), distributed(1) as world:
        world.sum(torch.zeros(1))
        if hangs:
            _, err = rank.communicate(timeout=60)
    if not hangs:
        _, err = rank.communicate(timeout=60)
    assert rank.returncode == 1 and f"error: rank 0: {complaint}" in err and "Traceback" not in err
