"""Tests that only a GPU can pass in full, besides those marked `kernels`: captured graphs, NCCL, the loop.

`pytest -m gpu` with TRITON_INTERPRET=1 and no GPU goes through the same lines, uncaptured and over gloo.
"""

import json

import pytest
import torch
from processes import ITERATE, ROOT
from processes import run as run_command
from training import SETTINGS, arguments, changed, losses, make_inputs, run, run_ranks
from workload import FIXTURE, mixed_requests

from model.weights import load_model
from sampling.engine import Engine
from sampling.graphs import DecodeGraphs, Inputs, decode
from sampling.request import Sampling

pytestmark = pytest.mark.gpu


@torch.inference_mode()
def test_a_graph_replays_what_was_captured(device):
    """After a run, the pass that each graph would compute next, launched op by op: the same tokens."""
    model = load_model(FIXTURE, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    machine = Engine(model, num_kv_blocks=256, block_size=8, max_num_batched_tokens=64, max_num_seqs=32)
    if device.type == "cpu":
        machine.graphs, machine.max_passes = DecodeGraphs(model, machine.cache), 3
    completions = list(machine.run(mixed_requests(8, Sampling(1.0, 0.9, 8))))
    assert len(completions) == 8 and len(machine.graphs.buckets) > 1
    for sizes, bucket in machine.graphs.buckets.items():
        inputs = Inputs(*(x.clone() for x in bucket.device))
        ids, logprobs = (x.clone() for x in bucket.run())
        again, others = decode(model, machine.cache, inputs, sizes)
        assert all(map(torch.equal, inputs, bucket.device)) and torch.equal(inputs.tokens[0], ids)
        assert torch.equal(ids, again)
        torch.testing.assert_close(logprobs, others)


def test_two_ranks_are_one_rank(tmp_path, device):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs two GPUs")
    settings = changed(SETTINGS, model={"dtype": "bfloat16" if device.type == "cuda" else "float32"})
    folder = make_inputs(tmp_path)
    one = run(settings, arguments(folder, place="one"))
    [two] = run_ranks((settings, arguments(folder, place="two")))
    tolerance = 3e-2 if device.type == "cuda" else 1e-5
    torch.testing.assert_close(losses(two), losses(one), atol=tolerance, rtol=tolerance)


def test_the_tiny_loop(tmp_path):
    """tiny.toml in bfloat16, which is what the kernels take on CUDA."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    text = (ROOT / "configs" / "tiny.toml").read_text()
    (tmp_path / "tiny.toml").write_text(text.replace('dtype = "float32"', 'dtype = "bfloat16"'))
    code, _, err = run_command(tmp_path, *ITERATE)
    assert code == 0, err
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    first, second = summary["iterations"]
    assert first["pairs"]["actor"] > 0 and second["pairs"]["actor"] > 0
    for row in (first, second):
        assert abs(row["dpo"]["first_loss"] - 0.693147) < 1e-2
        assert (tmp_path / row["checkpoint"] / "model.safetensors").is_file()
