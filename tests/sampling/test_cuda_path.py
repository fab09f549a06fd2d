"""The CUDA path without a GPU: its steps run on fake tensors, the kernels' launches recorded and left out.

Fake tensors raise where tensors of two devices meet, and where a shape or a number on the host depends on data.
"""

import ctypes
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from workload import FIXTURE

import dpo.packing
import kernels.paged_triton
import kernels.segments
import sampling.engine
from dpo.data import Example
from dpo.loss import completion_logprob, dpo_loss
from dpo.packing import lay_out
from dpo.trainer import squared_norm
from kernels.compile import recording
from kernels.launch import use_triton
from kernels.metadata import TileSizes
from model.config import LlamaConfig
from model.llama import Llama, _frequencies
from sampling.engine import Engine
from sampling.graphs import Inputs, bucket, decode, power_of_two
from sampling.request import Request, Sampling
from sampling.scheduler import Scheduled, Sequence, Step
from stages.command import UserError

CUDA, META = 1, 14  # c10::DeviceType


@pytest.fixture
def fake_cuda(monkeypatch):
    """Fake tensors on `cuda` with a build without CUDA, whose slot in the registry of device guards is empty: the guard
    of `meta`, which does nothing, serves. Pinned memory, of which there are no fakes, is left out."""
    for module in (sampling.engine, kernels.paged_triton, kernels.segments, dpo.packing):
        monkeypatch.setattr(module, "to_device", lambda x, dtype, device: torch.tensor(x, dtype=dtype, device=device))
    if torch.backends.cuda.is_built():
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__path__[0]) / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    registry[CUDA] = registry[META]
    _frequencies.cache_clear()
    monkeypatch.setattr(torch._subclasses.fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)  # else small ones are made for real
    yield
    registry[CUDA] = None
    _frequencies.cache_clear()


class OnDevice(TorchDispatchMode):
    """Every operation takes and gives tensors of the device alone, so that none waits for a copy."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            assert not isinstance(value, torch.Tensor) or value.device.type == "cuda", function
        self.operations += 1
        return result


@pytest.fixture(params=["triton", "sdpa"])
def fake_engine(request, fake_cuda):
    options = {"num_kv_blocks": 64, "block_size": 8, "max_num_batched_tokens": 64, "max_num_seqs": 8}
    with FakeTensorMode(), torch.inference_mode(), recording(90):
        yield Engine(bf16_model(), **options, attention=request.param, cuda_graphs=False)


def bf16_model() -> Llama:
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Llama(LlamaConfig.load(FIXTURE))
    torch.set_default_dtype(torch.float32)
    return model


def test_a_mixed_step_stays_on_the_device(fake_engine):
    """Decoding with a shared prefix, a prompt from its beginning, and one behind a prefix."""

    def item(length: int, start: int, blocks: list[int]) -> Scheduled:
        request = Request("r", list(range(length)), Sampling(1.0, 0.9, 8), seed=1)
        return Scheduled(Sequence(request, 0, 100, request.ids, computed=start, blocks=blocks), start, length)

    decode = [item(20, 19, [0, 1, 2]), item(24, 23, [0, 1, 3])]
    step = Step(decode, [item(13, 0, [4, 5]), item(30, 16, [0, 1, 6, 7])])
    ids_t = torch.zeros(1 + 1 + 13 + 14, dtype=torch.int64, device="cuda")
    logits = fake_engine._logits(step, step.metadata(8), ids_t)
    assert logits.shape == (4, fake_engine.model.config.vocab_size)
    assert (logits.device.type, logits.dtype) == ("cuda", torch.bfloat16)


@pytest.mark.parametrize("fake_engine", ["triton"], indirect=True)
def test_what_is_captured_has_no_host_sync_and_no_shape_from_data(fake_engine):
    sizes = TileSizes(tokens=8, blocks=32, narrow=16, wide=16, entries=32)
    inputs = Inputs.zeros(sizes, torch.device("cuda"))
    decode(fake_engine.model, fake_engine.cache, inputs, sizes)  # the constant tables are made once
    with OnDevice() as watched, recording(90) as launches:
        ids, logprobs = decode(fake_engine.model, fake_engine.cache, inputs, sizes)
    assert watched.operations > 50
    assert (ids.shape, ids.dtype, logprobs.shape) == ((8,), torch.int64, (8,))
    layers = fake_engine.model.config.num_hidden_layers
    per_layer = {"rope.rotate": layers, "paged.read": 2 * layers, "paged.merge": layers}
    per_layer |= {"norm.forward": 2 * layers + 1, "swiglu.activate": layers}
    assert Counter(launch.name for launch in launches) == per_layer | {"topp.chunk": 1, "topp.draw": 1}


def test_a_training_micro_batch_has_no_host_sync(fake_cuda):
    """Forward and loss of pairs that share prompts, the reference looked up on the device, and the gradients' norm.

    Autograd runs no backward pass for a device that is not there."""
    device = torch.device("cuda")
    with FakeTensorMode(), recording(90):
        model = bf16_model()
        pairs = [Example("a", [1] * 20, ([1, 2], [3])), Example("b", [1] * 30, ([4], [5, 6, 7]))]
        batch, reference_e2 = lay_out(pairs, [0, 1], {0: 20, 1: 30}, device=device), torch.zeros(2, 2, device=device)
        completion_logprob(model, batch)  # the constant tables are made once
        with OnDevice() as watched, recording(90) as launches:
            policy_e2 = batch.sums(completion_logprob(model, batch))
            loss_e = dpo_loss(policy_e2, reference_e2[batch.examples_e], 0.1)["loss"]
            square = squared_norm(list(model.parameters()))
    assert watched.operations > 100 and loss_e.shape == (2,) and square.shape == ()
    layers, names = model.config.num_hidden_layers, {"logprob.forward": 1, "logprob.target": 1}
    names |= dict.fromkeys(("rope.rotate", "attention.forward", "swiglu.activate"), layers)
    names |= {"norm.forward": 2 * layers + 1}
    assert Counter(launch.name for launch in launches) == names


def test_buckets():
    assert [power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 128, 129)] == [1, 1, 2, 4, 4, 8, 128, 256]
    sizes = bucket(TileSizes(tokens=5, blocks=9, narrow=3, wide=0, entries=33))
    assert sizes == TileSizes(tokens=8, blocks=16, narrow=16, wide=16, entries=64)
    assert bucket(sizes) == sizes
    rows = {33: 64, 64: 64, 65: 96, 96: 96, 300: 320, 512: 512}
    assert {n: bucket(replace(sizes, tokens=n)).tokens for n in rows} == rows


def test_what_has_no_kernels_is_an_error(fake_cuda, monkeypatch):
    with FakeTensorMode(), pytest.raises(UserError, match=r'dtype = "bfloat16"'):
        use_triton("triton", torch.zeros(1, device="cuda"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need triton.*pip install"):
        use_triton("triton", torch.zeros(1))
    assert not use_triton("sdpa", torch.zeros(1))
