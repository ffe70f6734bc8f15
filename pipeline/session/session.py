"""A session: whatever asks to have images classified asks here.

    sources -> jobs -> loaders -> samples in slots -> batches -> engines -> answers, in the sources' order

The decisions are `pipeline.session.scheduler`'s; this module wires the processes and threads around it. One lock guards
it. Threads that come in: a feeder for each call of `classify`, the watchers of the two stages, and the callers. None of
them calls a stage or the batches with the lock held, but to hand a job over.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike, fspath
from types import TracebackType
from typing import Protocol, TypeAlias

import numpy as np

from int4core.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.machine.numa import cores_near
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange, Slots
from pipeline.samples.sources import Locator, PathLocator, Source
from pipeline.session.batches import Answered, Batches, Client, Queue
from pipeline.session.courier import Courier
from pipeline.session.feeder import Feeder
from pipeline.session.scheduler import Outcome, Scheduler, Stream
from pipeline.session.spec import JOBS_PER_LOADER, SessionSpec
from pipeline.session.waiting import Batching, Indices
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.load import SAMPLES_PER_JOB, LoadResult, LoadWork, load_stage
from pipeline.stages.lost import Lost
from pipeline.stages.spec import EngineSpec, records_for
from pipeline.telemetry.ceilings import Ceilings, total
from pipeline.telemetry.metrics import StageSnapshot
from pipeline.telemetry.trace import Records, make_tracer

# No wait is longer than this without looking whether the session still lives.
POLL_S = 1.0

AnySource: TypeAlias = "Source | str | PathLike[str]"


@dataclass(frozen=True)
class Answer:
    """What became of a source.

    Attributes:
        source: as it was given.
        classes, scores: the best classes and their softmax scores, best first; a session without `top` gives the best
            class alone and no score. Empty where there is an error.
        error: why there is no answer; None where there is one.
    """

    source: Source
    classes: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


class _Asked(Protocol):
    """What the scheduler carries: a source, alone or with the future that waits for it."""

    @property
    def locator(self) -> Locator: ...


@dataclass(frozen=True, eq=False)
class _Request:
    source: Source
    future: Future[Answer]

    @property
    def locator(self) -> Locator:
        return self.source.locator


class Session:
    """Loaders, engines and the memory between them, from `with` to its end.

    Every source that goes in comes out once, as classes or as an error; memory does not grow with their number. A dead
    engine ends the session: whoever waits for an answer gets the StageFailure.

    Args:
        on_failure: told once, from a thread of the session, when it cannot go on.
    """

    def __init__(self, spec: SessionSpec, *, on_failure: Callable[[StageFailure], None] | None = None) -> None:
        self.spec = spec
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._tracer = make_tracer("pipeline", spec.traced)
        self._held = ExitStack()
        try:
            self._build(spec)
        except BaseException:
            self._held.close()
            raise

    def _build(self, spec: SessionSpec) -> None:
        slots = spec.slots or spec.slots_for_streaming
        self._arena = self._held.enter_context(Arena.create(slots, spec.input_shape))
        records = records_for(spec.engines, spec.inflight)
        exchange = self._held.enter_context(Exchange.create(records, spec.sizes.largest, top=spec.top))
        self._core: Scheduler[_Asked] = Scheduler(slots, loaders=spec.loaders, most=SAMPLES_PER_JOB)
        self._requests = self._core.open(ordered=False)
        self._courier = self._held.enter_context(Courier(self._arena))
        self.load = load_stage(
            self._arena.spec,
            spec.preparation,
            loaders=spec.loaders,
            # A lost job is the stage's until what it left has been given out again.
            capacity=2 * self._most_jobs * SAMPLES_PER_JOB,
            cores=cores_near(spec.bus_ids),
            timeout_s=spec.stage_timeout_s,
            image_timeout_s=spec.image_timeout_s,
            traced=spec.traced,
            on_result=self._on_loaded,
            on_lost=self._on_lost,
            on_failure=self._fail,
        )
        self.batches = Batches(
            exchange,
            EngineSpec(
                self._arena.spec,
                exchange.spec,
                spec.model,
                spec.backend,
                spec.sizes,
                engines=spec.engines,
                inflight=spec.inflight,
                h2d=spec.h2d,
                ordered=spec.ordered,
                bus_ids=spec.bus_ids,
                options=spec.backend_options,
                traced=spec.traced,
                top=spec.top,
            ),
            timeout_s=spec.stage_timeout_s,
            on_failure=self._fail,
            tracer=self._tracer,
        )
        self.queue = self.batches.open(_Samples(self), spec.batching)
        # Given back in the reverse order: first the processes that compute, last the memory they read.
        self._held.callback(self.batches.stop)
        self._held.callback(self.load.stop)
        self._held.callback(self.batches.infer.stop)
        self._held.callback(self._end, PipelineError("the session is over"))

    def start(self) -> None:
        """Bring every stage up, the processes side by side. Raises StageFailure."""
        self.load.launch()
        self.batches.infer.launch()
        self.batches.start()
        self.load.start()
        self.batches.infer.start()

    def classify(self, sources: Iterable[AnySource], *, ordered: bool = True) -> Iterator[Answer]:
        """The answer to every source, in the sources' order or, not `ordered`, as they come.

        `sources` is read in a thread of its own, and no further than there are slots; what it raises is raised here,
        after the answers to what came before. Raises StageFailure when the session cannot go on.
        """
        for answers in self.classify_in_batches(sources, ordered=ordered):
            yield from answers

    def classify_in_batches(
        self, sources: Iterable[AnySource], *, ordered: bool = True, wait_s: float | None = None
    ) -> Generator[list[Answer], None, None]:
        """The same, all that are out at a time: an empty list when there have been none for `wait_s` seconds."""
        stream = self._core.open(ordered=ordered)
        with Feeder(self, stream, map(as_source, sources)) as feeder:
            while True:
                with self._changed:
                    self._wait_for(lambda: self._core.has_answers(stream) or self._over(stream, feeder), wait_s)
                    outcomes = self._core.answers(stream)
                    if not outcomes and self._over(stream, feeder):
                        break
                yield [answer_of(outcome) for outcome in outcomes]  # type: ignore[arg-type]  # a stream of sources
        feeder.raise_error()

    def submit(self, source: AnySource) -> Future[Answer]:
        """Classify one source. Waits for a slot, not for the answer. Raises StageFailure, as the future does."""
        request = _Request(as_source(source), Future())
        request.future.set_running_or_notify_cancel()
        self.offer(self._requests, request)
        return request.future

    def pin(self, sources: Iterable[AnySource]) -> list[Outcome[Source]]:
        """Have samples in slots that stay theirs until `unpin`; an outcome's value is the slot.

        Raises PipelineError when there are more of them than free slots, StageFailure when the session cannot go on.
        """
        stream = self._core.open(pins=True)
        wanted = [as_source(source) for source in sources]
        with self._changed:
            if len(wanted) > self._core.free:
                raise PipelineError(
                    f"{len(wanted)} samples are to stay in memory, and {self._core.free} of {self._core.slots} slots "
                    "are free"
                )
            self._core.offer(stream, wanted)
        self._dispatch()
        pinned: list[Outcome[Source]] = []
        while len(pinned) < len(wanted):
            with self._changed:
                self._wait_for(lambda: self._core.has_answers(stream))
                pinned += self._core.answers(stream)  # type: ignore[arg-type]  # a stream of sources
        return pinned

    def unpin(self, slots: Iterable[int]) -> None:
        """Give slots that `pin` gave back."""
        with self._changed:
            self._core.unpin(slots)
            self._changed.notify_all()

    def queries(self, client: Client, batching: Batching) -> Queue:
        """A queue for one who asks by slots that it has pinned, many samples a call (see `Batches`)."""
        return self.batches.open(client, batching)

    @property
    def slots(self) -> int:
        """How many samples the arena holds."""
        return self._core.slots

    @property
    def leases(self) -> int:
        """Slots that are somebody's."""
        return self._core.leases

    def snapshots(self) -> tuple[StageSnapshot, ...]:
        """The stages at this moment, in the order data flows."""
        return self.load.snapshot(), self.batches.infer.snapshot(), self.batches.complete.snapshot()

    def traces(self) -> tuple[Records, ...]:
        """The spans of every process, once all is answered. Raises StageFailure."""
        return (self._tracer.to_records(), *self.batches.infer.traces(), *self.load.traces())

    def ceilings(self, rate: float, *, decode_timed: bool, queue: Queue | None = None) -> Ceilings:
        """What each part could have done alone in this session, which gave `rate` samples/s to `queue`.

        `decode_timed` says whether decoding was a part of what the rate was measured over.
        """
        infer, load = self.batches.infer, self.load
        engine, busy = total(r.engine for r in infer.rates), infer.rate_while_busy
        if engine is None and busy is not None:
            engine = busy * infer.workers
        return Ceilings(
            rate=rate,
            decode_per_loader=load.rate_while_busy,
            decode_timed=decode_timed,
            loaders=load.workers,
            cores=usable_cores(),
            h2d=total(r.h2d for r in infer.rates),
            engine=engine,
            loadgen=None if queue is None else queue.delivery_rate,
            sample_bytes=math.prod(self.spec.input_shape),
            engines=infer.workers,
        )

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        self._held.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What a feeder needs.

    def offer(self, stream: Stream[_Asked], source: _Asked, until: Callable[[], bool] = lambda: False) -> bool:
        """Hand a source in as soon as there is room; False when `until` came true instead."""
        with self._changed:
            self._wait_for(lambda: until() or self._core.room(stream) > 0)
            if until():
                return False
            self._core.offer(stream, [source])
            hungry = self._core.jobs < self._most_jobs
        if hungry:
            self._dispatch()
        return True

    def drop(self, stream: Stream[_Asked]) -> None:
        """Nobody takes this stream's answers any more."""
        with self._changed:
            self._core.drop(stream)
            self._changed.notify_all()

    def wake(self) -> None:
        """Have everyone who waits look again."""
        with self._changed:
            self._changed.notify_all()

    # The flow.

    @property
    def _most_jobs(self) -> int:
        return JOBS_PER_LOADER * self.spec.loaders

    def _dispatch(self) -> None:
        """Give loaders what waits for them."""
        try:
            with self._changed:
                while self._core.jobs < self._most_jobs and (job := self._core.take_job()):
                    locators = self._courier.send(job.ticket, [s.locator for s in job.sources], job.slots)
                    admitted = self.load.try_submit(Task(job.ticket, len(job.sources), LoadWork(locators, job.slots)))
                    assert admitted, "fewer jobs than loaders may have, and no room in the stage"
        except StageFailure:
            return  # its on_failure has been told

    def _on_loaded(self, task: Task[LoadWork], result: LoadResult) -> None:
        self.load.count_failed(len(result.bad))
        with self._changed:
            self._courier.done(task.ticket)
            ready = self._core.prepared(task.ticket, dict(result.bad))
            self._settle()
        self._dispatch()
        if ready.numbers:
            self.queue.put(np.array(ready.numbers, np.uint64), np.array(ready.slots, np.int64))
        else:
            self.batches.pump()  # nothing to wait for any more, maybe

    def _on_lost(self, task: Task[LoadWork], lost: Lost) -> None:
        with self._changed:
            self._courier.done(task.ticket)
            self._core.lost(task.ticket, lost.item, f"its loader {lost.why}", to_blame=lost.overstayed)
            self._settle()
        self._dispatch()
        self.batches.pump()

    def _on_answers(self, answered: Answered) -> None:
        classes = [(c,) for c in answered.classes.tolist()]
        scores: Sequence[tuple[float, ...]] = [()] * len(classes)
        if answered.top_ids is not None and answered.top_scores is not None:
            classes = [tuple(row) for row in answered.top_ids.tolist()]
            scores = [tuple(row) for row in answered.top_scores.tolist()]
        with self._changed:
            self._core.answered(answered.ids.tolist(), zip(classes, scores, strict=True))
            self._settle()

    def _settle(self) -> None:
        """Something has been answered, or may be offered. Called with the lock held."""
        for outcome in self._core.answers(self._requests):
            request = outcome.source
            assert isinstance(request, _Request)
            request.future.set_result(answer_of(Outcome(request.source, outcome.value, outcome.error)))
        self._changed.notify_all()

    @staticmethod
    def _over(stream: Stream[_Asked], feeder: Feeder) -> bool:
        return feeder.done and stream.idle

    def _wait_for(self, condition: Callable[[], bool], wait_s: float | None = None) -> None:
        """Wait with the lock held, for `wait_s` seconds at most. Raises what ended the session."""
        until = None if wait_s is None else time.monotonic() + wait_s
        while self._failure is None:
            left = POLL_S if until is None else min(POLL_S, until - time.monotonic())
            if self._changed.wait_for(lambda: self._failure is not None or condition(), timeout=left) or (
                until is not None and time.monotonic() >= until
            ):
                break
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: StageFailure) -> None:
        if self._end(failure) and self._on_failure is not None:
            self._on_failure(failure)

    def _end(self, why: BaseException) -> bool:
        """Whoever waits is told, the first time; whether this was the first."""
        with self._changed:
            if self._failure is not None:
                return False
            self._failure = why
            left = self._core.unanswered(self._requests)
            self._changed.notify_all()
        for request in left:
            assert isinstance(request, _Request)
            request.future.set_exception(why)
        return True


class _Samples:
    """The session's own samples as a client of the batches: the index of a sample is its slot."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def slots_of(self, indices: Indices) -> Slots:
        return indices.astype(np.int32)

    def filling(self) -> bool:
        return self._session._core.preparing > 0

    def deliver(self, answered: Answered) -> None:
        self._session._on_answers(answered)


def as_source(source: AnySource) -> Source:
    """A source of what a caller names: a path is its own key."""
    if isinstance(source, Source):
        return source
    path = fspath(source)
    return Source(path, PathLocator(path))


def answer_of(outcome: Outcome[Source]) -> Answer:
    if outcome.error is not None:
        return Answer(outcome.source, error=outcome.error)
    classes, scores = outcome.value
    return Answer(outcome.source, classes, scores)
