"""Batches in flight on one device: copies of one run under the kernels of another.

A lane is what one batch in flight has to itself: a copy stream, a compute stream, and batch memory of every size. A
batch goes through it like this, ordered by events alone:

    copy stream      samples up, mark `uploaded`
    compute stream   wait for `uploaded`, network, classes down, mark `answered`

A lane, the record of its batch, and the slots the record names are free again when `answered` has been passed, and
not before. Uploads take turns, in the order the batches came: the link is one, and the first batch should have all
of it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from pipeline.device.base import B, Device, Event, Marks, Spans

MEASURED = -1
"""The ticket of batches that are run to measure the device."""


@dataclass(frozen=True)
class Sizes:
    """The batch sizes that there is memory and a graph for, ascending.

    A batch that is not full runs in the smallest size that holds it: what is left of that size is computed for
    nothing.
    """

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values or self.values[0] < 1 or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"batch sizes {self.values}: ascending and above 0 is what they must be")

    @classmethod
    def full(cls, largest: int) -> Sizes:
        """One size, for batches that are nearly always full."""
        return cls((largest,))

    @classmethod
    def graded(cls, largest: int, step: int = 4) -> Sizes:
        """1, 2 * step, ... up to `largest`, each `step` times the one before: for batches of any size."""
        values, size = [1], 2 * step
        while size < largest:
            values.append(size)
            size *= step
        return cls((*values, largest) if largest > 1 else (1,))

    @classmethod
    def stepped(cls, largest: int, step: int) -> Sizes:
        """1, every `step` samples up to eight times that, and every two from there to `largest`.

        Little is computed for nothing, whatever the size; memory and a graph for each is the price.
        """
        near, far = range(step, min(8 * step, largest), step), range(8 * step, largest, 2 * step)
        return cls(tuple(sorted({1, *near, *far, largest})))

    @property
    def largest(self) -> int:
        return self.values[-1]

    def fit(self, count: int) -> int:
        """The smallest size for `count` samples. Raises ValueError when there is none."""
        if not 0 < count <= self.largest:
            raise ValueError(f"{count} samples for batches of 1 to {self.largest}")
        return self.values[bisect_left(self.values, count)]


@dataclass(frozen=True)
class Answer:
    """A batch whose classes are in its record, and the seconds by which it kept the device busy."""

    ticket: int
    busy_s: float


@dataclass(frozen=True)
class _Flight(Generic[B]):
    """What a lane is doing."""

    ticket: int
    record: int
    count: int
    batch: B
    began_s: float
    marks: Marks


class _Lane(Generic[B]):
    def __init__(self, device: Device[B], sizes: Sizes, number: int) -> None:
        self.number = number
        self.copy: Any = device.stream()
        self.compute: Any = device.stream()
        self.batches = {n: device.batch(n) for n in sizes.values}
        self.uploaded: Event = device.event()
        self.answered: Event = device.event()
        self.flight: _Flight[B] | None = None


class Scheduler(Generic[B]):
    """Runs batches on `lanes` lanes of a device. One thread uses it.

    Args:
        ordered: whether networks take turns too; else they may run side by side where the device has room.
        spans: notified when the parts of a batch ran, those of measurements left out.
    """

    def __init__(
        self, device: Device[B], sizes: Sizes, lanes: int, *, ordered: bool = False, spans: Spans | None = None
    ) -> None:
        self._spans = spans
        self._device = device
        self._sizes = sizes
        self._ordered = ordered
        self._free: deque[_Lane[B]] = deque(_Lane(device, sizes, i) for i in range(lanes))
        self._underway: deque[_Lane[B]] = deque()
        self._last: _Lane[B] | None = None
        self._last_answer_s = 0.0

    @property
    def room(self) -> bool:
        """Whether `begin` may be called."""
        return bool(self._free)

    @property
    def idle(self) -> bool:
        return not self._underway

    def begin(self, ticket: int, record: int, count: int) -> None:
        """Start the batch of `count` samples that a record of the exchange names.

        Raises IndexError when no lane is free, ValueError for a count that no size fits.
        """
        size = self._sizes.fit(count)
        lane = self._free.popleft()
        batch = lane.batches[size]
        began_s = time.perf_counter()
        device, before = self._device, self._last
        if before is not None:
            device.wait(lane.copy, before.uploaded)
        upload_begins = self._mark(lane.copy)
        device.upload(batch, record, count, lane.copy)
        upload_ends = self._mark(lane.copy)
        lane.uploaded.record(lane.copy)
        device.wait(lane.compute, lane.uploaded)
        if self._ordered and before is not None:
            device.wait(lane.compute, before.answered)
        network_begins = self._mark(lane.compute)
        batch.run(lane.compute)
        marks = upload_begins, upload_ends, network_begins, self._mark(lane.compute)
        lane.flight = _Flight(ticket, record, count, batch, began_s, marks)
        device.download(batch, record, count, lane.compute)
        lane.answered.record(lane.compute)
        self._underway.append(lane)
        self._last = lane

    def finished(self) -> list[Answer]:
        """The batches that have been answered since the last call; never waits."""
        return [self._retire(lane) for lane in [lane for lane in self._underway if lane.answered.done]]

    def drain(self) -> list[Answer]:
        """Wait for all that is under way."""
        answers = []
        while self._underway:
            lane = self._underway[0]
            lane.answered.synchronize()
            answers.append(self._retire(lane))
        return answers

    def run_through(self, jobs: Sequence[tuple[int, int]]) -> float:
        """Seconds from the first of these (record, count) to the last answer, lanes kept full: for measuring."""
        began = time.perf_counter()
        for record, count in jobs:
            while not self.room:
                self.finished()
            self.begin(MEASURED, record, count)
        self.drain()
        return time.perf_counter() - began

    def time_uploads(self, jobs: Sequence[tuple[int, int]]) -> float:
        """Seconds that the uploads of these (record, count) take with no network running. Nothing may be under way."""
        # They go through one stream: the link is one, and in a run they take turns.
        copy = self._free[0].copy
        return self._time(jobs, lambda _: copy, self._device.upload)

    def time_networks(self, jobs: Sequence[tuple[int, int]]) -> float:
        """Seconds that the networks of these (record, count) take, on the inputs that are in place.

        They take turns or run side by side as in a run. Nothing may be under way.
        """
        first = self._free[0].compute
        return self._time(
            jobs,
            lambda lane: first if self._ordered else lane.compute,
            lambda batch, _record, _count, stream: batch.run(stream),
        )

    def _time(
        self,
        jobs: Sequence[tuple[int, int]],
        stream_of: Callable[[_Lane[B]], Any],
        work: Callable[[B, int, int, Any], None],
    ) -> float:
        lanes = list(self._free)
        began = time.perf_counter()
        for i, (record, count) in enumerate(jobs):
            lane = lanes[i % len(lanes)]
            work(lane.batches[self._sizes.fit(count)], record, count, stream_of(lane))
        for lane in lanes:
            lane.answered.record(stream_of(lane))
        for lane in lanes:
            lane.answered.synchronize()
        return time.perf_counter() - began

    def _mark(self, stream: Any) -> Any:
        return None if self._spans is None else self._spans.mark(stream)

    def _retire(self, lane: _Lane[B]) -> Answer:
        flight = lane.flight
        assert flight is not None, "a lane without a batch is not under way"
        parts = self._device.parts(flight.batch)
        self._device.collect(flight.batch, flight.record, flight.count)
        self._underway.remove(lane)
        if self._spans is not None and flight.ticket != MEASURED:
            self._spans.complete(lane.number, flight.ticket, flight.count, flight.marks, parts)
        lane.flight = None
        self._free.append(lane)
        now = time.perf_counter()
        busy = now - max(flight.began_s, self._last_answer_s)
        self._last_answer_s = now
        return Answer(flight.ticket, busy)
