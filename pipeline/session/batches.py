"""Samples in slots become batches, batches go through the engines, answers go back to whoever asked.

Who asks is a client: LoadGen's adapter with its queries, a session with the samples its loaders have prepared. Each has
a queue of its own here. Nothing waits on the side that asks: samples are kept as the arrays they came in, and the next
batch is cut from them whenever there is a free record in the exchange.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.arrays import Classes, Ids, Indices, Slots
from pipeline.memory.exchange import Exchange
from pipeline.session.timer import Timer
from pipeline.session.waiting import Batching, Waiting
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.infer import infer_stage
from pipeline.stages.spec import EngineSpec
from pipeline.stages.thread import ThreadStage
from pipeline.telemetry.answering import Answering
from pipeline.telemetry.latency import Latencies
from pipeline.telemetry.trace import AnyTracer, Untraced

BATCHES_TO_DELIVER = 8

# Answers of so few samples go back at once, from the thread that hears of them: handing them on costs more.
DELIVER_AT_ONCE = 64


@dataclass(frozen=True)
class Answered:
    """A batch's answers; the arrays are the receiver's own.

    Attributes:
        ids, indices: as they were put, uint64 (n,) and int64 (n,).
        classes: int32 (n,).
        top_ids, top_scores: int32 and float32 (n, k), best first; None where the engines answer with classes alone.
    """

    ids: Ids
    indices: Indices
    classes: Classes
    top_ids: npt.NDArray[np.int32] | None = None
    top_scores: npt.NDArray[np.float32] | None = None


class Client(Protocol):
    """Who asks. Called from threads of the engines' side, never with a lock held but `filling` and `slots_of`."""

    def slots_of(self, indices: Indices) -> Slots:
        """The arena slots of samples (n,), int32 (n,)."""

    def filling(self) -> bool:
        """Whether more samples are on their way, so that a batch is worth holding back for them."""

    def deliver(self, answered: Answered) -> None:
        """Take a batch's answers."""


class Gathering(Protocol):
    """Samples that gather at the client's until a batch is made, so that it need not call for each. Thread-safe."""

    def take(self) -> tuple[Ids, Indices, float] | None:
        """All there are: ids (n,), indices (n,), and when the first of them came (monotonic); None of none."""

    def call_at(self, count: int) -> bool:
        """Have `Batches.pump` called once, when so many are there; 0: never. Whether they are already."""


@dataclass(frozen=True)
class _Batch:
    """Samples on their way, and two times.

    `since` (monotonic) is when the first of them was put, `cut_s` (perf_counter) when the batch was made.
    """

    queue: Queue
    ids: Ids
    indices: Indices
    record: int
    since: float
    cut_s: float


class Queue:
    """A client's samples that wait for a batch, and what came of those before.

    Attributes:
        gathering: where samples come from besides `put`.
    """

    def __init__(self, batches: Batches, client: Client, batching: Batching) -> None:
        self._batches = batches
        self.client = client
        self.batching = batching
        self.waiting = Waiting()
        self.gathering: Gathering | None = None
        self.latencies = Latencies()
        self.issued = 0
        self.completed = 0
        self.delivering_s = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0
        # Of the system's clock over the monotonic one, then and at the last answer.
        self._ahead_first_s = self._ahead_last_s = 0.0

    def put(self, ids: Ids, indices: Indices) -> None:
        """Ask for samples: the client's ids (n,) and the samples' indices (n,). Returns at once."""
        self._batches.put(self, ids, indices)

    @property
    def answering(self) -> Answering | None:
        """The time of answering so far; None before the first answer."""
        if self._first_s is None or not self.completed:
            return None
        return Answering(self.completed, self._first_s, self._last_s, self._ahead_last_s - self._ahead_first_s)

    def count_issued(self, samples: int, now: float) -> None:
        """Samples were put at `now` (monotonic)."""
        if self._first_s is None:
            self._first_s, self._ahead_first_s = now, time.time() - now
        self.issued += samples

    def count_completed(self, samples: int, since: float, began: float) -> None:
        """Samples of which the first was put at `since` have been delivered, from `began` until now (monotonic)."""
        now = time.monotonic()
        self.latencies.add(now - since, samples)
        self.delivering_s += now - began
        self._last_s, self._ahead_last_s = now, time.time() - now
        self.completed += samples  # last: a snapshot may be taken between any two of these

    @property
    def delivery_rate(self) -> float | None:
        """Samples/s over the seconds that the client took to accept answers; None before any."""
        return self.completed / self.delivering_s if self.delivering_s else None


class Batches:
    """The engines, the batches under way at them, and the thread that hands answers back.

    Args:
        exchange: where a batch's slots and answers are.
        engine: what every engine process is built from.
        timeout_s: silence after which an engine at work counts as hung.
    """

    def __init__(
        self,
        exchange: Exchange,
        engine: EngineSpec,
        *,
        timeout_s: float,
        on_failure: Callable[[StageFailure], None],
        tracer: AnyTracer | None = None,
    ) -> None:
        self._tracer = Untraced() if tracer is None else tracer
        self._exchange = exchange
        self._lock = threading.Lock()
        self._queues: list[Queue] = []
        self._underway: dict[int, _Batch] = {}
        self._tickets = 0
        self._timer = Timer(self.pump, on_failure)
        self.infer = infer_stage(
            engine, timeout_s=timeout_s, on_result=self._on_answers, on_failure=on_failure, on_room=self.pump
        )
        self.complete: ThreadStage[tuple[_Batch, Answered], None] = ThreadStage(
            "complete",
            self._complete,
            capacity=BATCHES_TO_DELIVER * engine.batch_size,
            on_result=lambda _task, _result: None,
            on_failure=on_failure,
        )

    def start(self) -> None:
        """Start the threads of this side; the engines are started as a stage."""
        self.complete.start()
        self._timer.start()

    def stop(self) -> None:
        """End those threads. Safe to call twice."""
        self._timer.stop()
        self.complete.stop()

    def open(self, client: Client, batching: Batching) -> Queue:
        """A queue for a client, whose batches are cut by the rule."""
        queue = Queue(self, client, batching)
        with self._lock:
            self._queues.append(queue)
        return queue

    def close(self, queue: Queue) -> None:
        """Forget a client. What it has under way is delivered still."""
        with self._lock:
            self._queues.remove(queue)

    def put(self, queue: Queue, ids: Ids, indices: Indices) -> None:
        now = time.monotonic()
        with self._tracer.span("issue", samples=len(ids)):
            with self._lock:
                self._fetch(queue)
                queue.count_issued(len(ids), now)
                queue.waiting.put(ids, indices, now)
            self.pump()

    def pump(self) -> None:
        """Cut batches from what waits while there is room for them and the rule says so."""
        with self._lock:
            for queue in self._queues:
                more = True
                while more:
                    self._fetch(queue)
                    wanted = self._cut(queue)
                    more = queue.gathering is not None and queue.gathering.call_at(wanted)

    def _fetch(self, queue: Queue) -> None:
        """What has gathered waits here from now on. Called with `_lock` held."""
        taken = None if queue.gathering is None else queue.gathering.take()
        if taken is not None:
            ids, indices, since = taken
            with self._tracer.span("issue", samples=len(ids)):
                queue.count_issued(len(ids), since)
                queue.waiting.put(ids, indices, since)

    def _cut(self, queue: Queue) -> int:
        """Send the batches that are due; with how many more samples the next may be, 0: not by samples alone.

        Called with `_lock` held.
        """
        while queue.waiting:
            wait_s = self._time_to_hold(queue)
            if wait_s > 0:
                self._timer.wake_in(wait_s)
                return queue.batching.largest - len(queue.waiting)
            if not self._exchange.free:
                return 0
            try:
                self._submit(queue)
            except StageFailure:
                return 0  # its on_failure has been called
        return 1

    def _time_to_hold(self, queue: Queue) -> float:
        """Seconds until the next batch is due, 0 or less when it is. Called with `_lock` held."""
        oldest_s = time.monotonic() - queue.waiting.since
        filling = len(self._underway) >= queue.batching.busy_at or queue.client.filling()
        due = queue.batching.due(len(queue.waiting), oldest_s, filling)
        return 0.0 if due else queue.batching.hold_s - oldest_s

    def _submit(self, queue: Queue) -> None:
        """Send the next batch to the engines. Called with `_lock` held, a record free."""
        since = queue.waiting.since
        ids, indices = queue.waiting.take(queue.batching.largest)
        slots = queue.client.slots_of(indices)
        if len(slots) > 1:
            # In the order of slots, a batch is fewer and longer copies. Clients take answers in any order.
            order = np.argsort(slots, kind="stable")
            slots, ids, indices = slots[order], ids[order], indices[order]
        record = self._exchange.take(slots)
        self._underway[self._tickets] = _Batch(queue, ids, indices, record, since, time.perf_counter())
        # There is a record for every batch that the stage admits.
        admitted = self.infer.try_submit(Task(self._tickets, len(slots), record))
        assert admitted, "a free record, and no room in the stage"
        self._tickets += 1

    def _on_answers(self, task: Task[int], _result: None) -> None:
        with self._lock:
            batch = self._underway.pop(task.ticket)
            answers = [part.copy() for part in self._exchange.answers(batch.record, task.samples)]
            self._exchange.give(batch.record)
        lane = f"record {batch.record}"
        self._tracer.complete("batch", lane, batch.cut_s, time.perf_counter(), ticket=task.ticket, samples=task.samples)
        answered = Answered(batch.ids, batch.indices, *answers)
        delivery = Task(task.ticket, task.samples, (batch, answered))
        if task.samples <= DELIVER_AT_ONCE:
            self.complete.do_now(delivery)
        else:
            self.complete.submit(delivery)

    def _complete(self, answered: tuple[_Batch, Answered]) -> None:
        batch, answers = answered
        queue, samples = batch.queue, len(batch.ids)
        began = time.monotonic()
        with self._tracer.span("deliver", samples=samples):
            queue.client.deliver(answers)
        with self._lock:
            queue.count_completed(samples, batch.since, began)
