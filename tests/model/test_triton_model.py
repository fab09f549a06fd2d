"""The whole model through Triton's kernels: forward, backward and generation equal the eager path's."""

import pytest
import torch
from families import write_model
from workload import FIXTURE, mixed_requests

from dpo.data import Example
from dpo.loss import completion_logprob
from dpo.packing import lay_out
from kernels.attention import VarlenAttention
from kernels.segments import Segments
from model.llama import logits_head
from model.weights import load_model
from sampling.engine import Engine
from sampling.graphs import DecodeGraphs
from sampling.request import Sampling

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:divide by zero")]


@pytest.fixture(params=["llama3", "qwen3-tied"])
def model(device, request, tmp_path):
    folder = FIXTURE if request.param == "llama3" else write_model(tmp_path, request.param)
    return load_model(folder, torch.float32 if device.type == "cpu" else torch.bfloat16, device)


def test_log_probabilities_and_their_gradients(model, device):
    """Of pairs of which each has a shared prompt."""
    second = Example("b", list(range(3, 24)), (list(range(9, 15)), list(range(70, 79))))
    examples = [Example("a", [3, 9, 4, 17, 8], ([7, 8, 9, 2], [5, 2])), second]
    batch = lay_out(examples, [0, 1], {0: 5, 1: 21}, device=device)
    model.requires_grad_()
    results = []
    for attention in ("triton", "sdpa"):
        model.zero_grad()
        logprob = completion_logprob(model, batch, attention)
        (batch.sums(logprob) * torch.tensor([1.0, -1.0], device=device)).sum().backward()
        results.append([logprob.detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= (1e-4 if device.type == "cpu" else 0.1) * theirs.norm()


FEW = {"num_kv_blocks": 11, "max_num_batched_tokens": 19, "max_num_seqs": 3}


@pytest.mark.parametrize(
    ("sampling", "few", "graphs"), [(Sampling(0.0, 1.0, 4), {}, False), (Sampling(1.0, 0.9, 4), FEW, True)]
)
def test_generation(model, sampling, few, graphs, device):
    """Off CUDA `graphs` are the same steps, padded to their buckets, without being captured.

    In bf16 roundings, and so tokens, differ: what is compared are the log-probabilities of the kernels' own tokens."""
    options = {"num_kv_blocks": 256, "block_size": 8, "max_num_batched_tokens": 64, "max_num_seqs": 32} | few
    results, requests = [], mixed_requests(4, sampling)
    for attention in ("triton", "sdpa"):
        machine = Engine(model, **options, attention=attention, cuda_graphs=graphs)
        if graphs and attention == "triton" and device.type == "cpu":
            machine.graphs, machine.max_passes = DecodeGraphs(model, machine.cache), 3
        results.append({c.id: c for c in machine.run(requests)})
        assert bool(machine.graphs) == (graphs and attention == "triton")
        assert (machine.preemptions > 0) == bool(few)
    if device.type == "cpu":
        assert {name: c.ids for name, c in results[0].items()} == {name: c.ids for name, c in results[1].items()}
    with torch.no_grad():
        for request in requests:
            completion, start = results[0][request.id], len(request.ids)
            ids = torch.tensor(request.ids + completion.ids, device=device)
            attend = VarlenAttention(Segments.make([len(ids)], device=device), "sdpa")
            logits = model(ids, torch.arange(len(ids), device=device), attend, logits_head)[start - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, ids[start:, None]).sum()
            assert abs(completion.logprob - expected) <= (1e-3 if device.type == "cpu" else 0.3)
