"""The error of a rank that loses another rank. One of the two is this process."""

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from training import group_of, start_rank

from dpo.parallel import distributed, return_memory

OTHER = """
import os, time, torch
from dpo import parallel
from stages.shards import end_process
parallel.PARTING = 0.2
def work():
    with parallel.distributed(1, {}) as world:
        world.sum(torch.zeros(1))
        {}
end_process(work)
"""


def test_a_rank_that_waits_in_vain_prints_why():
    """This process is rank 1, which leaves the second sum out."""
    group = group_of()
    first = start_rank(group, OTHER.format(0.05, "world.sum(torch.zeros(1))"), "0")
    with mock.patch.dict(os.environ, group | {"RANK": "1"}), pytest.raises(SystemExit):  # noqa: SIM117
        with distributed(1) as world:
            world.sum(torch.zeros(1))
            _, err = first.communicate(timeout=60)
    torch.distributed.destroy_process_group()
    message = "error: rank 0: another rank did not take part within 0.05 minutes (trainer.timeout_minutes)"
    assert first.returncode == 1 and message in err and "Traceback" not in err


def test_a_rank_that_loses_another_prints_why(capsys):
    """This process is rank 0; the other ends without a word."""
    group = group_of()
    second = start_rank(group, OTHER.format(1, "os._exit(9)"))
    with mock.patch.dict(os.environ, group | {"RANK": "0"}), pytest.raises(SystemExit) as ended:  # noqa: SIM117
        with distributed(1) as world:
            world.sum(torch.zeros(1))
            world.sum(torch.zeros(1))
    torch.distributed.destroy_process_group()
    second.communicate(timeout=60)
    assert ended.value.code == 1
    assert "error: rank 0: another rank has ended; its log says why" in capsys.readouterr().err


@pytest.mark.parametrize(("third", "code"), [("os._exit(9)", 1), ("pass", 0)])
def test_a_rank_that_dies_ends_those_that_wait_elsewhere(third, code):
    """As in a collective of NCCL, which hears of no end. Nothing but the processes themselves watches over them. A rank
    that is done ends nobody."""
    group, waits = group_of(3), "time.sleep(600)" if code else "time.sleep(1)"
    others = [start_rank(group, OTHER.format(1, waits), str(rank)) for rank in range(2)]
    last = start_rank(group, OTHER.format(1, third), "2")
    errors = [process.communicate(timeout=60)[1] for process in (*others, last)]
    assert [process.returncode for process in (*others, last)] == [code, code, 9 * code], errors
    for rank in range(2) if code else ():
        assert errors[rank] == f"error: rank {rank}: another rank has ended; its log says why\n"


@pytest.mark.parametrize("variable", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_training_expands_cudas_segments_unless_the_user_sets_the_allocator(monkeypatch, variable):
    given = mock.Mock()
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable or "UNRELATED", "backend:native")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", given)
    monkeypatch.setattr(torch.distributed, "init_process_group", mock.Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError), distributed(1):
        pass
    assert given.call_args_list == ([] if variable else [mock.call("expandable_segments:True")])


def test_freed_memory_between_tensors_goes_back_to_the_system():
    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    kept = [torch.ones(15_000) for _ in range(3000)][::50]
    before = resident_mib()
    return_memory()
    assert before - resident_mib() > 100 and len(kept) == 60
