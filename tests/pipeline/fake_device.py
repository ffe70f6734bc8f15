"""A device without a GPU: streams are threads, events are marks in them, kernels can be made slow.

It does what it is asked in the order of each stream and no other, so that a scheduler that leaves out an event, or
reuses a lane too early, gives wrong answers here as it would on a GPU. The class of a sample is read from its first
four bytes; `best_of` says which others come after it, and their scores.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable

import numpy as np

from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange


def best_of(classes: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and scores float32 (n, top) of these classes int32 (n,)."""
    ids = classes[:, None] + 7 * np.arange(top, dtype=np.int32)
    return ids, 1 / (1 + np.abs(ids)).astype(np.float32)


class PassingTime:
    """Seconds that pass in what a fake device does and nowhere else, in place of a module's `time`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now_s = 0.0

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now_s += seconds

    def perf_counter(self) -> float:
        return self._now_s


class FakeStream:
    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class FakeEvent:
    """As CUDA's: what waits for it waits for the record that was the last when the wait was asked for."""

    def __init__(self) -> None:
        self.mark = threading.Event()
        self.mark.set()

    def record(self, stream: FakeStream) -> None:
        self.mark = threading.Event()
        stream.put(self.mark.set)

    @property
    def done(self) -> bool:
        return self.mark.is_set()

    def synchronize(self) -> None:
        self.mark.wait()


class FakeBatch:
    """`run` reads the input when the kernel begins and once more at its end: an input changed meanwhile shows."""

    def __init__(self, n: int, sample_bytes: int, kernel_s: Callable[[], float]) -> None:
        self.n = n
        self.input = np.full((n, sample_bytes), -1, dtype=np.int8)
        self.top1 = np.full(n, -1, dtype=np.int32)
        self.runs = 0
        self._kernel_s = kernel_s

    def run(self, stream: FakeStream) -> None:
        def kernel() -> None:
            begin = self.input[:, :4].copy().view(np.int32)[:, 0]
            time.sleep(self._kernel_s())
            end = self.input[:, :4].copy().view(np.int32)[:, 0]
            self.top1[:] = np.where(begin == end, end, -2)
            self.runs += 1

        stream.put(kernel)


class FakeDevice:
    """`kernel_s` and `copy_s` are the longest a kernel or a copy takes; how long each one does is random.

    `deaf` leaves out every wait between streams, to see that a missing one is noticed.
    """

    def __init__(self, arena: Arena, exchange: Exchange, *, kernel_s: float, copy_s: float, deaf: bool = False) -> None:
        self._arena = arena
        self._exchange = exchange
        self._kernel_s = kernel_s
        self.copy_s = copy_s
        self._deaf = deaf
        self._random = random.Random(0)
        self.streams: list[FakeStream] = []
        self.batches: list[FakeBatch] = []
        self.notice = "a fake device"
        self.transfers = {"slow": self.copy_s, "fast": 0.0}
        self.copies_by = "slow"
        self.uploads = 0
        self.closed = False

    def copy_by(self, name: str) -> None:
        self.copies_by, self.copy_s = name, self.transfers[name]

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream())
        return self.streams[-1]

    def event(self) -> FakeEvent:
        return FakeEvent()

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        if not self._deaf:
            mark = event.mark
            stream.put(lambda: mark.wait() and None)

    def batch(self, n: int) -> FakeBatch:
        self.batches.append(
            FakeBatch(n, self._arena.spec.sample_bytes, lambda: self._random.uniform(0, self._kernel_s))
        )
        return self.batches[-1]

    def upload(self, batch: FakeBatch, record: int, count: int, stream: FakeStream) -> None:
        def copy() -> None:
            # The slots are read when the copy runs, as the gather kernel does.
            time.sleep(self._random.uniform(0, self.copy_s))
            slots = self._exchange.slots(record, count).copy()
            batch.input[:count] = self._arena.gather(slots).reshape(count, -1)
            self.uploads += count

        stream.put(copy)

    def download(self, batch: FakeBatch, record: int, count: int, stream: FakeStream) -> None:
        def copy() -> None:
            time.sleep(self._random.uniform(0, self.copy_s))
            classes = batch.top1[:count].copy()
            best = best_of(classes, self._exchange.spec.top)
            for place, values in zip(self._exchange.answers(record, count), (classes, *best), strict=False):
                place[:] = values

        stream.put(copy)

    def parts(self, batch: FakeBatch) -> tuple[()]:
        return ()

    def collect(self, batch: FakeBatch, record: int, count: int) -> None:
        pass

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.closed = True
