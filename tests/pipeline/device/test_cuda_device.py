"""The CUDA device over a stand-in for CuPy: addresses, runs, pinned memory and its absence; gather.cu is emulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int4core.backends.cuda.jit.source import KernelSource
from int4core.errors import EngineError
from pipeline.device import cuda as cuda_module
from pipeline.device import transfer as transfer_module
from pipeline.device.cuda import CudaDevice
from pipeline.device.scheduler import Scheduler, Sizes
from pipeline.errors import PipelineError
from pipeline.jpeg.plan import Sampling
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from tests.kernels.emulator.driver import needs_compiler
from tests.pipeline.fake_cupy import FakeNetwork, fake_cupy
from tests.pipeline.fake_device import best_of

SLOTS = 30


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "_copy_many", lambda: None)


@pytest.fixture(params=[(3, 8, 8), (3, 4, 4)], ids=["back to back", "padded"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Arena, Exchange]]:
    with Arena.create(SLOTS, request.param, tmp_path) as arena, Exchange.create(3, 16, tmp_path) as exchange:
        for slot in range(SLOTS):
            arena.sample(slot).reshape(-1)[:4].view(np.int32)[0] = 100 + slot
        yield arena, exchange


def answers_of(device: Any, exchange: Exchange, slots: np.ndarray) -> list[int]:
    scheduler = Scheduler(device, Sizes.graded(16), 2)
    record = exchange.take(slots)
    scheduler.begin(5, record, len(slots))
    assert [answer.ticket for answer in scheduler.drain()] == [5]
    exchange.give(record)
    classes: list[int] = exchange.classes(record, len(slots)).tolist()
    return classes


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kernel is built, once."""
    return tmp_path_factory.mktemp("built")


@pytest.mark.parametrize(
    "h2d", [*(pytest.param(name, marks=needs_compiler) for name in ("auto", "gather")), "runs", "staged"]
)
def test_every_way_of_copying_brings_the_same_samples(memory: tuple[Arena, Exchange], h2d: Any, built: Path) -> None:
    arena, exchange = memory
    cupy = fake_cupy()
    network: Any = FakeNetwork(cupy, arena.spec.sample_bytes, folder=built)
    device = CudaDevice(network, arena, exchange, h2d)
    rng = np.random.default_rng(0)
    for name in device.transfers:
        device.copy_by(name)
        for count in (1, 7, 16):
            slots = np.sort(rng.integers(0, SLOTS, count, dtype=np.int32))
            assert answers_of(device, exchange, slots) == (100 + slots).tolist(), name
    assert set(device.transfers) == ({"runs", "gather"} if h2d == "auto" else {h2d})
    for _ in range(2):
        device.close()
    assert not cupy.cuda.runtime.registered


def test_neighbouring_slots_are_one_copy(tmp_path: Path) -> None:
    with Arena.create(SLOTS, (3, 8, 8), tmp_path) as arena, Exchange.create(1, 16, tmp_path) as exchange:
        cupy = fake_cupy()
        device = CudaDevice(FakeNetwork(cupy, arena.spec.sample_bytes), arena, exchange, "runs")  # type: ignore[arg-type]
        answers_of(device, exchange, np.arange(3, 15, dtype=np.int32))
        *up, down = cupy.cuda.runtime.copies
        assert up == [12 * arena.spec.sample_bytes]
        assert down == 12 * 4
        device.close()


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("top", [1, 5])
def test_the_best_classes_come_down_with_their_scores(tmp_path: Path, pinned: bool, top: int) -> None:
    with Arena.create(SLOTS, (3, 8, 8), tmp_path) as arena, Exchange.create(2, 16, tmp_path, top=top) as exchange:
        for slot in range(SLOTS):
            arena.sample(slot).reshape(-1)[:4].view(np.int32)[0] = 100 + slot
        cupy = fake_cupy(refuse=not pinned)
        network: Any = FakeNetwork(cupy, arena.spec.sample_bytes)
        device: Any = CudaDevice(network, arena, exchange, "runs" if pinned else "auto")
        scheduler = Scheduler(device, Sizes.graded(16), 2)
        slots = [np.arange(count, dtype=np.int32) * 2 % SLOTS for count in (16, 5)]
        for ticket, of in enumerate(slots):
            scheduler.begin(ticket, exchange.take(of), len(of))
        scheduler.drain()
        for record, of in enumerate(slots):
            ids, scores = best_of(100 + of, top)
            np.testing.assert_array_equal(exchange.classes(record, len(of)), 100 + of)
            np.testing.assert_array_equal(exchange.top(record, len(of))[0], ids)
            np.testing.assert_array_equal(exchange.top(record, len(of))[1], scores)
            np.testing.assert_array_equal(exchange.slots(record, len(of)), of)
        assert cupy.cuda.runtime.copies[-3:] == [5 * 4, 5 * 4 * top, 5 * 4 * top], "only what was asked for"
        device.close()


def test_memory_that_cannot_be_pinned_is_said_aloud_or_an_error(memory: tuple[Arena, Exchange]) -> None:
    arena, exchange = memory
    network: Any = FakeNetwork(fake_cupy(refuse=True), arena.spec.sample_bytes)
    device = CudaDevice(network, arena, exchange)
    assert set(device.transfers) == {"staged"}
    assert "memlock" in device.notice
    slots = np.array([4, 4, 9], dtype=np.int32)
    assert answers_of(device, exchange, slots) == [104, 104, 109]
    device.close()
    with pytest.raises(PipelineError, match=r"--h2d gather: .*memlock.*--h2d staged"):
        CudaDevice(network, arena, exchange, "gather")


def test_a_batch_too_large_for_the_device_names_the_option(memory: tuple[Arena, Exchange]) -> None:
    arena, exchange = memory
    network: Any = FakeNetwork(fake_cupy(), arena.spec.sample_bytes, most=8)
    device = CudaDevice(network, arena, exchange, "runs")
    with pytest.raises(PipelineError, match=r"device memory .* batches of 16; choose a smaller --batch_size than 16"):
        Scheduler(device, Sizes.graded(16), 2)
    device.close()


def test_a_kernel_that_cannot_be_had_names_the_other_way(memory: tuple[Arena, Exchange]) -> None:
    """The kernel comes from the network's cache: what is refused there ends the device, with its memory given back."""
    arena, exchange = memory
    cupy = fake_cupy()
    network: Any = FakeNetwork(cupy, arena.spec.sample_bytes)

    def refuse(source: KernelSource) -> None:
        raise EngineError(f"INT4CORE_REQUIRE_CACHED=1, and {source} is not there")

    network.function = refuse
    with pytest.raises(EngineError, match=r"--h2d gather: INT4CORE_REQUIRE_CACHED=1, and gather\(\) .*--h2d runs"):
        CudaDevice(network, arena, exchange)
    assert not cupy.cuda.runtime.registered


def test_files_that_cannot_be_decoded_end_the_device_with_its_memory_given_back(
    memory: tuple[Arena, Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    arena, exchange = memory
    cupy = fake_cupy()
    network: Any = FakeNetwork(cupy, arena.spec.sample_bytes)
    network.device.id = 0

    def refuse(*_: object) -> None:
        assert cupy.cuda.runtime.registered
        raise EngineError("no memory to decode")

    monkeypatch.setattr(cuda_module, "Decode", refuse)
    with pytest.raises(EngineError, match="no memory to decode"):
        CudaDevice(network, arena, exchange, "runs", Sampling(8, None))
    assert not cupy.cuda.runtime.registered
