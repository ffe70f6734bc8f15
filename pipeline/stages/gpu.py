"""Infer on a GPU: the process that owns its CUDA context and keeps batches in flight on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import numpy as np

from int4core.backends.cuda.device import load_cupy
from int4core.backends.cuda.network import DeviceNetwork
from int4core.options import CudaOptions
from int4core.ranges import Ranges
from int4core.scores import check_k
from pipeline.arrays import Slots
from pipeline.device.cuda import CudaDevice
from pipeline.device.scheduler import Scheduler
from pipeline.device.spans import CudaSpans
from pipeline.device.transfer import H2d
from pipeline.errors import PipelineError
from pipeline.machine.numa import pin, whereabouts
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.stages.channels import Done, Rates, Task
from pipeline.stages.model import load_model
from pipeline.stages.notices import engine_warnings
from pipeline.stages.spec import EngineSpec
from pipeline.telemetry.trace import Tracer, make_tracer

# A batch this small is answered in less time than a process takes to wake up: a core is spent on looking for it.
LATENCY_SAMPLES = 64
PATIENCE_S = 50e-6

# Batches that each way of copying is measured with.
TRIAL_BATCHES = 12
WARM_UP_BATCHES = 4

# The device's parts are measured alone, in rounds. A GPU that is limited by its power runs its networks faster at
# first, and then faster and slower in turns: they are measured for so long, and then until two pairs of rounds agree.
ROUND_S = 0.5
SETTLE_S = 2.0
SETTLE_AT_MOST_S = 6.0
AGREE = 0.01


class DeviceInferrer:
    """A network on one GPU over the arena, with several batches under way (see `pipeline.device.scheduler`)."""

    def __init__(self, spec: EngineSpec, number: int = 0) -> None:
        # Before anything is allocated, so that it lies near the GPU.
        pin(spec.cores, number)
        self._held = ExitStack()
        self._warnings = self._held.enter_context(engine_warnings())
        self.tracer = make_tracer(f"GPU process {number}{whereabouts()}", spec.traced, Ranges.load())
        try:
            self._set_up(spec, number)
        except BaseException:
            self._held.close()
            raise

    def note(self) -> str:
        return self._note

    def notices(self) -> tuple[str, ...]:
        return tuple(self._warnings.lines)

    def rates(self) -> Rates:
        return self._rates

    @property
    def room(self) -> bool:
        return self._scheduler.room

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    @property
    def patience_s(self) -> float:
        return 0.0 if self._small else PATIENCE_S

    def begin(self, task: Task[int]) -> None:
        self._small = task.samples <= LATENCY_SAMPLES
        with self.tracer.span("launch", ticket=task.ticket, samples=task.samples):
            self._scheduler.begin(task.ticket, task.body, task.samples)

    def finished(self) -> list[Done[None]]:
        return [Done(answer.ticket, None, answer.busy_s) for answer in self._scheduler.finished()]

    def close(self) -> None:
        self._held.close()

    def _set_up(self, spec: EngineSpec, number: int) -> None:
        arena = Arena.attach(spec.arena)
        self._held.callback(arena.close)
        exchange = Exchange.attach(spec.exchange)
        self._held.callback(exchange.close)
        model = load_model(spec.model, spec.digest)
        if spec.top:
            check_k(spec.top, model.network.classes)
        options = cast("CudaOptions", spec.options or CudaOptions())
        if spec.bus_ids:
            options = replace(options, device=device_number(load_cupy(), spec.bus_ids[number]))
        network = DeviceNetwork(model, options)
        self._held.callback(network.close)
        device = CudaDevice(network, arena, exchange, cast("H2d", spec.h2d), spec.sampling)
        self._held.callback(device.close)
        spans = CudaSpans(self.tracer, network.cupy) if isinstance(self.tracer, Tracer) else None
        self._scheduler = Scheduler(device, spec.sizes, spec.inflight, ordered=spec.ordered, spans=spans)
        self._held.callback(self._scheduler.drain)
        self._small = spec.batch_size <= LATENCY_SAMPLES
        # The records of a process that is setting up are nobody's yet, and so is what is in them.
        records = [number * spec.inflight + i for i in range(spec.inflight)]
        self._rates, by_transfer = choose_transfer(device, self._scheduler, arena, exchange, records)
        if spec.sampling is not None:
            device.start_decoding(None if spans is None else spans.mark)
        copies = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in by_transfer.items())
        self._note = (
            f"{device.notice}; batches of {', '.join(map(str, spec.sizes.values))}, {spec.inflight} in flight; "
            f"samples by {device.copies_by} (measured: {copies})"
        )


def choose_transfer(
    device: Any, scheduler: Scheduler[Any], arena: Arena, exchange: Exchange, records: list[int]
) -> tuple[Rates, dict[str, float]]:
    """Run batches of random samples with each way of copying and keep the fastest.

    The samples are written into the arena: it may not be in use yet. Returns what the device does with the fastest way,
    and the samples/s with each way, copies and networks at once.
    """
    size = exchange.spec.batch_size
    rng = np.random.default_rng(0)
    for record in records:
        exchange.slots(record, size)[:] = typical_slots(rng, size, arena.spec.slots)
    fill(arena, np.unique([exchange.slots(record, size) for record in records]), rng)
    jobs = [(records[i % len(records)], size) for i in range(TRIAL_BATCHES)]
    rates = {}
    for name in device.transfers:
        device.copy_by(name)
        scheduler.run_through(jobs[:WARM_UP_BATCHES])
        rates[name] = len(jobs) * size / scheduler.run_through(jobs)
    best = max(rates, key=lambda name: rates[name])
    device.copy_by(best)
    count = max(len(jobs), round(ROUND_S * rates[best] / size))
    jobs = [jobs[i % len(jobs)] for i in range(count)]
    samples = count * size
    h2d = samples / scheduler.time_uploads(jobs)
    return Rates(expected=rates[best], engine=settled(lambda: samples / scheduler.time_networks(jobs)), h2d=h2d), rates


def fill(arena: Arena, slots: Slots, rng: np.random.Generator) -> None:
    """Put noise into `slots` (n,): zeros cost a GPU less power than samples do, and its clocks would be higher."""
    for slot in slots.tolist():
        sample = arena.sample(slot)
        sample[:] = rng.integers(-127, 128, sample.shape, dtype=np.int8)


def settled(rate: Callable[[], float]) -> float:
    """What `rate`, a measurement that takes a while, gives once it has stopped falling."""
    began_s = time.perf_counter()
    before = (rate() + rate()) / 2
    while True:
        now = (rate() + rate()) / 2
        lasted_s = time.perf_counter() - began_s
        if lasted_s >= SETTLE_AT_MOST_S or (lasted_s >= SETTLE_S and abs(now - before) <= AGREE * before):
            return now
        before = now


def typical_slots(rng: np.random.Generator, count: int, slots: int) -> Slots:
    """What LoadGen's random choice of samples comes to, once sorted: int32 (count,), with repeats and gaps."""
    return np.sort(rng.integers(0, slots, count, dtype=np.int32))


def device_number(cupy: Any, bus_id: str) -> int:
    """CUDA's number of the GPU at this PCI address: the driver and CUDA may count in different orders.

    Raises PipelineError when CUDA does not see it.
    """
    try:
        return int(cupy.cuda.runtime.deviceGetByPCIBusId(bus_id))
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise PipelineError(
            f"CUDA does not see the GPU at {bus_id} ({error}): does CUDA_VISIBLE_DEVICES hide it?"
        ) from error
