"""Batches in flight on a device: nothing is mixed up, whatever takes how long."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.device import scheduler as scheduler_module
from pipeline.device.scheduler import Scheduler, Sizes
from pipeline.device.transfer import merge_runs
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.stages import gpu
from pipeline.stages.gpu import choose_transfer, typical_slots
from tests.pipeline import fake_device
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.fake_device import FakeBatch, FakeDevice, FakeStream, PassingTime, best_of

SLOTS = 40
SHAPE = (3, 8, 8)


@contextmanager
def device(
    folder: Path,
    records: int,
    batch: int,
    kernel_s: float = 0.002,
    copy_s: float = 0.001,
    deaf: bool = False,
    top: int = 0,
) -> Iterator[tuple[FakeDevice, Exchange]]:
    """A device over an arena whose samples carry their slot's number."""
    with Arena.create(SLOTS, SHAPE, folder) as arena, Exchange.create(records, batch, folder, top=top) as exchange:
        for slot in range(SLOTS):
            arena.sample(slot).reshape(-1)[:4].view(np.int32)[0] = slot
        fake = FakeDevice(arena, exchange, kernel_s=kernel_s, copy_s=copy_s, deaf=deaf)
        try:
            yield fake, exchange
        finally:
            fake.close()


def serve(
    scheduler: Scheduler[FakeBatch], exchange: Exchange, batches: int, largest: int, seed: int = 0
) -> tuple[int, int]:
    """Run batches of random slots and sizes; (samples, samples with another sample's class)."""
    rng = np.random.default_rng(seed)
    underway: dict[int, tuple[int, np.ndarray]] = {}
    total = wrong = 0

    def take(answers: list) -> None:  # type: ignore[type-arg]
        nonlocal total, wrong
        for answer in answers:
            record, slots = underway.pop(answer.ticket)
            expected = slots, *best_of(slots, exchange.spec.top)
            for found, values in zip(exchange.answers(record, len(slots)), expected, strict=False):
                wrong += int((found != values).sum())
                found[:] = -3
            total += len(slots)
            # What is free may be written over at once, by us or by anyone.
            exchange.slots(record, len(slots))[:] = -1
            exchange.give(record)

    for ticket in range(batches):
        slots = rng.integers(0, SLOTS, rng.integers(1, largest + 1), dtype=np.int32)
        while not scheduler.room:
            take(scheduler.finished())
        record = exchange.take(slots)
        underway[ticket] = (record, slots)
        scheduler.begin(ticket, record, len(slots))
        take(scheduler.finished())
    take(scheduler.drain())
    assert not underway
    assert scheduler.idle
    return total, wrong


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("sizes", [Sizes.full(16), Sizes.graded(16)], ids=["full", "graded"])
@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
def test_no_sample_is_mixed_up(tmp_path: Path, lanes: int, sizes: Sizes, ordered: bool) -> None:
    with device(tmp_path, lanes, sizes.largest) as (fake, exchange):
        scheduler = Scheduler(fake, sizes, lanes, ordered=ordered)
        total, wrong = serve(scheduler, exchange, 40, sizes.largest)
        assert wrong == 0
        assert fake.uploads == total, "every sample is copied, repeated or not"
        assert sum(batch.runs for batch in fake.batches) == 40


@pytest.mark.parametrize("top", [0, 5])
def test_a_slow_kernel_holds_its_lane_and_its_record(tmp_path: Path, top: int) -> None:
    with device(tmp_path, 3, 8, kernel_s=0.03, copy_s=0.0, top=top) as (fake, exchange):
        total, wrong = serve(Scheduler(fake, Sizes.full(8), 3), exchange, 30, 8, seed=1)
        assert total > 0
        assert wrong == 0


def test_a_missing_event_would_be_seen(tmp_path: Path) -> None:
    with device(tmp_path, 3, 8, deaf=True) as (fake, exchange):
        _, wrong = serve(Scheduler(fake, Sizes.full(8), 3), exchange, 30, 8)
        assert wrong > 0


def test_a_lane_reused_too_early_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with device(tmp_path, 30, 8) as (fake, exchange):
        scheduler = Scheduler(fake, Sizes.full(8), 2)
        begin = scheduler.begin

        def hasty(ticket: int, record: int, count: int) -> None:
            begin(ticket, record, count)
            scheduler._free.append(scheduler._underway[-1])

        monkeypatch.setattr(scheduler, "begin", hasty)
        rng, wrong = np.random.default_rng(0), 0
        jobs = []
        for ticket in range(20):
            slots = rng.integers(0, SLOTS, 8, dtype=np.int32)
            jobs.append((exchange.take(slots), slots))
            scheduler.begin(ticket, jobs[-1][0], 8)
        for lane in set(scheduler._underway):
            lane.answered.synchronize()
        wrong = sum(int((exchange.classes(record, 8) != slots).sum()) for record, slots in jobs)
        assert wrong > 0


class MeetingDevice(FakeDevice):
    """Its kernels, which take turns, wait `patience_s` for the upload of the batch after theirs.

    Attributes:
        met: of each kernel in turn, whether that upload was through before it ended.
    """

    def __init__(self, arena: Arena, exchange: Exchange, batches: int, patience_s: float) -> None:
        super().__init__(arena, exchange, kernel_s=0.0, copy_s=0.0)
        self._batches, self._patience_s = batches, patience_s
        self._changed = threading.Condition()
        self._uploaded = 0
        self.met: list[bool] = []

    def batch(self, n: int) -> FakeBatch:
        batch = super().batch(n)
        batch._kernel_s = self._meet
        return batch

    def upload(self, batch: FakeBatch, record: int, count: int, stream: FakeStream) -> None:
        super().upload(batch, record, count, stream)
        stream.put(self._count)

    def _count(self) -> None:
        with self._changed:
            self._uploaded += 1
            self._changed.notify_all()

    def _meet(self) -> float:
        with self._changed:
            wanted = min(len(self.met) + 2, self._batches)
            self.met.append(self._changed.wait_for(lambda: self._uploaded >= wanted, self._patience_s))
        return 0.0


@pytest.mark.parametrize(("lanes", "patience_s"), [(1, 0.01), (3, PATIENCE_S)])
def test_copies_run_under_kernels(tmp_path: Path, lanes: int, patience_s: float) -> None:
    jobs = [(i % 3, 4) for i in range(12)]
    with Arena.create(SLOTS, SHAPE, tmp_path) as arena, Exchange.create(4, 4, tmp_path) as exchange:
        fake = MeetingDevice(arena, exchange, len(jobs), patience_s)
        try:
            Scheduler(fake, Sizes.full(4), lanes, ordered=True).run_through(jobs)
        finally:
            fake.close()
        assert exchange.free == 4
    # After the last kernel nothing is uploaded.
    assert fake.met == [lanes > 1] * (len(jobs) - 1) + [True]


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> PassingTime:
    """All that is measured is what a fake device does, however busy the machine."""
    time = PassingTime()
    for module in (fake_device, scheduler_module, gpu):
        monkeypatch.setattr(module, "time", time)
    return time


@pytest.mark.usefixtures("passing")
def test_the_faster_copies_are_chosen(tmp_path: Path) -> None:
    with device(tmp_path, 3, 4, kernel_s=0.001, copy_s=0.01) as (fake, exchange):
        fake.transfers["fast"] = 0.001
        arena = fake._arena
        rates, by_transfer = choose_transfer(fake, Scheduler(fake, Sizes.full(4), 3), arena, exchange, [0, 1, 2])
        assert set(by_transfer) == {"slow", "fast"}
        assert rates.expected == by_transfer["fast"] > by_transfer["slow"]
        assert fake.copies_by == "fast"


@pytest.mark.usefixtures("passing")
def test_each_part_is_timed_without_the_other(tmp_path: Path) -> None:
    jobs = [(i % 3, 4) for i in range(12)]
    with device(tmp_path, 3, 4) as (fake, exchange):
        fake._random.uniform = lambda _low, high: high  # type: ignore[method-assign]
        fake._kernel_s, fake.copy_s = 64.0, 1.0
        for record in range(3):
            exchange.slots(record, 4)[:] = record
        scheduler = Scheduler(fake, Sizes.full(4), 3)
        assert scheduler.time_uploads(jobs) == 12 * 1.0
        assert scheduler.time_networks(jobs) == 12 * 64.0
        assert fake.uploads == 48
        assert sum(batch.runs for batch in fake.batches) == 12
        # What timing left behind is nobody's.
        assert serve(scheduler, exchange, 20, 4)[1] == 0


class PowerLimitedDevice(FakeDevice):
    """Its kernels take 2 ms on zeros and at most `warm_s` long after the first one; then 10 ms."""

    def __init__(self, arena: Arena, exchange: Exchange, warm_s: float, passing: PassingTime) -> None:
        super().__init__(arena, exchange, kernel_s=0.0, copy_s=0.0)
        self.transfers = {"the only way": 0.0001}
        self._passing = passing
        self._warm_s = warm_s
        self._first_s: float | None = None

    def batch(self, n: int) -> FakeBatch:
        batch = super().batch(n)
        batch._kernel_s = lambda: self._kernel_time(batch)
        return batch

    def _kernel_time(self, batch: FakeBatch) -> float:
        if not batch.input.any():
            return 0.002
        now = self._passing.perf_counter()
        self._first_s = now if self._first_s is None else self._first_s
        return 0.002 if now < self._first_s + self._warm_s else 0.01


@pytest.mark.parametrize("warm_s", [0.0, 1.2], ids=["less power for zeros", "a limit that takes a while"])
def test_the_rate_at_the_start_is_the_one_that_lasts(tmp_path: Path, warm_s: float, passing: PassingTime) -> None:
    with Arena.create(SLOTS, SHAPE, tmp_path) as arena, Exchange.create(1, 4, tmp_path) as exchange:
        fake = PowerLimitedDevice(arena, exchange, warm_s, passing)
        try:
            rates, _ = choose_transfer(fake, Scheduler(fake, Sizes.full(4), 1), arena, exchange, [0])
        finally:
            fake.close()
    assert rates.engine is not None
    assert rates.engine == pytest.approx(4 / 0.01)


def test_a_rate_settles_in_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def measured(values: Iterator[float]) -> Callable[[], float]:
        def rate() -> float:
            clock.now += gpu.ROUND_S
            return next(values)

        return rate

    rates = iter([100.0, 100.0, 90.0, 70.0, 64.0, 60.0, 63.8, 60.0])
    assert gpu.settled(measured(rates)) == pytest.approx(61.9), "it goes up and down for good"
    clock.now = 0.0
    assert gpu.settled(measured(itertools.count(1000.0, -50.0))) > 0
    assert clock.now == gpu.SETTLE_AT_MOST_S


class HostSpans:
    """Marks are the times at which a fake stream gets to them."""

    def __init__(self) -> None:
        self.completed: list[tuple[int, int, int, list[float]]] = []
        self.parts: list[Any] = []

    def mark(self, stream: FakeStream) -> list[float]:
        times: list[float] = []
        stream.put(lambda: times.append(time.perf_counter()))
        return times

    def complete(self, lane: int, ticket: int, samples: int, marks: Any, parts: Any) -> None:
        self.completed.append((lane, ticket, samples, [mark[0] for mark in marks]))
        self.parts.append(parts)


def test_spans_of_a_batch_are_in_order_and_of_its_lane(tmp_path: Path) -> None:
    with device(tmp_path, 2, 4) as (fake, exchange):
        spans = HostSpans()
        scheduler = Scheduler(fake, Sizes.full(4), 2, spans=spans)
        scheduler.run_through([(0, 4), (1, 4)])
        assert not spans.completed, "a measurement is no batch"
        assert serve(scheduler, exchange, 12, 4)[1] == 0
    assert sorted(ticket for _, ticket, _, _ in spans.completed) == list(range(12))
    assert {lane for lane, _, _, _ in spans.completed} == {0, 1}
    assert all(1 <= samples <= 4 for _, _, samples, _ in spans.completed)
    for _, _, _, marks in spans.completed:
        assert marks == sorted(marks), "upload begins, ends, network begins, ends"
    uploads = sorted(marks[:2] for _, _, _, marks in spans.completed)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(uploads)), "uploads take turns"


def test_what_a_device_does_for_an_upload_goes_with_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with device(tmp_path, 1, 4) as (fake, exchange):
        asked: list[Any] = []

        def parts(batch: Any) -> list[tuple[str, Any, Any]]:
            asked.append(batch)
            return [("files", batch, 2)]

        def collect(batch: Any, record: int, count: int) -> None:
            assert asked[-1] is batch, "parts are asked for before they are forgotten"

        monkeypatch.setattr(fake, "parts", parts)
        monkeypatch.setattr(fake, "collect", collect)
        spans = HostSpans()
        scheduler = Scheduler(fake, Sizes.full(4), 1, spans=spans)
        scheduler.begin(7, exchange.take(np.zeros(4, np.int32)), 4)
        scheduler.drain()
    assert spans.parts == [[("files", asked[0], 2)]]


def test_busy_time_does_not_count_a_moment_twice(tmp_path: Path) -> None:
    with device(tmp_path, 3, 4, kernel_s=0.01) as (fake, exchange):
        scheduler = Scheduler(fake, Sizes.full(4), 3)
        began = time.perf_counter()
        for ticket in range(3):
            scheduler.begin(ticket, exchange.take(np.zeros(4, np.int32)), 4)
        assert not scheduler.room
        answers = scheduler.drain()
        assert 0 < sum(a.busy_s for a in answers) <= time.perf_counter() - began
        assert [a.ticket for a in answers] == [0, 1, 2]


def test_a_batch_runs_in_the_smallest_size_that_holds_it(tmp_path: Path) -> None:
    sizes = Sizes.graded(200)
    assert sizes.values == (1, 8, 32, 128, 200)
    assert [sizes.fit(n) for n in (1, 2, 8, 9, 129, 200)] == [1, 8, 8, 32, 200, 200]
    assert Sizes.graded(1).values == (1,)
    many = Sizes.stepped(640, 32)
    assert many.values == (1, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
    assert [many.fit(n) for n in (1, 2, 129, 257, 640)] == [1, 32, 160, 320, 640]
    assert Sizes.stepped(100, 32).values == (1, 32, 64, 96, 100)
    assert Sizes.stepped(300, 32).values == (1, 32, 64, 96, 128, 160, 192, 224, 256, 300)
    assert Sizes.stepped(5, 32).values == (1, 5)
    assert Sizes.stepped(1, 32).values == (1,)
    for bad in (0, 201):
        with pytest.raises(ValueError, match="1 to 200"):
            sizes.fit(bad)
    with pytest.raises(ValueError, match="ascending"):
        Sizes((8, 1))
    with device(tmp_path, 1, 200) as (fake, exchange):
        scheduler = Scheduler(fake, sizes, 1)
        scheduler.begin(0, exchange.take(np.zeros(9, np.int32)), 9)
        scheduler.drain()
        assert [batch.n for batch in fake.batches if batch.runs] == [32]


def test_runs_of_neighbouring_slots() -> None:
    begins, lengths = merge_runs(np.array([3, 4, 5, 5, 6, 9, 0, 1], dtype=np.int32))
    assert begins.tolist() == [0, 3, 5, 6]
    assert lengths.tolist() == [3, 2, 1, 2]
    begins, lengths = merge_runs(np.array([3, 4], dtype=np.int32), contiguous=False)
    assert (begins.tolist(), lengths.tolist()) == ([0, 1], [1, 1])
    for slots in ([7], [7, 8, 9]):
        begins, lengths = merge_runs(np.array(slots, dtype=np.int32))
        assert (begins.tolist(), lengths.tolist()) == ([0], [len(slots)])
    slots = typical_slots(np.random.default_rng(0), 500, 100)
    begins, lengths = merge_runs(slots)
    rebuilt = [slots[b] + i for b, n in zip(begins, lengths, strict=True) for i in range(n)]
    assert rebuilt == slots.tolist()
    assert (np.diff(slots) >= 0).all()
