"""What lanes and batches ask of several streams, on a GPU that does what is not ordered in the worst order."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from int4core.backends.base import Want
from int4core.backends.cuda import device as device_module
from int4core.backends.cuda import network as network_module
from int4core.backends.cuda.backend import CudaBackend
from int4core.backends.cuda.lanes import Lane
from int4core.backends.cuda.network import DeviceBatch
from int4core.backends.cuda.plan.ops import CLASSES, INPUT, TOP1
from int4core.errors import EngineError
from tests.kernels.late_gpu import LateArray, LateGpu, LateStream

FIVES, SIXES = np.full((1, 3, 2, 2), 5, np.int8), np.full((1, 3, 2, 2), 6, np.int8)


class Batch:
    """Its class is the image's first value."""

    def __init__(self, gpu: LateGpu) -> None:
        self.input = LateArray(gpu, np.zeros((1, 3, 2, 2), np.int8))
        self.top1 = LateArray(gpu, np.zeros(1, np.int32))

    def run(self, stream: LateStream) -> None:
        stream.ask(lambda: np.copyto(self.top1.array, self.input.array[:, 0, 0, 0]))


class Network:
    def __init__(self, gpu: LateGpu) -> None:
        self.cupy = gpu

    def batch(self, n: int) -> Batch:
        assert n == 1
        return Batch(self.cupy)


@pytest.fixture
def gpu() -> LateGpu:
    return LateGpu()


@pytest.fixture
def lane(gpu: LateGpu) -> Any:
    network: Any = Network(gpu)
    return Lane(network, 1, ThreadPoolExecutor(1))


def test_an_input_of_the_host_waits_for_one_that_is_on_the_gpu(gpu: LateGpu, lane: Any) -> None:
    on_gpu = lane.begin_on_device(LateArray(gpu, FIVES), Want.TOP1, 0)
    on_host = lane.begin_on_host(SIXES, Want.TOP1, 0)
    gpu.null.run_to(len(gpu.null.asked) - 2)  # the image is in its place, and the network has not seen it
    assert on_host()[0].tolist() == [6]
    gpu.null.synchronize()
    assert on_gpu()[0].array.tolist() == [5]


def test_an_input_on_the_gpu_waits_for_one_that_was_begun_and_failed(
    gpu: LateGpu, lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(_k: int) -> None:
        raise EngineError("it does not compile")

    monkeypatch.setattr(lane, "_top", no_kernel)
    with pytest.raises(EngineError, match="it does not compile"):
        lane.begin_on_host(SIXES, Want.TOP_K, 1)
    on_gpu = lane.begin_on_device(LateArray(gpu, FIVES), Want.TOP1, 0)
    gpu.null.run_to(len(gpu.null.asked) - 2)
    lane._stream.synchronize()
    gpu.null.synchronize()
    assert on_gpu()[0].array.tolist() == [5]


def test_a_batch_is_cleared_before_anything_is_put_into_it(gpu: LateGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the current stream, which also has what was asked for in that memory before it was free."""
    monkeypatch.setattr(device_module, "load_cupy", lambda: gpu)
    monkeypatch.setattr(DeviceBatch, "_capture", lambda *_: None)
    monkeypatch.setattr(network_module, "top_parts", lambda *_: (None, None, None))
    places = {INPUT: 0, CLASSES: FIVES.nbytes, TOP1: FIVES.nbytes + 4}
    arena = SimpleNamespace(bytes=FIVES.nbytes + 8, offsets=places)
    step = SimpleNamespace(kernel=None, op=SimpleNamespace(output=SimpleNamespace(name=CLASSES, bytes=4)))
    plan: Any = SimpleNamespace(n=1, arena=arena, input_bytes=FIVES.nbytes, steps=(step,))
    network: Any = SimpleNamespace(cupy=gpu, size=FIVES.shape[2:], launches=lambda *_: ())
    monkeypatch.setattr(network_module, "outputs", lambda op: (op.output, SimpleNamespace(name=TOP1, bytes=4)))
    stream = LateStream(gpu)
    batch = DeviceBatch(network, plan)
    batch.input.set(FIVES, stream=stream)
    stream.synchronize()
    gpu.null.synchronize()
    assert batch.input.array.tolist() == FIVES.tolist()


def test_an_engine_that_is_closed_waits_for_what_is_under_way(
    gpu: LateGpu, lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory may be another's as soon as nobody holds it."""
    backend: Any = object.__new__(CudaBackend)
    backend._lanes, backend._copiers, backend._pid = [lane], ThreadPoolExecutor(1), os.getpid()
    backend.network = SimpleNamespace(close=lambda: None)
    answer = lane.begin_on_host(SIXES, Want.TOP1, 0)
    backend.close()
    assert lane._stream.done == len(lane._stream.asked)
    assert answer()[0].tolist() == [6]
