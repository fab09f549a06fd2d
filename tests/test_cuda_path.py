"""The CUDA path without a GPU: its steps run on fake tensors, and its decoding, uncaptured, on the CPU.

Fake tensors raise where tensors of two devices meet, and where a shape or a number on the host depends on data.
"""

import ctypes
from pathlib import Path

import pytest
import torch
from test_engine import mixed_requests
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

import sampling.engine
from model.config import LlamaConfig
from model.llama import Llama, _frequencies
from model.weights import load_model
from sampling.engine import Engine
from sampling.graphs import DecodeGraphs, decode_logits, power_of_two
from sampling.request import Request, Sampling
from sampling.scheduler import Scheduled, Sequence, Step

FIXTURE = Path(__file__).parent / "fixtures" / "llama3"


CUDA, META = 1, 14  # c10::DeviceType


@pytest.fixture
def fake_cuda(monkeypatch):
    """Fake tensors on `cuda` with a build that knows no CUDA: its slot in the registry of device guards is empty, and
    many operations look there before they are dispatched. The guard of `meta`, which does nothing, serves."""
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

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            assert not isinstance(value, torch.Tensor) or value.device.type == "cuda", function
        self.operations += 1
        return result


@pytest.fixture
def fake_engine(monkeypatch, fake_cuda):
    """An engine on a fake GPU, with pinned memory, of which there are no fakes, left out."""

    def to_device(values, dtype, device):
        return torch.tensor(values, dtype=dtype, device=device)

    monkeypatch.setattr(sampling.engine, "to_device", to_device)
    config = LlamaConfig.load(FIXTURE)
    before = torch.get_default_dtype()
    with FakeTensorMode(), torch.inference_mode():
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = Llama(config)
        torch.set_default_dtype(before)
        yield Engine(model, blocks=64, block_size=8, token_budget=64, max_sequences=8, cuda_graphs=False)


def item(length: int, start: int, blocks: list[int]) -> Scheduled:
    request = Request("r", list(range(length)), Sampling(1.0, 0.9, 8), seed=1)
    sequence = Sequence(request, 0, 100, list(request.ids), computed=start, blocks=blocks)
    return Scheduled(sequence, start, length)


def test_a_mixed_step_stays_on_the_device(fake_engine):
    """Decoding with a shared prefix, a prompt from its beginning, and one behind a prefix."""
    step = Step([item(20, 19, [0, 1, 2]), item(24, 23, [0, 1, 3]), item(13, 0, [4, 5]), item(30, 16, [0, 1, 6, 7])])
    logits = fake_engine._logits(step)
    assert logits.shape == (4, fake_engine.model.config.vocab_size)
    assert (logits.device.type, logits.dtype) == ("cuda", torch.bfloat16)


def test_what_is_captured_has_no_host_sync_and_no_shape_from_data(fake_engine):
    ids, positions = (torch.zeros(8, dtype=torch.int64, device="cuda") for _ in range(2))
    table = torch.zeros(8, 4, dtype=torch.int64, device="cuda")
    decode_logits(fake_engine.model, fake_engine.cache, ids, positions, table)  # the constant tables are made once
    with OnDevice() as watched:
        logits = decode_logits(fake_engine.model, fake_engine.cache, ids, positions, table)
    assert watched.operations > 50
    assert logits.shape == (8, fake_engine.model.config.vocab_size)


def test_the_watch_sees_a_sync(fake_cuda):
    with FakeTensorMode(), torch.inference_mode():
        x = torch.zeros(3, device="cuda")
        with pytest.raises(DataDependentOutputException), OnDevice():
            x.tolist()
        with pytest.raises(DynamicOutputShapeException), OnDevice():
            x.nonzero()
        with pytest.raises(FakeTensorDeviceMismatchError):
            x + torch.zeros(3)
        with pytest.raises(AssertionError), OnDevice():
            torch.tensor([1.0], device="cpu").to("cuda")


@pytest.mark.parametrize("changes", [{}, {"blocks": 24}, {"max_sequences": 3, "token_budget": 11}], ids=str)
def test_padded_decoding_gives_the_same_tokens(changes):
    """In buckets, as they are captured on CUDA, against the CPU's own way."""
    model = load_model(FIXTURE, torch.float32)
    found = []
    for padded in (False, True):
        options = {"blocks": 256, "block_size": 8, "token_budget": 64, "max_sequences": 32} | changes
        machine = Engine(model, **options)
        if padded:
            machine.graphs = DecodeGraphs(model, machine.cache)
        found.append({c.id: c.ids for c in machine.run(mixed_requests(24))})
    assert machine.graphs.buckets and found[0] == found[1]


def test_buckets():
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 128, 129)] == [1, 2, 4, 4, 8, 128, 256]
