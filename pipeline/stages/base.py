"""The one shape of every stage: start, submit work, drain, stop; and a snapshot at any moment."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pipeline.errors import PipelineError
from pipeline.stages.channels import Task
from pipeline.telemetry.metrics import StageSnapshot

T = TypeVar("T")
R = TypeVar("R")

RATE_WINDOW_S = 2.0


class StageFailure(PipelineError):
    """A stage that cannot go on: which worker, what happened to it, and its traceback if it left one."""

    def __init__(self, stage: str, what: str, traceback: str = "") -> None:
        super().__init__(f"stage {stage}: {what}")
        self.stage = stage
        self.traceback = traceback


class Stage(ABC, Generic[T, R]):
    """Takes tasks, gives each one's result to `on_result` in the order they finish.

    `submit` blocks while `capacity` samples are waiting or being worked on: that is how a slow stage
    holds back the ones before it. When the stage fails, `on_failure` is called once and every blocked
    `submit` or `drain` raises the failure. `on_room`, when set, is called after every finished task:
    the moment to offer the next one to `try_submit`.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        capacity: int,
        on_result: Callable[[Task[T], R], None],
        on_failure: Callable[[StageFailure], None],
    ) -> None:
        self.name = name
        self.workers = workers
        self.capacity = capacity
        self._on_result = on_result
        self._on_failure = on_failure
        self._changed = threading.Condition(threading.RLock())
        self._queued = 0
        self._done = 0
        self._failed_samples = 0
        self._busy_s = 0.0
        self._failure: StageFailure | None = None
        self.on_room: Callable[[], None] | None = None
        self._history: deque[tuple[float, int, float, tuple[int, ...]]] = deque([(time.monotonic(), 0, 0.0, ())])

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
            self._changed.wait_for(lambda: self._failure is not None or self._has_room(task))
            self._raise_failure()
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
            self._changed.wait_for(lambda: self._failure is not None or self._queued == 0)
            self._raise_failure()

    def snapshot(self) -> StageSnapshot:
        now = time.monotonic()
        with self._changed:
            by_worker = self._done_by_worker()
            self._history.append((now, self._done, self._busy_s, by_worker))
            while len(self._history) > 2 and now - self._history[1][0] >= RATE_WINDOW_S:
                self._history.popleft()
            then, done_then, busy_then, by_worker_then = self._history[0]
            # Before its first message a worker has done nothing.
            by_worker_then += (0,) * (len(by_worker) - len(by_worker_then))
            span = max(now - then, 1e-9)
            return StageSnapshot(
                name=self.name,
                workers=self.workers,
                done=self._done,
                rate=(self._done - done_then) / span,
                busy=min(1.0, (self._busy_s - busy_then) / span / self.workers),
                queued=self._queued,
                capacity=self.capacity,
                failed=self._failed_samples,
                worker_rates=tuple((n - m) / span for n, m in zip(by_worker, by_worker_then, strict=True)),
            )

    @property
    def rate_while_busy(self) -> float | None:
        """Samples/s of one worker over the seconds it was at work, the whole run long; None before any."""
        with self._changed:
            return self._done / self._busy_s if self._busy_s else None

    def _done_by_worker(self) -> tuple[int, ...]:
        """Samples that each worker has done so far, where that is known. Called with `_changed` held."""
        return ()

    def count_failed(self, samples: int) -> None:
        """Record samples that went through the stage and could not be done."""
        with self._changed:
            self._failed_samples += samples

    def _has_room(self, task: Task[T]) -> bool:
        # A task larger than the whole stage goes in alone.
        return self._queued == 0 or self._queued + task.samples <= self.capacity

    def _admit(self, task: Task[T]) -> None:
        self._queued += task.samples
        self._enqueue(task)

    def _finish(self, task: Task[T], result: R, busy_s: float) -> None:
        # The result is delivered before the task counts as finished: after `drain`, all are delivered.
        self._on_result(task, result)
        with self._changed:
            self._queued -= task.samples
            self._done += task.samples
            self._busy_s += busy_s
            self._changed.notify_all()
        if self.on_room is not None:
            self.on_room()

    def _fail(self, failure: StageFailure) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = failure
            self._changed.notify_all()
        self._on_failure(failure)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
