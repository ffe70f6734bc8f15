"""The device's side of `benchmarks.pipeline`: the engine alone, copies alone, and both at once, without LoadGen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pynvml

from int4core.backends.cuda.device import load_cupy
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork
from int4core.model import Model
from int4core.options import CudaOptions
from pipeline.device.cuda import CudaDevice
from pipeline.device.scheduler import Scheduler, Sizes
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.stages.gpu import device_number, typical_slots

COPIES = 12
MEDIAN_OF = 24


@dataclass(frozen=True)
class DeviceSpec:
    """What is measured: batches of `batch` samples over `slots` slots, `seconds` each."""

    model: Path
    batch: int
    inflight: int
    slots: int
    seconds: float
    bus_id: str


@dataclass(frozen=True)
class DeviceRates:
    """What was measured.

    Attributes:
        engine_median: images/s of single replays, inputs in device memory, the median of some.
        engine: the same sustained over seconds, as any long run has it.
        clock_mhz, power_w: of the multiprocessors and the GPU, the mean of those seconds.
        copies: name -> GB/s, each alone.
        together: (way of copying, whether networks take turns) -> images/s with copies, batches in flight.
    """

    notice: str
    engine_median: float
    engine: float
    clock_mhz: float
    power_w: float
    copies: dict[str, float]
    together: dict[tuple[str, bool], float]


def measure(spec: DeviceSpec) -> DeviceRates:
    """In a process of its own: all device memory is given back at its end."""
    cupy = load_cupy()
    network = DeviceNetwork(
        Model.load(spec.model), CudaOptions(device=device_number(cupy, spec.bus_id) if spec.bus_id else None)
    )
    shape = (network.model.network.conv1.in_channels, *network.size)
    with Arena.create(spec.slots, shape) as arena, Exchange.create(spec.inflight, spec.batch) as exchange:
        rng = np.random.default_rng(0)
        for slot in range(spec.slots):
            arena.sample(slot)[:] = rng.integers(-128, 128, shape, dtype=np.int8)
        device = CudaDevice(network, arena, exchange)
        try:
            batch = network.batch(spec.batch)
            meter = Meter(network.device.pci_bus_id)
            median, sustained = _engine(cupy, batch, spec.seconds, meter)
            copies = dict(_copies(cupy, device, batch, arena, exchange, rng))
            del batch
            together = dict(_together(device, exchange, spec, sustained, rng))
            clock_mhz, power_w = meter.means()
            return DeviceRates(device.notice, median, sustained, clock_mhz, power_w, copies, together)
        finally:
            device.close()
            network.close()


class Meter:
    """Reads a GPU's clock and power while it works."""

    def __init__(self, bus_id: str) -> None:
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        self._readings: list[tuple[float, float]] = []

    def read_until(self, event: Any) -> None:
        while not event.done:
            clock = float(pynvml.nvmlDeviceGetClockInfo(self._gpu, pynvml.NVML_CLOCK_SM))
            self._readings.append((clock, pynvml.nvmlDeviceGetPowerUsage(self._gpu) / 1e3))
            time.sleep(0.05)

    def means(self) -> tuple[float, float]:
        """(MHz, W)"""
        clock, power = np.mean(self._readings, axis=0)
        return float(clock), float(power)


def _engine(cupy: Any, batch: DeviceBatch, seconds: float, meter: Meter) -> tuple[float, float]:
    """Images/s of replays: (median of a few, over `seconds`). The input is fresh before every one, and not timed."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        fresh = cupy.random.randint(-128, 128, batch.input.shape, cupy.int8)

    def replay() -> tuple[Any, Any]:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        with stream:
            batch.input[...] = fresh
        begin.record(stream)
        batch.run(stream)
        end.record(stream)
        return begin, end

    def times_s(marks: list[tuple[Any, Any]]) -> list[float]:
        stream.synchronize()
        return [float(cupy.cuda.get_elapsed_time(*pair)) / 1e3 for pair in marks]

    times_s([replay() for _ in range(5)])
    median_s = statistics.median(times_s([replay() for _ in range(MEDIAN_OF)]))
    replays = [replay() for _ in range(max(MEDIAN_OF, round(seconds / median_s)))]
    meter.read_until(replays[-1][1])
    long = times_s(replays)
    return batch.n / median_s, batch.n * len(long) / sum(long)


def _copies(
    cupy: Any, device: CudaDevice, batch: DeviceBatch, arena: Arena, exchange: Exchange, rng: np.random.Generator
) -> Iterator[tuple[str, float]]:
    """(name, GB/s) of ways to fill a batch, nothing else running."""
    stream = cupy.cuda.Stream(non_blocking=True)
    size = batch.n * arena.spec.sample_bytes
    pinned = cupy.cuda.alloc_pinned_memory(size)
    runtime = cupy.cuda.runtime

    def plain() -> None:
        runtime.memcpyAsync(batch.input.data.ptr, pinned.ptr, size, runtime.memcpyHostToDevice, stream.ptr)

    def rate(copy: Any) -> float:
        times = []
        for _ in range(COPIES):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            copy()
            end.record(stream)
            end.synchronize()
            times.append(float(cupy.cuda.get_elapsed_time(begin, end)))
        return float(size / statistics.median(times) / 1e6)

    yield "one copy from a pinned buffer", rate(plain)
    patterns = {
        "random slots": typical_slots(rng, batch.n, arena.spec.slots),
        "neighbouring slots": np.arange(batch.n, dtype=np.int32) % arena.spec.slots,
    }
    record = exchange.take(patterns["random slots"])
    for name in device.transfers:
        device.copy_by(name)
        for pattern, slots in patterns.items():
            exchange.slots(record, batch.n)[:] = slots
            yield f"{name}, {pattern}", rate(lambda: device.upload(batch, record, batch.n, stream))
    exchange.give(record)


def _together(
    device: CudaDevice, exchange: Exchange, spec: DeviceSpec, engine: float, rng: np.random.Generator
) -> Iterator[tuple[tuple[str, bool], float]]:
    """((way of copying, ordered), images/s) with batches in flight."""
    for record in range(spec.inflight):
        exchange.slots(record, spec.batch)[:] = typical_slots(rng, spec.batch, spec.slots)
    count = max(4 * spec.inflight, round(spec.seconds * engine / spec.batch))
    jobs = [(i % spec.inflight, spec.batch) for i in range(count)]
    for ordered in (False, True):
        scheduler = Scheduler(device, Sizes.full(spec.batch), spec.inflight, ordered=ordered)
        for name in device.transfers:
            device.copy_by(name)
            scheduler.run_through(jobs[: 2 * spec.inflight])
            yield (name, ordered), len(jobs) * spec.batch / scheduler.run_through(jobs)
        del scheduler
