"""One thread a test process: the tensors here are tiny, and threads that wait for each other cost more than they do.

Tests marked `kernels` run Triton's kernels: on CUDA where there is one, else in Triton's interpreter, for which the
process must be started with TRITON_INTERPRET=1 (`make test` does).
"""

from pathlib import Path

import hypothesis
import pytest
import torch
from processes import finished_run

from kernels.launch import interpreted

torch.set_num_threads(1)
hypothesis.settings.register_profile("shared", deadline=None)  # of a shared machine no example's time says anything
hypothesis.settings.load_profile("shared")
if interpreted():
    import interpreter_bf16  # noqa: F401


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    if torch.cuda.is_available() and not interpreted():
        return torch.device("cuda")
    if interpreted():
        return torch.device("cpu")
    pytest.skip("the kernels need CUDA or TRITON_INTERPRET=1")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A folder with a finished run of tiny.toml in runs/tiny, to be looked at; tests that change it take a copy.

    Its output is in out.txt and err.txt.
    """
    return finished_run(tmp_path_factory.mktemp("project"))
