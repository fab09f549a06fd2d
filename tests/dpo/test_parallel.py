"""The error of a rank that loses another rank."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RANK = """
import os, sys, time
import torch
from dpo.parallel import distributed, end_process

def work():
    with distributed(1, 0.05) as world:
        world.sum(torch.zeros(1))
        if world.rank == 1:
            {fault}
        world.sum(torch.zeros(1))

end_process(work)
"""


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (
            "time.sleep(20)",
            "error: rank 0: another rank did not take part within 0.05 minutes (trainer.timeout_minutes)",
        ),
        ("os._exit(9)", "error: rank 0: another rank has ended; its log says why"),
    ],
)
def test_a_rank_that_loses_another_prints_why(fault, complaint):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | group | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", RANK.format(fault=fault)]
    ranks = [
        subprocess.Popen(words, env=environment | {"RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    _, err = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1 and complaint in err and "Traceback" not in err
    ranks[1].kill()
    ranks[1].communicate()
