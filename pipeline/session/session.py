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
from pipeline.arrays import Indices, Slots
from pipeline.errors import PipelineError
from pipeline.jpeg.plan import reason_of
from pipeline.machine.numa import cores_near, memory_nodes, shares_of, shown
from pipeline.memory.arena import Arena
from pipeline.memory.exchange import Exchange
from pipeline.samples.sources import Locator, PathLocator, Source, Sources
from pipeline.session.answers import Answer, Answers, answered_columns
from pipeline.session.batches import Answered, Batches, Client, Queue
from pipeline.session.loading import Loading
from pipeline.session.notifier import Notifier
from pipeline.session.scheduler import Outcomes, Prepared
from pipeline.session.spec import SessionSpec
from pipeline.session.waiting import Batching
from pipeline.stages.base import StageFailure
from pipeline.stages.spec import EngineSpec, records_for
from pipeline.telemetry.ceilings import Ceilings, total
from pipeline.telemetry.metrics import StageSnapshot
from pipeline.telemetry.trace import Records, make_tracer

AnySource: TypeAlias = "Source | str | PathLike[str]"


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
        self._held = ExitStack()
        self._notifier = Notifier()
        self._held.callback(self._notifier.stop)
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
        self._tracer = make_tracer(f"pipeline{_whereabouts(arena)}" if spec.traced else "pipeline", spec.traced)
        cores = cores_near(spec.bus_ids)
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
                cores=cores,
                options=spec.backend_options,
                traced=spec.traced,
                top=spec.top,
                sampling=sampling,
                digest=spec.digest,
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
            cores=cores,
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
        for answers in self.classify_in_batches(((as_source(source),) for source in sources), ordered=ordered):
            yield from answers

    def classify_in_batches(
        self, sources: Iterable[Sequence[Source]], *, ordered: bool = True, wait_s: float | None = None
    ) -> Generator[Answers, None, None]:
        """The same by columns, for sources that come some at a time: `Sources` cost the least.

        Gives all answers that are out at a time, and none when there have been none for `wait_s` seconds.
        """
        top = self.spec.top
        for outcomes in self.loading.outcomes(sources, ordered=ordered, wait_s=wait_s):
            yield Answers.joined([Answers.of(some, top) for some in outcomes], top)

    def submit(self, source: AnySource) -> Future[Answer]:
        """Classify one source. Waits for a slot, not for the answer. Raises StageFailure, as the future does.

        Callbacks of futures are called by one thread, which is theirs alone: one after another, and they may submit.
        """
        request = _Request(as_source(source), Future())
        request.future.set_running_or_notify_cancel()
        self.loading.offer(self._requests, request)
        return request.future

    def pin(self, sources: Iterable[AnySource]) -> list[int | str]:
        """Have samples in slots that stay theirs until `unpin`: the slot of each, or the error that it is.

        Raises PipelineError when there are more of them than free slots, StageFailure when the session cannot go on.
        """
        wanted = [as_source(source) for source in sources]
        if len(wanted) > self.loading.core.free:
            raise PipelineError(
                f"{len(wanted)} samples are to stay in memory, and {self.loading.core.free} of {self.slots} slots are "
                "free"
            )
        pinned: list[int | str] = []
        try:
            for outcomes in self.loading.outcomes([wanted], pins=True):
                for some in outcomes:
                    pinned += [int(row[0]) if row is not None else str(error) for _, row, error in some]
        except BaseException:
            self.unpin(slot for slot in pinned if isinstance(slot, int))  # whoever asked does not hear of them
            raise
        return pinned

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
        self,
        rate: float,
        *,
        decode_timed: bool,
        decodes_per_sample: float = 1.0,
        queue: Queue | None = None,
        main: float | None = None,
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
            main=main,
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
        if len(ready.numbers):
            self._queue.put(ready.numbers.astype(np.uint64), ready.slots.astype(np.int64))
        else:
            self.batches.pump()  # nothing to wait for any more, maybe

    def _on_answers(self) -> None:
        """What futures are told. Called with the loaders' lock held."""
        for outcomes in self.loading.core.answers(self._requests):
            requests: Sequence[_Request] = outcomes.sources
            sources = Sources.of([request.source for request in requests])
            answers = Answers.of(Outcomes(sources, outcomes.columns, outcomes.errors), self.spec.top)
            self._notifier.tell([(request.future, answer) for request, answer in zip(requests, answers, strict=True)])

    def _fail(self, failure: StageFailure) -> None:
        if self._end(failure) and self._on_failure is not None:
            self._on_failure(failure)

    def _end(self, why: BaseException) -> bool:
        """Whoever waits is notified, the first time; whether this was the first."""
        if not self.loading.end(why):
            return False
        requests: list[_Request] = self.loading.give_up(self._requests)
        self._notifier.tell([(request.future, why) for request in requests])
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
        numbers = answered.ids.astype(np.int64)
        columns = answered_columns(answered.classes, answered.top_ids, answered.top_scores)
        undecoded = answered.classes < 0
        if undecoded.any():
            words = (-answered.classes[undecoded]).tolist()
            self._loading.again(numbers[undecoded], [reason_of(word) for word in words])
            numbers, columns = numbers[~undecoded], (columns[0][~undecoded], columns[1][~undecoded])
        self._loading.answered(numbers, columns)


def _whereabouts(arena: Arena) -> str:
    """`, arena on node 0`, for a trace; empty on a machine of one node, and where the system does not report it."""
    shares = shares_of(arena.spec.path) if len(memory_nodes()) > 1 else {}
    return f", arena {shown(shares)}" if shares else ""


def as_source(source: AnySource) -> Source:
    """A source of what a caller names: a path is its own key."""
    if isinstance(source, Source):
        return source
    path = fspath(source)
    return Source(path, PathLocator(path))
