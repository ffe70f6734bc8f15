"""Serving: queries become batches, batches go through the engine, answers go back to LoadGen."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.channels import Task
from pipeline.metrics import Snapshot
from pipeline.stages.base import StageFailure
from pipeline.stages.infer import Classes, EngineSpec, infer_stage
from pipeline.stages.thread import ThreadStage
from pipeline.store import SampleStore

Ids: TypeAlias = npt.NDArray[np.uint64]
Indices: TypeAlias = npt.NDArray[np.int64]
Deliver: TypeAlias = Callable[[Ids, Classes], None]

NOT_PREDICTED = -1
BATCHES_TO_DELIVER = 8
RATE_WINDOW_S = 2.0


@dataclass(frozen=True)
class _Batch:
    """Samples on their way: LoadGen's ids (n,), sample indices (n,), and at last their classes (n,)."""

    ids: Ids
    indices: Indices
    classes: Classes


class Serving:
    """The issue side, the engine and the complete side of a run.

    Nothing here waits on the issue side: a query is kept as the arrays it came in, and the next batch is
    cut from it whenever the engine has room.
    """

    def __init__(
        self,
        store: SampleStore,
        engine: EngineSpec,
        *,
        samples: int,
        timeout_s: float,
        deliver: Deliver,
        on_failure: Callable[[StageFailure], None],
    ) -> None:
        self._store = store
        self._batch_size = engine.batch_size
        self._deliver = deliver
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Ids, Indices]] = deque()
        self._underway: dict[int, tuple[Ids, Indices]] = {}
        self._tickets = 0
        self._issued = 0
        self._completed = 0
        self._phase = "starting"
        self._phase_began = time.monotonic()
        self._first_issue: float | None = None
        self._history: deque[tuple[float, int]] = deque([(self._phase_began, 0)])
        self.predictions = np.full(samples, NOT_PREDICTED, dtype=np.int32)
        self.infer = infer_stage(
            engine, timeout_s=timeout_s, on_result=self._on_classes, on_failure=on_failure
        )
        self.infer.on_room = self._pump
        self.complete: ThreadStage[_Batch, None] = ThreadStage(
            "complete",
            self._complete,
            capacity=BATCHES_TO_DELIVER * engine.batch_size,
            on_result=lambda _task, _result: None,
            on_failure=on_failure,
        )

    def issue(self, ids: Ids, indices: Indices) -> None:
        """Take a query: LoadGen's ids (n,) and the samples they ask for (n,). Returns at once."""
        with self._lock:
            if self._first_issue is None:
                self._first_issue = time.monotonic()
            self._issued += len(ids)
            self._waiting.append((ids, indices))
        self._pump()

    def enter(self, phase: str) -> None:
        """Name what the run is doing from now on (see `pipeline.metrics.Snapshot.phase`)."""
        self._phase, self._phase_began = phase, time.monotonic()

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        with self._lock:
            completed, issued, first = self._completed, self._issued, self._first_issue
        self._history.append((now, completed))
        while len(self._history) > 2 and now - self._history[1][0] >= RATE_WINDOW_S:
            self._history.popleft()
        then, completed_then = self._history[0]
        return Snapshot(
            phase=self._phase,
            elapsed_s=now - self._phase_began,
            completed=completed,
            expected=issued,
            rate_now=(completed - completed_then) / max(now - then, 1e-9),
            rate_mean=0.0 if first is None else completed / max(now - first, 1e-9),
            stages=(self._store.snapshot(), self.infer.snapshot(), self.complete.snapshot()),
        )

    def _pump(self) -> None:
        """Cut batches from the waiting queries while the engine has room."""
        with self._lock:
            while self._waiting:
                ids, indices = self._waiting[0]
                head = slice(0, self._batch_size)
                slots = self._store.slots_of(indices[head])
                self._underway[self._tickets] = (ids[head], indices[head])
                try:
                    admitted = self.infer.try_submit(Task(self._tickets, len(slots), slots))
                except StageFailure:
                    return  # its on_failure has been told
                if not admitted:
                    del self._underway[self._tickets]
                    return
                self._tickets += 1
                if len(ids) > self._batch_size:
                    self._waiting[0] = (ids[self._batch_size :], indices[self._batch_size :])
                else:
                    self._waiting.popleft()

    def _on_classes(self, task: Task[npt.NDArray[np.int32]], classes: Classes) -> None:
        with self._lock:
            ids, indices = self._underway.pop(task.ticket)
        self.complete.submit(Task(task.ticket, task.samples, _Batch(ids, indices, classes)))

    def _complete(self, batch: _Batch) -> None:
        self.predictions[batch.indices] = batch.classes
        self._deliver(batch.ids, batch.classes)
        with self._lock:
            self._completed += len(batch.ids)
