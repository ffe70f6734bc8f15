"""Serving: queries become batches, batches go through the engines, answers go back to LoadGen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pipeline.memory.exchange import Classes, Exchange
from pipeline.session.store import SampleStore
from pipeline.session.timer import Timer
from pipeline.session.waiting import Batching, Ids, Indices, Waiting
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.infer import infer_stage
from pipeline.stages.spec import EngineSpec
from pipeline.stages.thread import ThreadStage
from pipeline.telemetry.latency import Latencies
from pipeline.telemetry.metrics import Snapshot
from pipeline.telemetry.trace import AnyTracer, Untraced

Deliver: TypeAlias = Callable[[Ids, Classes], None]

NOT_PREDICTED = -1
BATCHES_TO_DELIVER = 8

# Answers of so few samples go back at once, from the thread that hears of them: handing them on costs more.
DELIVER_AT_ONCE = 64


@dataclass(frozen=True)
class _Batch:
    """Samples on their way: LoadGen's ids (n,), sample indices (n,), their record, and two times.

    `since` (monotonic) is when the first of them was issued, `cut_s` (perf_counter) when the batch was made.
    """

    ids: Ids
    indices: Indices
    record: int
    since: float
    cut_s: float


@dataclass(frozen=True)
class _Answered:
    """A batch with its classes (n,), which are its own copy."""

    batch: _Batch
    classes: Classes


@dataclass(frozen=True)
class Answering:
    """From the first query to the last answer.

    Attributes:
        samples: that were answered.
        first_s, last_s: when the first query came and the last answer was given, monotonic.
        clock_step_s: by how much the system's clock was set forward between the two; below 0: back.
    """

    samples: int
    first_s: float
    last_s: float
    clock_step_s: float

    @property
    def rate(self) -> float:
        """Samples/s."""
        return self.samples / max(self.last_s - self.first_s, 1e-9)


class Serving:
    """The issue side, the engines and the complete side of a run.

    Nothing here waits on the issue side: a query is kept as the arrays it came in, and the next batch is cut from it
    whenever there is a free record in the exchange and an engine with room.
    """

    def __init__(
        self,
        store: SampleStore,
        exchange: Exchange,
        engine: EngineSpec,
        batching: Batching,
        *,
        samples: int,
        timeout_s: float,
        deliver: Deliver,
        on_failure: Callable[[StageFailure], None],
        tracer: AnyTracer | None = None,
    ) -> None:
        self._store = store
        self._tracer = Untraced() if tracer is None else tracer
        self._exchange = exchange
        self._batching = batching
        self._deliver = deliver
        self._lock = threading.Lock()
        self._waiting = Waiting()
        self._underway: dict[int, _Batch] = {}
        self._tickets = 0
        self._issued = 0
        self._completed = 0
        self._phase = "starting"
        self._phase_began = time.monotonic()
        self._first_issue: float | None = None
        self._last_answer = 0.0
        self._clock_ahead_s = self._clock_was_ahead_s = 0.0
        self._delivering_s = 0.0
        self._timer = Timer(self._pump, on_failure) if batching.hold_s else None
        self.latencies = Latencies()
        self.predictions = np.full(samples, NOT_PREDICTED, dtype=np.int32)
        self.infer = infer_stage(engine, timeout_s=timeout_s, on_result=self._on_classes, on_failure=on_failure)
        self.infer.on_room = self._pump
        self.complete: ThreadStage[_Answered, None] = ThreadStage(
            "complete",
            self._complete,
            capacity=BATCHES_TO_DELIVER * engine.batch_size,
            on_result=lambda _task, _result: None,
            on_failure=on_failure,
        )

    def start(self) -> None:
        """Start the threads of the complete side; the engines are started as a stage."""
        self.complete.start()
        if self._timer is not None:
            self._timer.start()

    def stop(self) -> None:
        """End those threads. Safe to call twice."""
        if self._timer is not None:
            self._timer.stop()
        self.complete.stop()

    def issue(self, ids: Ids, indices: Indices) -> None:
        """Take a query: LoadGen's ids (n,) and the samples they ask for (n,). Returns at once."""
        now = time.monotonic()
        with self._tracer.span("issue", samples=len(ids)):
            with self._lock:
                if self._first_issue is None:
                    self._first_issue = now
                    self._clock_was_ahead_s = time.time() - now
                self._issued += len(ids)
                self._waiting.put(ids, indices, now)
            self._pump()

    def enter(self, phase: str) -> None:
        """Name what the run is doing from now on (see `pipeline.telemetry.metrics.Snapshot.phase`)."""
        self._phase, self._phase_began = phase, time.monotonic()

    @property
    def delivery_rate(self) -> float | None:
        """Samples/s over the seconds that handing answers to LoadGen took; None before any."""
        with self._lock:
            return self._completed / self._delivering_s if self._delivering_s else None

    @property
    def answering(self) -> Answering | None:
        """The time of answering so far; None before the first answer."""
        with self._lock:
            if self._first_issue is None or not self._completed:
                return None
            step_s = self._clock_ahead_s - self._clock_was_ahead_s
            return Answering(self._completed, self._first_issue, self._last_answer, step_s)

    def snapshot(self) -> Snapshot:
        infer, answering = self.infer.snapshot(), self.answering
        loaded, to_load = self._store.progress
        return Snapshot(
            phase=self._phase,
            elapsed_s=time.monotonic() - self._phase_began,
            completed=0 if answering is None else answering.samples,
            expected=self._issued,
            rate_now=infer.rate,
            rate_mean=0.0 if answering is None else answering.rate,
            stages=(self._store.snapshot(), infer, self.complete.snapshot()),
            counted=infer.counted,
            counted_s=infer.counted_s,
            loaded=loaded,
            to_load=to_load,
            latency_ms=self.latencies.percentiles_ms(),
        )

    def _pump(self) -> None:
        """Cut batches from what waits while there is room for them and the rule says so."""
        with self._lock:
            while self._waiting:
                wait_s = self._time_to_hold()
                if wait_s > 0:
                    assert self._timer is not None, "samples are only held back where there is a timer"
                    self._timer.wake_in(wait_s)
                    return
                if not self._exchange.free:
                    return
                try:
                    self._submit()
                except StageFailure:
                    return  # its on_failure has been told

    def _time_to_hold(self) -> float:
        """Seconds until the next batch is due, 0 or less when it is. Called with `_lock` held."""
        oldest_s = time.monotonic() - self._waiting.since
        due = self._batching.due(len(self._waiting), oldest_s, bool(self._underway))
        return 0.0 if due else self._batching.hold_s - oldest_s

    def _submit(self) -> None:
        """Send the next batch to the engines. Called with `_lock` held, a record free."""
        since = self._waiting.since
        ids, indices = self._waiting.take(self._batching.largest)
        slots = self._store.slots_of(indices)
        if len(slots) > 1:
            # In the order of slots, a batch is fewer and longer copies. LoadGen takes answers in any order.
            order = np.argsort(slots, kind="stable")
            slots, ids, indices = slots[order], ids[order], indices[order]
        record = self._exchange.take(slots)
        self._underway[self._tickets] = _Batch(ids, indices, record, since, time.perf_counter())
        # There is a record for every batch that the stage admits.
        admitted = self.infer.try_submit(Task(self._tickets, len(slots), record))
        assert admitted, "a free record, and no room in the stage"
        self._tickets += 1

    def _on_classes(self, task: Task[int], _result: None) -> None:
        with self._lock:
            batch = self._underway.pop(task.ticket)
            classes = self._exchange.classes(batch.record, task.samples).copy()
            self._exchange.give(batch.record)
        lane = f"record {batch.record}"
        now_s = time.perf_counter()
        self._tracer.complete("batch", lane, batch.cut_s, now_s, ticket=task.ticket, samples=task.samples)
        answered = Task(task.ticket, task.samples, _Answered(batch, classes))
        if task.samples <= DELIVER_AT_ONCE:
            self.complete.do_now(answered)
        else:
            self.complete.submit(answered)

    def _complete(self, answered: _Answered) -> None:
        batch = answered.batch
        began = time.monotonic()
        with self._tracer.span("deliver", samples=len(batch.ids)):
            self.predictions[batch.indices] = answered.classes
            self._deliver(batch.ids, answered.classes)
        now = time.monotonic()
        with self._lock:
            self.latencies.add(now - batch.since, len(batch.ids))
            self._completed += len(batch.ids)
            self._last_answer = now
            self._clock_ahead_s = time.time() - now
            self._delivering_s += now - began
