"""A session: whatever asks to have images classified asks here.

    sources -> jobs -> loaders -> samples in slots -> batches -> engines -> answers, in the sources' order

`pipeline.session.loading` is the way to the slots, `pipeline.session.batches` that from there to the answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike, fspath
from types import TracebackType
from typing import TypeAlias

import numpy as np

from int4core.cores import usable_cores
from pipeline.errors import PipelineError
from pipeline.jpeg.plan import reason_of
from pipeline.machine.numa import cores_near
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange, Slots
from pipeline.samples.sources import Locator, PathLocator, Source
from pipeline.session.batches import Answered, Batches, Client, Queue
from pipeline.session.loading import Loading
from pipeline.session.scheduler import Outcome, Prepared
from pipeline.session.spec import SessionSpec
from pipeline.session.waiting import Batching, Indices
from pipeline.stages.base import StageFailure
from pipeline.stages.spec import EngineSpec, records_for
from pipeline.telemetry.ceilings import Ceilings, total
from pipeline.telemetry.metrics import StageSnapshot
from pipeline.telemetry.trace import Records, make_tracer

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


@dataclass(frozen=True, eq=False)
class _Request:
    """A source and the future that waits for its answer."""

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
        on_failure: called once, from a thread of the session, when it cannot go on.

    Attributes:
        loading: the loaders' side.
        batches: the engines' side.
    """

    def __init__(self, spec: SessionSpec, *, on_failure: Callable[[StageFailure], None] | None = None) -> None:
        self.spec = spec
        self._on_failure = on_failure
        self._tracer = make_tracer("pipeline", spec.traced)
        self._held = ExitStack()
        try:
            self._build(spec)
        except BaseException:
            self._held.close()
            raise

    def _build(self, spec: SessionSpec) -> None:
        sampling = spec.sampling
        arena = self._held.enter_context(
            Arena.create(
                spec.slots or spec.slots_for_streaming,
                spec.input_shape,
                room=0 if sampling is None else spec.room,
                remedy=spec.memory_remedy,
            )
        )
        records = records_for(spec.engines, spec.inflight)
        exchange = self._held.enter_context(Exchange.create(records, spec.sizes.largest, top=spec.top))
        self.batches = Batches(
            exchange,
            EngineSpec(
                arena.spec,
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
                sampling=sampling,
            ),
            timeout_s=spec.stage_timeout_s,
            on_failure=self._fail,
            tracer=self._tracer,
        )
        self._held.callback(self.batches.stop)
        self.loading = Loading(
            arena,
            spec.preparation,
            loaders=spec.loaders,
            cores=cores_near(spec.bus_ids),
            timeout_s=spec.stage_timeout_s,
            image_timeout_s=spec.image_timeout_s,
            traced=spec.traced,
            on_prepared=self._on_prepared,
            on_answers=self._on_answers,
            on_failure=self._fail,
        )
        # Given back in the reverse order: first the processes that compute, last the memory they read.
        self._held.callback(self.loading.stop)
        self._held.callback(self.batches.infer.stop)
        self._held.callback(self._end, PipelineError("the session is over"))
        self._requests = self.loading.open(ordered=False)
        self._queue = self.batches.open(_Samples(self.loading), spec.batching)

    def start(self) -> None:
        """Bring every stage up, the processes side by side. Raises StageFailure."""
        self.loading.stage.launch()
        self.batches.infer.launch()
        self.batches.start()
        self.loading.stage.start()
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
        for outcomes in self.loading.outcomes(map(as_source, sources), ordered=ordered, wait_s=wait_s):
            yield [answer_of(outcome) for outcome in outcomes]

    def submit(self, source: AnySource) -> Future[Answer]:
        """Classify one source. Waits for a slot, not for the answer. Raises StageFailure, as the future does."""
        request = _Request(as_source(source), Future())
        request.future.set_running_or_notify_cancel()
        self.loading.offer(self._requests, request)
        return request.future

    def pin(self, sources: Iterable[AnySource]) -> list[Outcome[Source]]:
        """Have samples in slots that stay theirs until `unpin`; an outcome's value is the slot.

        Raises PipelineError when there are more of them than free slots, StageFailure when the session cannot go on.
        """
        wanted = [as_source(source) for source in sources]
        if len(wanted) > self.loading.core.free:
            raise PipelineError(
                f"{len(wanted)} samples are to stay in memory, and {self.loading.core.free} of {self.slots} slots are "
                "free"
            )
        return [outcome for outcomes in self.loading.outcomes(wanted, pins=True) for outcome in outcomes]

    def unpin(self, slots: Iterable[int]) -> None:
        """Give slots that `pin` gave back."""
        self.loading.unpin(slots)

    def queries(self, client: Client, batching: Batching) -> Queue:
        """A queue for one who asks by slots that it has pinned, many samples per call (see `Batches`)."""
        return self.batches.open(client, batching)

    @property
    def slots(self) -> int:
        """How many samples the arena holds."""
        return self.loading.core.slots

    @property
    def leases(self) -> int:
        """Slots that are somebody's."""
        return self.loading.core.leases

    def snapshots(self) -> tuple[StageSnapshot, ...]:
        """The stages at this moment, in the order data flows."""
        return self.loading.stage.snapshot(), self.batches.infer.snapshot(), self.batches.complete.snapshot()

    def traces(self) -> tuple[Records, ...]:
        """The spans of every process, once all is answered. Raises StageFailure."""
        return (self._tracer.to_records(), *self.batches.infer.traces(), *self.loading.stage.traces())

    def ceilings(
        self, rate: float, *, decode_timed: bool, decodes_per_sample: float = 1.0, queue: Queue | None = None
    ) -> Ceilings:
        """What each part could have done alone in this session, which gave `rate` samples/s, to `queue` if given.

        The others are as in `Ceilings`.
        """
        infer, load = self.batches.infer, self.loading.stage
        engine, busy = total(r.engine for r in infer.rates), infer.rate_while_busy
        if engine is None and busy is not None:
            engine = busy * infer.workers
        return Ceilings(
            rate=rate,
            decode_per_loader=load.rate_while_busy,
            decode_timed=decode_timed,
            decodes_per_sample=decodes_per_sample,
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

    def _on_prepared(self, ready: Prepared) -> None:
        if ready.numbers:
            self._queue.put(np.array(ready.numbers, np.uint64), np.array(ready.slots, np.int64))
        else:
            self.batches.pump()  # nothing to wait for any more, maybe

    def _on_answers(self) -> None:
        """Futures are notified. Called with the loaders' lock held."""
        for outcome in self.loading.core.answers(self._requests):
            request: _Request = outcome.source
            request.future.set_result(answer_of(Outcome(request.source, outcome.value, outcome.error)))

    def _fail(self, failure: StageFailure) -> None:
        if self._end(failure) and self._on_failure is not None:
            self._on_failure(failure)

    def _end(self, why: BaseException) -> bool:
        """Whoever waits is notified, the first time; whether this was the first."""
        if not self.loading.end(why):
            return False
        left: list[_Request] = self.loading.core.unanswered(self._requests)
        for request in left:
            request.future.set_exception(why)
        return True


class _Samples:
    """The session's own samples as a client of the batches: the index of a sample is its slot."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def slots_of(self, indices: Indices) -> Slots:
        return indices.astype(np.int32)

    def filling(self) -> bool:
        return self._loading.core.preparing > 0

    def deliver(self, answered: Answered) -> None:
        classes: list[tuple[int, ...]] = [(c,) for c in answered.classes.tolist()]
        scores: Sequence[tuple[float, ...]] = [()] * len(classes)
        if answered.top_ids is not None and answered.top_scores is not None:
            classes = [tuple(row) for row in answered.top_ids.tolist()]
            scores = [tuple(row) for row in answered.top_scores.tolist()]
        undecoded = answered.classes < 0
        if undecoded.any():
            words = (-answered.classes[undecoded]).tolist()
            self._loading.again(answered.ids[undecoded].tolist(), [reason_of(word) for word in words])
        good = ~undecoded
        values = [value for value, ok in zip(zip(classes, scores, strict=True), good.tolist(), strict=True) if ok]
        self._loading.answered(answered.ids[good].tolist(), values)


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
