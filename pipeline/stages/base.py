"""The one shape of every stage: start, submit work, drain, stop; and a snapshot at any moment."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from traceback import format_exc
from typing import Generic, TypeVar

from pipeline.errors import PipelineError, shortage
from pipeline.stages.channels import Task
from pipeline.telemetry.meter import Meter
from pipeline.telemetry.metrics import StageSnapshot

T = TypeVar("T")
R = TypeVar("R")

RATE_WINDOW_S = 2.0

# How often a waiting thread makes sure that what it waits for can still come.
WATCH_S = 0.5


class StageFailure(PipelineError):
    """A stage that cannot go on: which worker, what happened to it, and its traceback if it left one."""

    def __init__(self, stage: str, what: str, traceback: str = "") -> None:
        super().__init__(f"stage {stage}: {what}")
        self.stage = stage
        self.traceback = traceback
        self._what = what

    def __reduce__(self) -> tuple[type[StageFailure], tuple[str, str, str]]:
        return type(self), (self.stage, self._what, self.traceback)

    @classmethod
    def of(cls, stage: str, what: str, error: BaseException) -> StageFailure:
        """The failure that an exception, which is being handled, comes to: `what` failed."""
        short = shortage(error)
        why = short or f"{type(error).__name__}: {error}"
        return cls(stage, f"{what} failed: {why}", "" if short else format_exc())


class Stage(ABC, Generic[T, R]):
    """Takes tasks, gives each one's result to `on_result` in the order they finish.

    `submit` blocks while `capacity` samples are waiting or being worked on: that is how a slow stage
    holds back the ones before it. When the stage fails, `on_failure` is called once and every blocked
    `submit` or `drain` raises the failure. `on_room`, if given, is called after every finished task:
    the moment to offer the next one to `try_submit`.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        capacity: int,
        on_result: Callable[[Task[T], R], None],
        on_failure: Callable[[StageFailure], None],
        on_room: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.workers = workers
        self.capacity = capacity
        self._on_result = on_result
        self._on_failure = on_failure
        self._changed = threading.Condition(threading.RLock())
        self._queued = 0
        self._failed_samples = 0
        self._failure: StageFailure | None = None
        self._stopping = threading.Event()
        self._on_room = on_room
        self._began_s: float | None = None
        self._counted_s = time.monotonic()
        self._meters = [Meter(self._counted_s) for _ in range(workers)]

    @abstractmethod
    def start(self) -> None:
        """Bring up the workers; returns when every one is ready. Raises StageFailure."""

    @abstractmethod
    def stop(self) -> None:
        """End the workers, whatever they are doing. Safe to call at any time, and twice."""

    @abstractmethod
    def _enqueue(self, task: Task[T]) -> None:
        """Hand an admitted task to the workers. Called with `_changed` held."""

    def submit(self, task: Task[T]) -> None:
        """Admit a task; blocks while the stage is full. Raises StageFailure once the stage has failed."""
        with self._changed:
            self._wait_for(lambda: self._has_room(task))
            self._admit(task)

    def try_submit(self, task: Task[T]) -> bool:
        """Admit a task if there is room for it now; whether it was. Raises StageFailure."""
        with self._changed:
            self._raise_failure()
            if not self._has_room(task):
                return False
            self._admit(task)
            return True

    def drain(self) -> None:
        """Wait until every admitted task is finished. Raises StageFailure."""
        with self._changed:
            self._wait_for(lambda: self._queued == 0)

    def snapshot(self) -> StageSnapshot:
        now = time.monotonic()
        with self._changed:
            meters, under_way = self._meters, self._under_way()
            # What a worker is at counts when it is done: all counts end where the oldest of it began.
            settled = min(m.until_s if n else now for m, n in zip(meters, under_way, strict=True))
            until = self._counted_s = max(self._counted_s, settled)
            began = until if self._began_s is None else min(until, self._began_s)
            since = max(began, until - RATE_WINDOW_S)
            span = max(until - since, 1e-9)
            by_now, by_then = [m.by(until) for m in meters], [m.by(since) for m in meters]
            busy_s = sum(b for _, b in by_now) - sum(b for _, b in by_then)
            rates = tuple(
                # A worker that hangs: what it is at is all that it can have done since.
                min((n - m) / span, (n - m + u) / max(now - since, 1e-9)) if u else (n - m) / span
                for (n, _), (m, _), u in zip(by_now, by_then, under_way, strict=True)
            )
            return StageSnapshot(
                name=self.name,
                workers=self.workers,
                done=sum(m.samples for m in meters),
                rate=sum(rates),
                busy=min(1.0, max(0.0, busy_s / span / self.workers)),
                queued=self._queued,
                capacity=self.capacity,
                failed=self._failed_samples,
                worker_rates=rates,
                up=self._up(),
                counted=sum(n for n, _ in by_now),
                counted_s=until,
            )

    @property
    def rate_while_busy(self) -> float | None:
        """Samples/s of one worker over the seconds it was at work, the whole run long; None before any."""
        with self._changed:
            busy_s = sum(m.busy_s for m in self._meters)
            return sum(m.samples for m in self._meters) / busy_s if busy_s else None

    @property
    def done_by_worker(self) -> tuple[int, ...]:
        """Samples that each worker has done so far."""
        with self._changed:
            return tuple(m.samples for m in self._meters)

    @abstractmethod
    def _up(self) -> int:
        """Workers that have set themselves up. Called with `_changed` held."""

    @abstractmethod
    def _under_way(self) -> Sequence[int]:
        """Samples that each worker has been given and has not done. Called with `_changed` held."""

    def count_failed(self, samples: int) -> None:
        """Record samples that went through the stage and could not be done."""
        with self._changed:
            self._failed_samples += samples

    def _is_served(self) -> bool:
        """Whether the thread that finishes tasks, where a stage has one, can still do so or has not been started."""
        return True

    def _has_room(self, task: Task[T]) -> bool:
        # A task larger than the whole stage goes in alone.
        return self._queued == 0 or self._queued + task.samples <= self.capacity

    def _admit(self, task: Task[T]) -> None:
        self._count_in(task)
        self._enqueue(task)

    def _count_in(self, task: Task[T]) -> None:
        """Called with `_changed` held."""
        if self._began_s is None:
            self._began_s = time.monotonic()
        self._queued += task.samples

    def _finish(self, task: Task[T], result: R, busy_s: float, worker: int = 0) -> None:
        # Who is given the last result may end the run and look at the counts.
        with self._changed:
            self._meters[worker].add(time.monotonic(), busy_s, task.samples)
        # The result is delivered before the task counts as finished: after `drain`, all are delivered.
        self._on_result(task, result)
        with self._changed:
            self._queued -= task.samples
            self._changed.notify_all()
        if self._on_room is not None:
            self._on_room()

    def _fail(self, failure: StageFailure) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = failure
            self._changed.notify_all()
        self._on_failure(failure)

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait, with `_changed` held, until `ready`. Raises StageFailure once that can no longer come."""
        while True:
            self._raise_failure()
            if ready():
                return
            if self._stopping.is_set():
                raise StageFailure(self.name, "was stopped with work under way")
            if not self._is_served():
                self._fail(StageFailure(self.name, "its thread has ended"))
                continue
            self._changed.wait(WATCH_S)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
